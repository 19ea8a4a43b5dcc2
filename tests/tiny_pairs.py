"""Pairs of scan and label map of 5 x 6 x 7 voxels, and what `read_dataset` makes of a folder of them."""

import zlib

import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT

from spade_fusion_bundle.scripts.data.scans_and_maps import read_dataset
from spade_fusion_bundle.scripts.shared.label_table import LabelTable

TABLES = ROOT / "spade_fusion_bundle" / "configs" / "labels.json"
TABLE = LabelTable.from_file(TABLES, "freesurfer")
AFFINE = np.array([[-1.0, 0, 0, 5], [0, 0, 1.2, 6], [0, -0.9, 0, 7], [0, 0, 0, 1]])  # LIA
SCAN = np.sort(np.random.default_rng(0).random((5, 6, 7), dtype=np.float32), axis=0)  # random alone would be noise
MAP = np.random.default_rng(1).choice(np.array([0, 2, 3, 41, 42, 515, 4, 7, 8, 10, 11, 12, 16, 17], np.int16), (5, 6, 7))
LABELS = "derivatives/synthseg"
SCAN_5 = "sub-05/anat/sub-05_T1w.nii.gz"
MAP_5 = f"{LABELS}/sub-05/anat/sub-05_dseg.nii.gz"


def with_voxel(volume, value):
    volume = volume.copy()
    volume[3, 4, 5] = value
    return volume


def save(path, volume=SCAN, affine=AFFINE, code=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(volume, affine)
    image.set_sform(affine, code)
    image.set_qform(affine if code else None, code)
    nib.save(image, path)
    return path


def add(folder, name, labels=LABELS):
    """A scan and its map; `name` such as "sub-01/ses-1/anat/sub-01_ses-1"."""
    save(folder / f"{name}_T1w.nii.gz", SCAN + zlib.crc32(name.encode()) % 1000)  # nobody's scan is another's
    save(folder / labels / f"{name}_dseg.nii.gz", MAP)


def read(folder, **options):
    return read_dataset(folder, TABLE, **options)


def refusal(folder, **options):
    with pytest.raises(ValueError) as error:
        read(folder, **options)
    return str(error.value)


def names(items):
    return {item["participant_id"] for item in items}


def pairs(shares):
    return {item["image"]: item["label"] for items in shares.values() for item in items}


def write_table(folder, cells, header="participant_id\tage\tsplit", newline="\n"):
    """Cells of the column split by number of participant; the others are in training."""
    rows = [f"sub-{number:02}\t60\t{cells.get(number, 'train')}" for number in range(12, 0, -1)]
    path = folder / "participants.tsv"
    path.write_text(newline.join([header, *rows]) + newline, encoding="utf-8")
    return path


def entry(number, **more):
    name = f"sub-{number:02}/anat/sub-{number:02}"
    return {"image": f"{name}_T1w.nii.gz", "label": f"{LABELS}/{name}_dseg.nii.gz", **more}
