"""Scans in place of synthetic volumes, and the other way round, are refused: reports and studies would call them so."""

import json

import pytest
from cohorts.scans_or_synthetic import refuse_scans, refuse_synthetic, warn_of_missing_sidecars

BUNDLE = {"DatasetType": "derivative", "GeneratedBy": [{"Name": "spade_fusion_bundle"}]}
CASES = [  # description of the data set, sidecar, what the volume is
    (BUNDLE, {"Synthetic": True}, "synthetic"),
    (BUNDLE, None, "synthetic"),
    (None, {"Synthetic": True}, "synthetic"),
    ({"DatasetType": "raw", "Simulated": True}, {"Synthetic": True, "Simulated": True}, "scans"),
    ({"DatasetType": "raw"}, None, "scans"),
    ({"DatasetType": "derivative", "GeneratedBy": [{"Name": "prepare_data.py"}]}, None, "scans"),
    ({"Name": "old"}, {"Manufacturer": "X"}, "scans"),
    ({"DatasetType": "derivative", "GeneratedBy": [{"Name": "another GAN"}]}, {"Description": "x"}, ""),
    ("no JSON", "no JSON", ""),
    (None, None, ""),
]


@pytest.mark.parametrize(("description", "sidecar", "kind"), CASES)
def test_a_volume_is_refused_where_its_files_say_that_it_is_another_kind(tmp_path, description, sidecar, kind):
    image = tmp_path / "sub-1" / "ses-1" / "anat" / "sub-1_ses-1_T1w.nii.gz"
    image.parent.mkdir(parents=True)
    sidecar_file = image.with_name("sub-1_ses-1_T1w.json")
    for path, content in ((tmp_path / "dataset_description.json", description), (sidecar_file, sidecar)):
        if content is not None:
            path.write_text(json.dumps(content))
    for refuse, refused in ((refuse_scans, "scans"), (refuse_synthetic, "synthetic")):
        if kind == refused:
            with pytest.raises(ValueError, match=f"{image}: is .*, as .*json says, but --here takes"):
                refuse(image, "--here")
        else:
            refuse(image, "--here")


def test_the_description_of_a_study_says_nothing_about_its_derivatives(tmp_path):
    (tmp_path / "dataset_description.json").write_text(json.dumps({"DatasetType": "raw"}))
    refuse_scans(tmp_path / "derivatives" / "gan" / "a.nii.gz", "--synthetic")


def test_a_volume_without_a_sidecar_among_others_with_one_is_named(tmp_path, recwarn):
    """A user's own scan in the folder of generated heads counted as generated."""
    (tmp_path / "dataset_description.json").write_text(json.dumps(BUNDLE))
    images = [tmp_path / f"sub-{name}" / "anat" / f"sub-{name}_T1w.nii.gz" for name in "ab"]
    images[0].parent.mkdir(parents=True)
    warn_of_missing_sidecars(images)  # all lack one: they were shared without
    assert not recwarn
    images[0].with_name("sub-a_T1w.json").write_text(json.dumps({"Synthetic": True}))
    with pytest.warns(UserWarning, match=f"A JSON sidecar is missing beside 1 image, such as {images[1]}, but"):
        warn_of_missing_sidecars(images)
