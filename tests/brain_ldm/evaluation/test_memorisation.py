"""The memorisation audit finds planted copies and a generator of training latents, and accepts new heads."""

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tiny
import torch
from monai.bundle import run
from monai.transforms import Compose, EnsureChannelFirstd, EnsureTyped, LoadImaged
from scipy.ndimage import gaussian_filter

from brain_ldm_bundle.scripts.data.preprocessing import ToGridd
from brain_ldm_bundle.scripts.evaluation.memorisation import Audit
from brain_ldm_bundle.scripts.shared import mni_box
from brain_ldm_bundle.scripts.training.latents import LatentDataset

SPACING_MM = 8.0
TRAINING, HELD_OUT = 14, 8


class Pooling(torch.nn.Module):
    """An autoencoder that needs no training: its latent holds the means of 2 x 2 x 2 voxels."""

    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(1))

    def encode(self, x):
        mu = self.gain * torch.nn.functional.avg_pool3d(x, 2)
        return mu, torch.zeros_like(mu)

    def decode(self, z):
        return torch.nn.functional.interpolate(z / self.gain, scale_factor=2, mode="trilinear")


def head(seed):
    """A head of its own: smooth random tissue (20, 28, 20) in an ellipsoid, 0 to 1."""
    rng = np.random.default_rng(seed)
    x, y, z = np.indices(mni_box.size(SPACING_MM))
    inside = ((x - 10) / 8) ** 2 + ((y - 13) / 11) ** 2 + ((z - 9) / 8) ** 2 < 1
    tissue = gaussian_filter(rng.standard_normal(inside.shape), 1.2)
    return (inside * (0.5 + 0.15 * tissue / tissue.std())).clip(0, 1)


def write(folder, name, values, affine=None):
    path = Path(folder) / name / "anat" / f"{name}_T1w.nii.gz"
    path.parent.mkdir(parents=True)
    image = nib.Nifti1Image(np.asarray(values, np.float32), mni_box.affine(SPACING_MM) if affine is None else affine)
    image.set_sform(image.affine, code="mni")
    nib.save(image, path)
    return {"image": str(path), "participant_id": name}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """14 training scans and 8 held out, with a cache of latents."""
    folder = tmp_path_factory.mktemp("cohort")
    items = [write(folder, f"sub-{i:04d}", head(i)) | {"covariates": [0.5]} for i in range(TRAINING + HELD_OUT)]
    torch.save(Pooling().state_dict(), folder / "autoencoder.pt")
    middle = TRAINING + HELD_OUT // 2
    return folder, {"training": items[:TRAINING], "validation": items[TRAINING:middle], "test": items[middle:]}


def audit(cohort, generated, output_dir, num_workers=0, **settings):
    folder, data = cohort
    read = [LoadImaged("image", image_only=True), EnsureChannelFirstd("image"), ToGridd("image", SPACING_MM)]
    transform = Compose([*read, EnsureTyped("image", track_meta=False)])
    scans = [item for split in data.values() for item in split]
    latents = LatentDataset(
        scans, transform, Pooling(), folder / "autoencoder.pt", folder / "cache", SPACING_MM, num_workers=num_workers
    )
    settings = {"pairs": 1, "controls": 4, "cache_dir": folder / "anatomies"} | settings
    return Audit(data, generated, latents, transform, output_dir, **settings).run()


def flagged(output_dir):
    with open(output_dir / "memorisation.tsv", newline="") as file:
        return {row["participant_id"]: row for row in csv.DictReader(file, delimiter="\t") if row["kind"] == "sample"}


def test_heads_of_their_own_pass(cohort, tmp_path):
    for i in range(8):
        write(tmp_path / "generated", f"sub-new{i}", gaussian_filter(head(100 + i), 0.5 * (i % 2)))  # half of them smoothed
    summary = audit(cohort, tmp_path / "generated", tmp_path / "out", controls=12)
    assert summary["passed"] and summary["counts"]["sample"]["flagged"] == 0
    assert summary["counts"]["held-out"]["flagged"] == 0
    assert summary["counts"]["control"] == {
        "n": 12,
        "flagged": 12,
        "share": 1.0,
        "share_95": pytest.approx([0.735, 1], abs=1e-3),
    }


def test_an_audit_reads_no_training_scan_again_and_workers_give_the_same_numbers(cohort, tmp_path):
    for i in range(4):
        write(tmp_path / "generated", f"sub-new{i}", head(100 + i))
    wanted = audit(cohort, tmp_path / "generated", tmp_path / "a")
    kept = list((cohort[0] / "anatomies").iterdir())
    assert len(kept) == TRAINING
    kept[0].write_bytes(b"cut short")
    before = {path: path.stat().st_mtime_ns for path in kept}
    assert audit(cohort, tmp_path / "generated", tmp_path / "b", num_workers=2) == wanted
    assert [path for path in kept if path.stat().st_mtime_ns != before[path]] == kept[:1]  # mended, the others as they were
    tables = [(tmp_path / name / "memorisation.tsv").read_text() for name in "ab"]
    assert tables[0] == tables[1]


