"""A label model that trains in seconds: heads of the table "demo" in 20 x 28 x 20 voxels, whose sides differ."""

from pathlib import Path

import nibabel as nib
import numpy as np
import tiny
from monai.bundle import run

from brain_ldm_bundle.scripts.data.label_maps import CountedClasses, chosen_table
from brain_ldm_bundle.scripts.shared import mni_box
from brain_ldm_bundle.scripts.shared.files import read_json

TABLES = tiny.BUNDLE / "configs" / "label_tables.json"
TABLE = chosen_table(TABLES, "demo")
SUMS = read_json(TABLES)["_volumes"]
COUNTED = CountedClasses.of(TABLE, SUMS)
VOXEL_ML = tiny.SPACING_MM**3 / 1000
CONFIGS = "['configs/train.json','configs/labels.json']"


def head(ventricle_mm: float = 22.0, brain: float = 0.8) -> np.ndarray:
    """Label values (20, 28, 20) in RAS order on the model's grid. The left ventricle is larger, and lies further back."""
    affine = mni_box.affine(tiny.SPACING_MM, "RAS")
    x, y, z = np.moveaxis(nib.affines.apply_affine(affine, np.indices((20, 28, 20)).transpose(1, 2, 3, 0)), 3, 0)
    radius = np.sqrt((x / 70) ** 2 + ((y + 15) / 95) ** 2 + ((z - 10) / 68) ** 2)
    left = x < 0
    values = np.where(radius < 1, 17, 0)
    values[radius < 0.95] = 16
    values[radius < 0.9] = 1
    values = np.where(radius < brain, np.where(left, 2, 3), values)
    values = np.where(radius < brain - 0.2, np.where(left, 4, 5), values)
    values[(radius < brain) & (z < -25) & (y < -20)] = 11
    values[(abs(x) < 13) & (abs(y + 20) < 13) & (z < -10) & (radius < 0.9)] = 15
    for value, centre, size_mm in ((6, (-22, -25, 12), ventricle_mm), (7, (22, -5, 20), 0.8 * ventricle_mm)):
        distance = sum((a - b) ** 2 for a, b in zip((x, y / 1.6, z), (centre[0], centre[1] / 1.6, centre[2])))
        values[distance < size_mm**2] = value
    return values.astype(np.uint8)


def volumes_of(values: np.ndarray) -> dict[str, float]:
    """Volumes that are counted in label values."""
    return COUNTED.count_ml(np.bincount(TABLE.classes(values, "head").ravel(), minlength=TABLE.num_classes), VOXEL_ML)


def write_dataset(folder: Path, training: int = 4, validation: int = 2, orientation: str = "LIA") -> Path:
    """A BIDS data set of label maps in `derivatives`, whose volumes are counted in the maps."""
    rng = np.random.default_rng(0)
    rows = ["participant_id\tage\tsex\tventricles_ml\tbrain_normalised_ml\tsplit"]
    affine = mni_box.affine(tiny.SPACING_MM, "RAS")
    wanted = nib.orientations.axcodes2ornt(orientation)
    for number in range(training + validation):
        values, name = head(rng.uniform(18, 26), rng.uniform(0.75, 0.85)), f"sub-{number + 1:04d}"
        image = nib.Nifti1Image(values, affine)
        image = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(affine), wanted))
        image.set_sform(image.affine, code="mni")
        path = folder / "derivatives" / "blobs" / name / "anat" / f"{name}_dseg.nii.gz"
        path.parent.mkdir(parents=True)
        nib.save(image, path)
        counted = volumes_of(values)
        split = "train" if number < training else "validation"
        sizes = f"{counted['ventricles_ml']:.2f}\t{counted['brain_normalised_ml']:.1f}"
        rows.append(f"{name}\t{rng.uniform(45, 80):.1f}\t{'FM'[number % 2]}\t{sizes}\t{split}")
    (folder / "participants.tsv").write_text("\n".join(rows) + "\n")
    (folder / "dataset_description.json").write_text('{"Name": "blobs", "BIDSVersion": "1.9.0"}')
    return folder


def train(dataset_dir: Path, folder: Path, run_id: str = "training", **settings) -> Path:
    """Train in this process, in the `bundle` fixture; the folder of the weights comes back."""
    sizes = tiny.SETTINGS | {"label_table": "demo"}
    run(
        run_id,
        config_file=["configs/train.json", "configs/labels.json"],
        **tiny.places(dataset_dir, folder),
        **sizes | settings,
    )
    return folder / "models"
