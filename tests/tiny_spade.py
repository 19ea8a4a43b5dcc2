"""SPADE fusion that trains in seconds: heads of blobs in 4 mm voxels, padded to 32 x 64 x 96, networks of two channels."""

from pathlib import Path

import nibabel as nib
import numpy as np
from conftest import ROOT
from monai.bundle import run
from tiny import places

BUNDLE = ROOT / "spade_fusion_bundle"
SPACING_MM = 4.0
SIZES = {"ngf": 2, "hidden": 4, "fusion_channels": 4, "fusion_layers": 2}
SETTINGS = SIZES | {
    "spacing_mm": SPACING_MM,
    "label_table": "demo",
    "use_device": "cpu",
    "num_workers": 0,
    "ndf": 2,
    "spade_epochs": 1,
    "spade_decay_epochs": 0,
    "spade_batch_size": 4,
    "slices_per_volume": 2,
    "batch_norm_batches": 2,
    "fusion_epochs": 1,
    "fusion_visits": 1,
    "fusion_batch_size": 2,
    "patches_per_volume": 2,
    "patch_size": 16,
}

# Right, front, top: three sides, none a multiple of 32. Files hold other orders of the same.
SHAPE = (40, 56, 72)
ORIENTATIONS = ("LIA", "LAS", "RAS")
# Grey value of each label value of the table "demo" that all heads have.
GREY = {0: 2, 2: 90, 3: 90, 4: 150, 5: 150, 6: 25, 7: 25, 9: 110, 10: 110, 17: 200}
# The head of each participant holds one value that no other has, in every slice of every plane: it shows who was seen.
MARKS = (1, 8, 11, 13, 15, 16)
SPLITS = ("train", "train", "train", "fusion", "fusion", "validation")


def label_map(mark: int, size: float = 1.0) -> np.ndarray:
    """Values (40, 56, 72) to the right, front and top; no two directions alike, and no two sides."""
    x, y, z = np.indices(SHAPE) - np.array(SHAPE).reshape(3, 1, 1, 1) / 2 + 0.5
    radius = np.sqrt((x / 13) ** 2 + (y / 25) ** 2 + (z / 33) ** 2) / size
    left = x < 0
    values = np.where(radius < 1, 17, 0)
    values[radius < 0.85] = np.where(left, 2, 3)[radius < 0.85]
    values[radius < 0.65] = np.where(left, 4, 5)[radius < 0.65]
    values[(np.abs(x + 3) < 2) & (np.abs(y - 4) < 6) & (np.abs(z - 3) < 4)] = 6
    values[(np.abs(x - 3) < 2) & (np.abs(y - 4) < 6) & (np.abs(z - 3) < 6)] = 7
    values[(np.abs(x - 6) < 2) & (np.abs(y - 8) < 4) & (np.abs(z - 10) < 3)] = 10
    values[(np.abs(x + 6) < 2) & (np.abs(y - 8) < 2) & (np.abs(z - 10) < 3)] = 9
    rods = sum((np.abs(a) < 1).astype(int) for a in (x, y, z)) >= 2
    values[rods & (radius < 1)] = mark
    return values.astype(np.uint8)


def write_dataset(folder: Path, splits: tuple[str, ...] = SPLITS) -> Path:
    """A BIDS data set of such heads and their label maps, in three orientations; participants.tsv names the split."""
    rng = np.random.default_rng(0)
    rows = ["participant_id\tsplit"]
    affine = np.diag([SPACING_MM] * 3 + [1.0])
    affine[:3, 3] = -SPACING_MM * np.array(SHAPE) / 2
    for number, split in enumerate(splits):
        name = f"sub-{number + 1:02d}"
        values = label_map(MARKS[number], size=(1.0, 0.9, 0.95)[number % 3])
        grey = np.array([GREY.get(value, 60 + 5 * value) for value in range(18)])[values]
        image = np.clip(grey + rng.normal(0, 3, SHAPE), 0, 255).astype(np.float32)
        for array, path in (
            (image, folder / name / "anat" / f"{name}_T1w.nii.gz"),
            (values, folder / "derivatives" / "blobs" / name / "anat" / f"{name}_dseg.nii.gz"),
        ):
            path.parent.mkdir(parents=True)
            nifti = nib.Nifti1Image(array, affine)
            wanted = nib.orientations.axcodes2ornt(ORIENTATIONS[number % len(ORIENTATIONS)])
            nifti = nifti.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(affine), wanted))
            nifti.set_sform(nifti.affine, code="scanner")
            nib.save(nifti, path)
        rows.append(f"{name}\t{split}")
    (folder / "participants.tsv").write_text("\n".join(rows) + "\n")
    (folder / "dataset_description.json").write_text('{"Name": "blobs", "BIDSVersion": "1.9.0"}')
    return folder


def train(dataset_dir: Path, folder: Path, run_id: str = "training", **settings) -> Path:
    """Train in this process, in the `spade_bundle` fixture; gives the folder of the weights."""
    run(run_id, config_file="configs/train.json", **places(dataset_dir, folder), **SETTINGS | settings)
    return folder / "models"
