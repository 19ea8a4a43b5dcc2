"""What the weights that a training starts from have seen is known, also if a plane was trained again since."""

import pytest
import torch

from spade_fusion_bundle.scripts.shared.recipe import encode
from spade_fusion_bundle.scripts.shared.scan_identity import seen_unknown, seen_voxels
from spade_fusion_bundle.scripts.training.start_weights import refuse_seen, start_files


@pytest.fixture
def start(tmp_path):
    """A folder whose axial plane was trained on the scan b after the model."""
    for name, seen in (("model", ["a"]), ("spade_axial", ["a", "b"])):
        torch.save({"_extra_state": encode({"seen_voxels": seen, "data": "splits"})}, tmp_path / f"{name}.pt")
    return tmp_path


def test_scans_that_only_a_plane_has_seen_are_not_held_out(start):
    """Only the model was asked, so the plane was validated on a scan that it knew."""
    data = {"validation": [{"voxels_sha256": "c"}], "training": [], "fusion": []}
    refuse_seen(start, data, 0, "splits")
    data["validation"] = [{"voxels_sha256": "b", "image": "b.nii.gz"}]
    with pytest.raises(ValueError, match="'validation'.* are among those that .*spade_axial.pt were trained on"):
        refuse_seen(start, data, 0, "splits")


def test_all_scans_behind_a_start_are_recorded(start):
    assert start_files(None) == []
    assert seen_voxels([{"voxels_sha256": "d"}], *start_files(start)) == ["a", "b", "d"]
    assert not seen_unknown(*start_files(start))
    torch.save({"_extra_state": encode({"data": "splits"})}, start / "spade_coronal.pt")
    assert seen_unknown(*start_files(start))