PLANTED = {
    "exact": lambda scan, rng: scan,
    "noised": lambda scan, rng: scan + 0.03 * rng.standard_normal(scan.shape),
    "shifted": lambda scan, rng: np.roll(scan, 1, 1),
    "mirrored": lambda scan, rng: scan[::-1],
    "mirroredshifted": lambda scan, rng: np.roll(scan[::-1], -1, 2),
    "rescaled": lambda scan, rng: 0.1 + 0.6 * scan,
    "smoothed": lambda scan, rng: gaussian_filter(scan, 0.7),
}


def test_every_kind_of_planted_copy_is_flagged_and_nothing_else(cohort, tmp_path):
    rng = np.random.default_rng(0)
    for i, (kind, change) in enumerate(PLANTED.items()):
        write(tmp_path / "generated", f"sub-{kind}", change(head(i), rng))
        write(tmp_path / "generated", f"sub-own{i}", head(200 + i))
    with pytest.raises(SystemExit) as end:
        audit(cohort, tmp_path / "generated", tmp_path / "out", pairs=3)
    assert end.value.code == 1
    rows = flagged(tmp_path / "out")
    for i, kind in enumerate(PLANTED):
        row = rows[f"sub-{kind}"]
        assert row["flagged"] == "true", kind
        assert row["image_nearest"] == f"sub-{i:04d}", kind
        assert rows[f"sub-own{i}"]["flagged"] == "false"
    assert rows["sub-mirrored"]["latent_view"] == "mirrored"
    assert rows["sub-shifted"]["image_view"] == "moved -8 mm back-front"
    assert rows["sub-mirroredshifted"]["image_view"] == "mirrored moved +8 mm bottom-top"
    summary = json.loads((tmp_path / "out" / "memorisation.json").read_text())
    assert summary["counts"]["sample"]["flagged"] == len(PLANTED) and not summary["passed"]
    section = json.loads((tmp_path / "out" / "memorisation.section.json").read_text())
    assert section["text"].startswith("Not passed: 7 of 14 generated volumes flagged")
    assert section["verdict"].startswith("The audit did not pass. 7 of 14 generated heads are flagged as copies")
    assert all((tmp_path / "out" / figure["file"]).stat().st_size > 1000 for figure in section["figures"])


def test_a_model_that_repeats_training_latents_is_flagged_whole(cohort, tmp_path):
    _, data = cohort
    rng = torch.Generator().manual_seed(0)
    for i in range(7):
        mu, _ = Pooling().encode(torch.from_numpy(head(2 * i)).float()[None, None])
        noisy = mu + 0.2 * mu.std() * torch.randn(mu.shape, generator=rng)
        with torch.no_grad():
            write(tmp_path / "generated", f"sub-{i}", Pooling().decode(noisy)[0, 0].clamp(0, 1))
    with pytest.raises(SystemExit):
        audit(cohort, tmp_path / "generated", tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "memorisation.json").read_text())
    assert summary["counts"]["sample"]["flagged"] == 7
    assert summary["spaces"]["latent"]["probability_nearer"] == 1 and summary["spaces"]["latent"]["p"] < 1e-3


def test_a_share_of_copies_may_be_allowed(cohort, tmp_path):
    write(tmp_path / "generated", "sub-copy", head(3))
    for i in range(3):
        write(tmp_path / "generated", f"sub-{i}", head(300 + i))
    summary = audit(cohort, tmp_path / "generated", tmp_path / "out", max_flagged=0.25)
    assert summary["passed"] and summary["counts"]["sample"]["share"] == 0.25


def test_an_audit_that_misses_its_controls_does_not_pass(cohort, tmp_path, monkeypatch):
    """Where all held-out scans are copies of training scans themselves, nothing stands out any more."""
    folder, data = cohort
    doubles = [write(tmp_path / "doubles", f"sub-d{i}", head(i)) | {"covariates": [0.5]} for i in range(HELD_OUT)]
    write(tmp_path / "generated", "sub-copy", head(3))
    with pytest.raises(SystemExit):
        audit((folder, data | {"validation": doubles, "test": []}), tmp_path / "generated", tmp_path / "out")
    section = json.loads((tmp_path / "out" / "memorisation.section.json").read_text())
    assert "fewer than 80%: this audit would miss copies" in section["text"]


