import csv
import json
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from brain_ldm_bundle.scripts.data.covariates import NULL, CovariateSchema
from brain_ldm_bundle.scripts.evaluation import reconstruction
from brain_ldm_bundle.scripts.shared import mni_box


def engine(files, **output):
    """What a handler sees of an evaluator: the batch with its files, and the network's output."""
    batch = {"file": files, "participant_id": [Path(file).name.split("_")[0] for file in files]}
    return SimpleNamespace(state=SimpleNamespace(batch=batch, output=output))


def scored(tmp_path, name, pairs):
    scores, number = reconstruction.ReconstructionScores(tmp_path / f"{name}.tsv"), 0
    for prediction, image in pairs:
        files = [f"sub-{number + i}_{number + i}.nii.gz" for i in range(len(image))]
        number += len(image)
        scores.score(engine(files, pred=prediction, label=image))
    scores.write(None)
    with open(tmp_path / f"{name}.tsv", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_scores_agree_with_an_independent_implementation(tmp_path):
    torch.manual_seed(0)
    image = torch.nn.functional.avg_pool3d(torch.rand(1, 1, 30, 34, 32), 3, stride=1)
    prediction = (image + 0.05 * torch.randn_like(image)).clamp(0, 1)
    (row,) = scored(tmp_path, "reconstruction", [(prediction, image)])
    a, b = prediction[0, 0].numpy(), image[0, 0].numpy()
    assert float(row["psnr_db"]) == pytest.approx(peak_signal_noise_ratio(b, a, data_range=1), abs=1e-3)
    assert float(row["l1"]) == pytest.approx(abs(a - b).mean(), abs=1e-5)
    # Wang's window; MONAI leaves out the border, where the window does not fit.
    _, ssim = structural_similarity(b, a, data_range=1, gaussian_weights=True, sigma=1.5, truncate=3.5, full=True,
                                    use_sample_covariance=False)  # fmt: skip
    assert float(row["ssim"]) == pytest.approx(ssim[5:-5, 5:-5, 5:-5].mean(), abs=2e-3)


def test_each_scan_of_a_batch_has_its_own_row(tmp_path):
    images = torch.rand(3, 1, 12, 13, 14)
    predictions = images * torch.tensor([0.9, 0.8, 0.7]).view(3, 1, 1, 1, 1)
    alone = [(predictions[i : i + 1], images[i : i + 1]) for i in range(3)]
    together = [(predictions[:2], images[:2]), alone[2]]
    rows = scored(tmp_path, "reconstruction", together)
    assert rows == scored(tmp_path, "reconstruction", alone) and len({row["l1"] for row in rows}) == 3
    assert [row["participant_id"] for row in rows] == ["sub-0", "sub-1", "sub-2"]


def test_the_summary_gives_mean_and_spread_of_both(tmp_path):
    image = torch.full((1, 1, 12, 13, 14), 0.5)
    scored(tmp_path, "reconstruction", [(image + 0.1, image), (image + 0.3, image)])
    scored(tmp_path, "mean_image", [(image + 0.4, image)])
    summary = reconstruction.summarise(tmp_path, "validation", {"seen_voxels": []})
    assert summary == json.loads((tmp_path / "reconstruction.json").read_text())
    assert summary["reconstruction"]["n"] == 2 and summary["mean_image"]["n"] == 1
    assert summary["reconstruction"]["l1"]["mean"] == pytest.approx(0.2, abs=1e-5)
    assert summary["reconstruction"]["l1"]["std"] == pytest.approx(np.std([0.1, 0.3], ddof=1), abs=1e-5)
    assert summary["mean_image"]["l1"]["std"] is None
    section = json.loads((tmp_path / "reconstruction.section.json").read_text())
    assert "the scans of the split validation, which chose its best epoch. Details" in section["text"]
    (table,) = section["tables"]
    l1 = {row[0]: row[-1] for row in table["rows"]}
    assert l1["autoencoder"] == "0.2 ± 0.14 [-1.1, 1.5]"  # 12.7 standard errors: of two scans little is known
    assert l1["trivial answer: the mean training scan"] == "0.4"  # one scan has no spread


def test_the_trivial_answer_is_the_mean_training_scan_for_everyone():
    scans = {name: torch.rand(1, 4, 6, 5) for name in "ab"}
    mean = reconstruction.mean_image([{"image": "a"}, {"image": "b"}], lambda item: {"image": scans[item["image"]]})
    torch.testing.assert_close(mean, (scans["a"] + scans["b"]) / 2)
    answer = reconstruction.MeanImage(mean)(torch.rand(3, 1, 4, 6, 5), torch.nn.Identity())
    assert torch.equal(answer, mean.expand(3, -1, -1, -1, -1))


@pytest.mark.parametrize("value", [float("nan"), 0.5])
def test_scores_that_are_no_numbers_are_refused_by_scan(tmp_path, value):
    """One NaN of three scans ended as "nan ± nan"; where both are the same, PSNR is infinite."""
    image = torch.full((1, 1, 12, 13, 14), 0.5)
    with pytest.raises(ValueError, match="1.nii.gz: SSIM, PSNR and L1 are .*. The network's output is not finite"):
        scored(tmp_path, "reconstruction", [(image + 0.1, image), (torch.full_like(image, value), image)])
    assert not list(tmp_path.iterdir())


SPACING_MM = 8.0
SCHEMA = CovariateSchema.from_dict(
    {
        "covariates": [
            {"name": "age", "unit": "years", "range": [44, 80], "limits": [18, 80], "missing": "allowed"},
            {"name": "sex", "levels": {"F": 0, "M": 1}},
        ]
    }
)


def kept(tmp_path, names, covariates, weights=b"weights"):
    items = []
    for name, values in zip(names, covariates, strict=True):
        (tmp_path / f"{name}_T1w.nii.gz").write_bytes(name.encode())
        items.append(
            {"participant_id": name.split("_")[0], "image": str(tmp_path / f"{name}_T1w.nii.gz"), "covariates": values}
        )
    (tmp_path / "weights.pt").write_bytes(weights)
    keep = reconstruction.KeepReconstructions(tmp_path / "kept", SCHEMA, SPACING_MM, items, tmp_path / "weights.pt")
    for number, item in enumerate(items):
        keep.keep(engine([item["image"]], pred=torch.full((1, 1, *mni_box.size(SPACING_MM)), 0.2 * number)))
    keep.finish(None)
    return tmp_path / "kept"


def test_reconstructions_are_kept_as_generated_volumes_are_with_the_covariates_of_their_scans(tmp_path):
    ages = [SCHEMA.scale({"age": age, "sex": sex}) for age, sex in ((80, "F"), (61.7, "M"))]  # 80: at its limit
    folder = kept(tmp_path, ["sub-02", "sub-11"], [*ages])
    table = pd.read_csv(folder / "participants.tsv", sep="\t")
    assert table.to_dict("list") == {"participant_id": ["sub-02", "sub-11"], "age": [80, 61.7], "sex": ["F", "M"]}
    image = nib.load(folder / "sub-11" / "anat" / "sub-11_T1w.nii.gz")
    assert image.get_data_dtype() == np.uint8 and np.allclose(image.get_fdata(), 51 / 255)
    assert np.allclose(image.affine, mni_box.affine(SPACING_MM)) and b"Synthetic" in bytes(image.header["descrip"])
    sidecar = json.loads((folder / "sub-11" / "anat" / "sub-11_T1w.json").read_text())
    assert sidecar["EditedImage"] == "sub-11_T1w.nii.gz" and "a scan through an autoencoder" in sidecar["Description"]
    assert "(of the scan)" in (folder / "participants.json").read_text()


def test_reconstructions_are_not_mixed_with_generated_volumes(tmp_path):
    (tmp_path / "kept").mkdir()
    description = {"Name": "Synthetic T1-weighted brain MRI", "GeneratedBy": [{"Name": "brain_ldm_bundle"}]}
    (tmp_path / "kept" / "dataset_description.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match="holds the data set 'Synthetic T1-weighted brain MRI'. Choose a new folder"):
        kept(tmp_path, ["sub-02"], [[NULL, 0.0]])


@pytest.mark.parametrize(("names", "weights"), [(["sub-02"], b"others"), (["sub-03"], b"weights")], ids=["weights", "scans"])
def test_reconstructions_of_other_weights_or_scans_do_not_stay_beside_new_ones(names, weights, tmp_path):
    """They were measured with them: a yardstick of two autoencoders."""
    kept(tmp_path, ["sub-02"], [[NULL, 0.0]])
    kept(tmp_path, ["sub-02"], [[NULL, 0.0]])  # the same once more
    with pytest.raises(ValueError, match="holds sub-02_T1w.json, of another scan or autoencoder .* Choose a new folder"):
        kept(tmp_path, names, [[NULL, 0.0]], weights)


def test_each_of_several_scans_of_a_participant_is_kept(tmp_path):
    folder = kept(tmp_path, ["sub-02_ses-1", "sub-02_ses-2", "sub-03"], [[NULL, 0.0]] * 3)
    table = pd.read_csv(folder / "participants.tsv", sep="\t")
    assert list(table["participant_id"]) == ["sub-02ses1", "sub-02ses2", "sub-03"] and table["age"].isna().all()


def test_two_scans_of_one_name_are_refused_before_any_is_kept(tmp_path):
    with pytest.raises(ValueError, match="such as sub-02ses1. Give the scans a participant_id or BIDS names"):
        kept(tmp_path, ["sub-02_ses-1", "sub-02_ses1"], [[NULL, 0.0]] * 2)
    assert not (tmp_path / "kept").exists()


def test_scans_in_another_order_keep_their_own_scores_and_reconstructions(tmp_path):
    """Outputs were matched to scans by counting: a shuffled loader would have mixed up participants."""
    items = [{"participant_id": f"sub-0{n}", "image": str(tmp_path / f"sub-0{n}_T1w.nii.gz")} for n in range(3)]
    for item in items:
        Path(item["image"]).write_bytes(item["image"].encode())
        item["covariates"] = SCHEMA.scale({"age": 50 + 10 * int(item["participant_id"][-1]), "sex": "F"})
    (tmp_path / "weights.pt").write_bytes(b"weights")
    scores = reconstruction.ReconstructionScores(tmp_path / "scores.tsv")
    keep = reconstruction.KeepReconstructions(tmp_path / "kept", SCHEMA, SPACING_MM, items, tmp_path / "weights.pt")
    for n in (2, 0, 1):
        label = torch.full((1, 1, *mni_box.size(SPACING_MM)), 0.5)
        seen = engine([items[n]["image"]], pred=label + 0.1 * (n + 1), label=label)
        scores.score(seen)
        keep.keep(seen)
    scores.write(None)
    keep.finish(None)
    found = pd.read_csv(tmp_path / "scores.tsv", sep="\t").set_index("participant_id")["l1"]
    assert found.to_dict() == pytest.approx({"sub-00": 0.1, "sub-01": 0.2, "sub-02": 0.3})
    for n in range(3):
        image = nib.load(tmp_path / "kept" / f"sub-0{n}" / "anat" / f"sub-0{n}_T1w.nii.gz")
        assert image.get_fdata().mean() == pytest.approx(0.6 + 0.1 * n, abs=0.003)
    table = pd.read_csv(tmp_path / "kept" / "participants.tsv", sep="\t").set_index("participant_id")
    assert table["age"].to_dict() == {"sub-00": 50, "sub-01": 60, "sub-02": 70}
