"""Tiny folders of volumes for the tests of the report page: a head with a bright mark at the subject's left."""

import json

import nibabel as nib
import numpy as np
import pandas as pd

SHAPE = (20, 28, 24)  # RAS: three different side lengths
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
AFFINE[:3, 3] = (-19.0, -27.0, -23.0)
CENTRE_MM = (1.0, 1.0, 1.0)


def phantom():
    """Grey head; in all planes through its middle a bright block at the subject's left, less bright at the front and top."""
    volume = np.full(SHAPE, 0.2, np.float32)
    volume[2:4, 12:17, 10:15] = 1.0  # left
    volume[8:13, 24:26, 10:15] = 0.8  # front
    volume[8:13, 12:17, 20:22] = 0.6  # top
    return nib.Nifti1Image(volume, AFFINE)


def label_phantom():
    """Label 17 where the phantom is bright at the left, 53 at the right, 2035 at the top; 0 elsewhere."""
    labels = np.zeros(SHAPE, np.int16)
    labels[2:4, 12:17, 10:15] = 17
    labels[16:18, 12:17, 10:15] = 53
    labels[8:13, 12:17, 20:22] = 2035
    return nib.Nifti1Image(labels, AFFINE)


def stored_as(image, axes):
    """The same volume in another order and direction of its axes."""
    orientation = nib.orientations.axcodes2ornt(axes)
    return image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), orientation))


def make_cohort(folder, participants, ventricles_ml, measured_ml, name="A <cohort>", split=None, **columns):
    """Write a generated folder or cohort, and a table of measurements next to it. Return both paths."""
    for participant in participants:
        anat = folder / participant / "anat"
        anat.mkdir(parents=True)
        nib.save(phantom(), anat / f"{participant}_T1w.nii.gz")
        sidecar = {"Sampler": "ddim", "Steps": 7, "SoftwareVersions": {"monai": "1.6.1"}}
        (anat / f"{participant}_T1w.json").write_text(json.dumps(sidecar))
    (folder / "dataset_description.json").write_text(json.dumps({"Name": name}))
    table = {"participant_id": participants, "age": 60.5, "sex": "F", "ventricles_ml": ventricles_ml} | columns
    table = pd.DataFrame(table | ({"split": split} if split else {}))
    table.to_csv(folder / "participants.tsv", sep="\t", index=False, na_rep="n/a")
    measured = pd.DataFrame({"participant_id": participants, "ventricles_ml": measured_ml, "flags": "n/a"}).dropna()
    measured.to_csv(folder.with_suffix(".tsv"), sep="\t", index=False)
    return folder, folder.with_suffix(".tsv")


def make_labelled(folder, participants):
    """Write a folder as SPADE fusion does, with label maps. The last participant is stored from left to right."""
    for participant in participants:
        anat = folder / participant / "anat"
        anat.mkdir(parents=True)
        axes = "LAS" if participant == participants[-1] else "RAS"
        nib.save(stored_as(phantom(), axes), anat / f"{participant}_T1w.nii.gz")
        nib.save(stored_as(label_phantom(), axes), anat / f"{participant}_dseg.nii.gz")
        (anat / f"{participant}_T1w.json").write_text(json.dumps({"LabelMap": "a", "LabelTable": "freesurfer", "Variant": 0}))
    table = pd.DataFrame(
        {"participant_id": participants, "source_participant_id": "sub-01", "variant": range(len(participants))}
    )
    table.to_csv(folder / "participants.tsv", sep="\t", index=False)
    (folder / "dseg.tsv").write_text("index\tname\n0\tbackground\n17\tleft hippocampus\n53\tright hippocampus\n")
    return folder


def write_section(folder, name="a", **changes):
    """Write a section as evaluations do, with a figure."""
    folder.mkdir(parents=True, exist_ok=True)
    from PIL import Image

    Image.new("L", (3, 2)).save(folder / "plot.png")
    tables = [{"header": ["set", "FID"], "rows": [["real & real", "0.1"]]}]
    section = {"title": "Table <1>", "text": "One.\n\nTwo <b>.", "tables": tables}
    section |= {"figures": [{"file": "plot.png", "caption": "A <plot>"}]} | changes
    (folder / f"{name}.section.json").write_text(json.dumps(section))
    return folder