def test_few_held_out_scans_are_refused(cohort, tmp_path):
    folder, data = cohort
    write(tmp_path / "generated", "sub-a", head(1))
    few = data | {"validation": data["validation"][:4], "test": data["test"][:1]}
    with pytest.raises(ValueError, match=r"5 held-out scans \(validation: 4, test: 1\); at least 6 are needed"):
        audit((folder, few), tmp_path / "generated", tmp_path / "out")
    with pytest.raises(ValueError, match="3 training participants; at least 4"):
        audit((folder, data | {"training": data["training"][:3]}), tmp_path / "generated", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_data_set_itself_is_not_audited(cohort, tmp_path):
    with pytest.raises(ValueError, match="22 of its 22 volumes, such as .*are scans of the data set itself"):
        audit(cohort, cohort[0], tmp_path)


def test_no_folder_another_spacing_nan_and_constant_volumes_are_refused_by_name(cohort, tmp_path):
    with pytest.raises(ValueError, match="no volumes to audit. Give --audited_dir"):
        audit(cohort, None, tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        audit(cohort, tmp_path / "nowhere", tmp_path)
    write(tmp_path / "fine", "sub-fine", np.random.default_rng(0).random(mni_box.size(4.0)), mni_box.affine(4.0))
    with pytest.raises(ValueError, match="sub-fine.*voxels of .*4.* not 8 mm"):
        audit(cohort, tmp_path / "fine", tmp_path)
    write(tmp_path / "nan", "sub-nan", np.where(head(0) > 0.5, np.nan, head(0)))
    with pytest.raises(ValueError, match="sub-nan.*NaN or infinite"):
        audit(cohort, tmp_path / "nan", tmp_path)
    margin = np.zeros(mni_box.size(SPACING_MM))
    margin[0] = np.linspace(0.1, 1, margin[0].size).reshape(margin[0].shape)
    write(tmp_path / "empty", "sub-empty", margin)
    with pytest.raises(ValueError, match="sub-empty.*constant where the brain should be"):
        audit(cohort, tmp_path / "empty", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("settings", [{"max_flagged": 1.5}, {"max_flagged": -0.1}])
def test_shares_are_0_to_1(cohort, tmp_path, settings):
    write(tmp_path / "generated", "sub-a", head(1))
    with pytest.raises(ValueError, match="is a share, 0 to 1"):
        audit(cohort, tmp_path / "generated", tmp_path / "out", **settings)


# --- The workflow --------------------------------------------------------------------------------------------------


def write_cohort(folder, training, held_out):
    rows = ["participant_id\tage\tsex\tventricles_ml\tbrain_normalised_ml\tsplit"]
    for i in range(training + held_out):
        write(folder, f"sub-{i:04d}", head(i))
        split = "train" if i < training else ("validation", "test")[i % 2]
        rows.append(f"sub-{i:04d}\t{50 + i}\t{'FM'[i % 2]}\t{20 + 3 * i}\t{1300 + 10 * i}\t{split}")
    (folder / "participants.tsv").write_text("\n".join(rows) + "\n")
    return folder


def write_weights(folder):
    """Weights of tiny networks, not trained: the audit only needs an autoencoder that encodes alike what is alike."""
    (folder / "models").mkdir()
    network = tiny.unet()
    sizes = {"channels": [8, 8], "num_res_blocks": 1, "norm_num_groups": 4}
    network.recipe = {"spacing_mm": tiny.SPACING_MM, "autoencoder": sizes}
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    torch.save(tiny.autoencoder().state_dict(), folder / "models" / "autoencoder.pt")


def audit_by_config(dataset_dir, folder, generated, **settings):
    given = tiny.places(dataset_dir, folder) | {"output_dir": str(folder / "audit"), "audited_dir": str(generated)}
    run("evaluating", config_file="configs/evaluate.json", use_device="cpu", **given, **settings)


def test_the_config_audits_a_folder_and_ends_with_1_after_a_copy(bundle, tmp_path):
    data = write_cohort(tmp_path / "data", 6, 6)
    write_weights(tmp_path)
    scan = nib.load(data / "sub-0002" / "anat" / "sub-0002_T1w.nii.gz").get_fdata()
    write(tmp_path / "generated", "sub-copy", scan)
    write(tmp_path / "generated", "sub-own", head(99))
    with pytest.raises(SystemExit) as end:
        audit_by_config(data, tmp_path, tmp_path / "generated", split="validation")
    assert end.value.code == 1
    assert (tmp_path / "audit" / "reconstruction.json").is_file()  # the audit comes last
    rows = flagged(tmp_path / "audit")
    assert rows["sub-copy"]["flagged"] == "true" and rows["sub-copy"]["image_nearest"] == "sub-0002"
    assert rows["sub-own"]["flagged"] == "false"
