"""Tiny folders of volumes, heads with a bright mark at the subject's left, and the report pages that they give."""

import json
import re
from html.parser import HTMLParser

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import report
from report_page import overview

SHAPE = (20, 28, 24)  # RAS: three different side lengths
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
AFFINE[:3, 3] = (-19.0, -27.0, -23.0)
CENTRE_MM = (1.0, 1.0, 1.0)
REQUESTED_ML = [40.0, 10.0, 30.0, 20.0, 60.0, 50.0]
MEASURED_ML = [42.0, 13.0, 30.0, 20.0, 61.0, 50.0]


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


def requested_cohort(folder):
    return make_cohort(folder, [f"sub-syn{i}" for i in range(6)], REQUESTED_ML, MEASURED_ML)


def page_of(generated, *arguments):
    """Write the page of a folder and its table, and return its text. Its picture has one row, because drawing is slow."""
    output = generated[0].parent / "report.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overview, "ROWS_IN_PICTURE", 1)
        report.main([str(generated[0]), "--measured", str(generated[1]), "--output", str(output), *map(str, arguments)])
    return output.read_text()


def cells(page, first):
    """The cells of the table row that begins with `first`."""
    row = re.search(rf"<tr><td[^>]*>{re.escape(first)}</td>(.*?)</tr>", page)
    return re.findall(r"<td[^>]*>(.*?)</td>", row[1]) if row else None


def without_scripts(page):
    return re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)


class Elements(HTMLParser):
    """Names and attributes of a page's elements, as a browser would see them."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def named(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


def give_sessions(folder, participant, **columns):
    """Give each session of a participant its own values."""
    saved(pd.DataFrame(columns), folder / participant / f"{participant}_sessions.tsv")


def saved(table, path):
    table.to_csv(path, sep="\t", index=False)
    return path
