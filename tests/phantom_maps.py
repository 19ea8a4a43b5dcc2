"""Label maps of the table "demo" on various grids."""

import nibabel as nib
import numpy as np
from conftest import ROOT

from spade_fusion_bundle.scripts.shared.label_table import LabelTable

TABLE = LabelTable.from_file(ROOT / "spade_fusion_bundle" / "configs" / "labels.json", "demo")
OBLIQUE = nib.eulerangles.euler2mat(0.3, -0.2, 0.15)

# Voxel axes to RAS; odd, different sides throughout.
GRIDS = {
    "RAS": (np.eye(3), (37, 45, 29)),
    "LIA": (np.array([[-1, 0, 0], [0, 0, 1], [0, -1, 0]]), (37, 29, 45)),
    "LAS": (np.diag([-1, 1, 1]), (37, 45, 29)),
    "PSR": (np.array([[0, 0, 1], [-1, 0, 0], [0, 1, 0]]), (45, 29, 37)),
    "oblique LIA": (OBLIQUE @ np.array([[-1, 0, 0], [0, 0, 1], [0, -1, 0]]), (37, 29, 45)),
    "61x47x53": (np.diag([-1, 1, 1]), (61, 47, 53)),
}


def grid(name, spacing_mm=(1, 1, 1)):
    axes, shape = GRIDS[name]
    return nib.affines.from_matvec(axes @ np.diag(spacing_mm), (21.5, -33.25, 8.125)), shape


def phantom(shape):
    """Values of the table "demo" in boxes that no flip or rotation maps onto themselves; background around."""
    labels = np.zeros(shape, np.uint8)
    inner = [slice(3 + axis, n - 5 + axis) for axis, n in enumerate(shape)]
    box = labels[tuple(inner)]
    box[...] = np.arange(box.size).reshape(box.shape) % 7 + 1
    box[: box.shape[0] // 2, : box.shape[1] // 3] = 9
    box[-4:, :, : box.shape[2] // 4] = 16
    box[2:4, 2:7, 2:5] = 0  # background inside, too
    return labels


def save_map(path, labels, affine, code=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(labels, affine)
    image.set_sform(affine, code)
    image.set_qform(affine, code)
    nib.save(image, path)
    return path
