"""make_labelled_heads.py runs both bundles, and refuses what cannot work before either of them starts."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import bids_validator
import make_labelled_heads
import nibabel as nib
import numpy as np
import pytest
import tiny
import tiny_labels
from conftest import ROOT, entered_bundle
from shared.tables import read_table
from shared.weights import add_to_recipe
from tiny_bundles import write_ldm_weights, write_spade_weights

from spade_fusion_bundle.scripts.shared.label_table import LabelTable

REQUESTS = """participant_id\tage\tsex\tventricles_ml\tbrain_normalised_ml
sub-a\t60\tF\t40\t1300
sub-b\t75\tM\t90\t1200
sub-c\t50\tM\t60\t1250
"""


@pytest.fixture
def requests(tmp_path):
    path = tmp_path / "requests.tsv"
    path.write_text(REQUESTS)
    return path


def image_models(folder: Path, spacing_mm: float = tiny.SPACING_MM) -> Path:
    """Untrained weights of SPADE for the table "demo"."""
    folder.mkdir()
    write_spade_weights(folder)
    add_to_recipe(folder / "model.pt", {"spacing_mm": spacing_mm})
    return folder


def label_models(folder: Path) -> Path:
    """Weights of scans with the recipe of label maps: enough for what is checked before work starts."""
    folder.mkdir()
    write_ldm_weights(folder)
    add_to_recipe(folder / "model.pt", {"labels": tiny_labels.TABLE.to_dict(), "volumes": {}})
    return folder


def refusal(out: Path, requests: Path, labels: Path, images: Path, *more: str) -> str:
    """What ends the command; it writes nothing."""
    before = sorted(out.parent.rglob("*"))
    with pytest.raises((ValueError, FileNotFoundError)) as refused:
        make_labelled_heads.main([str(requests), str(out), "--label_models", str(labels), "--image_models", str(images), *more])
    assert sorted(out.parent.rglob("*")) == before
    return str(refused.value)


def test_models_that_do_not_fit_each_other_are_refused_before_work_starts(tmp_path, requests):
    labels, images, out = label_models(tmp_path / "labels"), image_models(tmp_path / "images"), tmp_path / "out"
    coarse = image_models(tmp_path / "coarse", 4.0)
    assert "has voxels of 8 mm, but" in refusal(out, requests, labels, coarse)
    other = shutil.copytree(images, tmp_path / "other")
    freesurfer = LabelTable.from_file(tiny_labels.TABLES, "freesurfer")
    add_to_recipe(other / "model.pt", {"labels": freesurfer.to_dict()})
    assert "the values of the table 'demo', but" in refusal(out, requests, labels, other)
    scans = tmp_path / "scans"
    scans.mkdir()
    write_ldm_weights(scans)
    assert "scans/model.pt: these weights are of no model that makes label maps" in refusal(out, requests, scans, images)
    assert "no such weights file. Make it with: python -m monai.bundle" in refusal(out, requests, tmp_path / "gone", images)
    assert "no such weights file. Make it with: python -m monai.bundle" in refusal(out, requests, labels, tmp_path / "gone")


def test_other_bad_input_is_refused_before_work_starts(tmp_path, requests):
    labels, images = label_models(tmp_path / "labels"), image_models(tmp_path / "images")
    study = tiny.write_dataset(tmp_path / "study", 1, 0)
    assert "holds a data set that spade_fusion_bundle did not make" in refusal(study, requests, labels, images)
    assert "shard must be K/N" in refusal(tmp_path / "out", requests, labels, images, "--shard", "4/3")
    assert "no such table" in refusal(tmp_path / "out", tmp_path / "gone.tsv", labels, images)
    nameless = tmp_path / "nameless.tsv"
    nameless.write_text("name\tage\na\t60\n")
    assert "no column 'participant_id'" in refusal(tmp_path / "out", nameless, labels, images)


def test_both_bundles_know_the_settings(tmp_path, requests):
    options = make_labelled_heads.parse_arguments(
        [str(requests), str(tmp_path / "out"), "--shard", "2/3", "--variants", "4", "--seed", "7", "--acquisition", "False",
         "--steps", "15", "--sampler_name", "dpm++", "--use_device", "cpu"]
    )  # fmt: skip
    for bundle, settings in make_labelled_heads.commands(options, requests):
        config = json.loads((bundle / "configs" / "inference.json").read_text())
        given = dict(zip(settings[::2], settings[1::2]))
        assert {name.removeprefix("--") for name in given} <= config.keys()
        assert given["--seed"] == "7" and ("--variants" in given) == (bundle.name == "spade_fusion_bundle")
        assert all(Path(given[name]).is_absolute() for name in given if name.endswith("_dir"))


def test_a_shard_has_the_rows_that_the_bundle_gives_it(requests):
    assert make_labelled_heads.participants_of(requests, None) == ["sub-a", "sub-b", "sub-c"]
    assert make_labelled_heads.participants_of(requests, "1/2") == ["sub-a", "sub-c"]
    assert make_labelled_heads.participants_of(requests, "2/2") == ["sub-b"]


@pytest.mark.slow
def test_heads_are_made_in_shards_and_each_row_alone_gives_the_same(tmp_path, requests):
    data = tiny_labels.write_dataset(tmp_path / "data")
    sizes = {"autoencoder_epochs": 8, "autoencoder_batch_size": 1, "autoencoder_lr": 3e-3}
    with entered_bundle(ROOT / "brain_ldm_bundle"):
        labels = tiny_labels.train(data, tmp_path, **sizes)
    images = image_models(tmp_path / "images")

    def make(out, *more):
        command = [sys.executable, ROOT / "scripts" / "make_labelled_heads.py", requests, out, "--label_models", labels]
        settings = ["--image_models", images, "--variants", "2", "--steps", "2", "--use_device", "cpu"]
        process = subprocess.run([*command, *settings, *more], cwd=tmp_path, capture_output=True, text=True)
        assert process.returncode == 0, process.stderr[-3000:]
        return process

    out = tmp_path / "out"
    make(out, "--shard", "1/2")
    assert sorted(path.name for path in out.glob("sub-*")) == ["sub-a", "sub-av01", "sub-c", "sub-cv01"]
    assert "6 labelled heads are in" in make(out).stdout
    assert bids_validator.problems(out) == []
    source = out / "sourcedata" / "label_maps"
    assert {row["source_participant_id"] for row in read_table(out / "participants.tsv")} == {"sub-a", "sub-b", "sub-c"}
    for name in ("sub-a", "sub-b", "sub-c"):
        anat = out / name / "anat"
        own, origin = (
            np.asarray(nib.load(folder / f"{name}_dseg.nii.gz").dataobj) for folder in (anat, source / name / "anat")
        )
        assert np.array_equal(own, origin) and nib.load(anat / f"{name}_T1w.nii.gz").shape == own.shape
        sidecar = json.loads((anat / f"{name}_T1w.json").read_text())
        hashes = sidecar["WeightsSHA256"], sidecar["LabelMapSource"]["WeightsSHA256"]
        assert len(set(hashes)) == 2 and sidecar["LabelMapSource"]["Volumes"]["ventricles_ml"]["Requested"] in (40, 90, 60)
    requests.write_text("\n".join(line for line in REQUESTS.splitlines() if not line.startswith(("sub-a", "sub-c"))))
    make(tmp_path / "alone")
    for file in sorted((tmp_path / "alone").glob("sub-*/anat/*.nii.gz")):
        assert file.read_bytes() == (out / file.relative_to(tmp_path / "alone")).read_bytes()
