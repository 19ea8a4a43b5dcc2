"""The network of measure_volumes.py. It labels a T1w volume in MNI space, and its probabilities sum to volumes in mL."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from ldm.data.contrast import fluid_brighter_than_white_matter
from monai.data import MetaTensor
from monai.networks.nets import UNet
from monai.transforms import SpatialResample
from monai.transforms.utils import get_largest_connected_component_mask
from scipy import ndimage
from shared import mni_box
from shared.nifti import grey_values, named, read_volume, refuse_noise
from shared.weights import load_weights

SPACING_MM = 2
SHAPE = mni_box.size(SPACING_MM)  # (80, 112, 80)
VOXEL_ML = SPACING_MM**3 / 1000
CLASSES = ("other", "csf", "grey", "white", "ventricles")  # CSF without the lateral ventricles
MOST_AROUND = 0.45  # mean outside of the skull in units of white matter: 0.15 to 0.3 in heads, more in inverted scans; chosen
MOST_ZEROS = 0.05  # share of voxels that are exactly 0 in a volume with negative values; about 0 without a mask; chosen
BRAIN_EXTENT_MM = ((-65, 65), (-98, 66), (-45, 74))  # MNI space; a volume must hold nearly all of it


def build_network() -> UNet:
    """Return the untrained network. It maps intensities (B, 1, 80, 112, 80) in [0, 1] to logits (B, 5, ...) of CLASSES."""
    return UNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=len(CLASSES),
        channels=(12, 24, 48, 96),
        strides=(2, 2, 2),
        num_res_units=1,
        norm=("instance", {"affine": True}),
    )


def load_network(weights: Path) -> UNet:
    """Return the trained network, ready to measure."""
    if not weights.exists():
        raise FileNotFoundError(f"{weights}: no such file. Train it first: python scripts/train_volume_net.py --help")
    network = build_network()
    return load_weights(network, weights).eval().to(memory_format=torch.channels_last_3d)  # saves a third of the time on a CPU


def from_black(values: np.ndarray) -> np.ndarray:
    """Shift a z-scored volume so that its background is 0, as the network expects. Other volumes stay as they are."""
    low, high = np.percentile(values[::2, ::2], (1, 99.5))
    if low >= -0.1 * abs(high):
        return values
    if np.mean(values == 0) > MOST_ZEROS:
        raise ValueError(
            f"has a background of 0 and a first percentile of {low:.4g}, so tissue is darker than air. Normalise "
            "the whole volume, or give intensities from 0"
        )
    return values - np.float32(low)


def scale_intensity(image: torch.Tensor) -> torch.Tensor:
    """Scale a volume to [0, 1]: 0 stays 0, the 99.5th percentile becomes 1."""
    # Every third voxel is enough. NumPy's quantile is faster than PyTorch's, because it sorts only in part.
    high = float(np.quantile(image.flatten()[::3].numpy(), 0.995))
    return (image / max(high, 1e-6)).clamp(0, 1)


def read_on_grid(path: Path) -> torch.Tensor:
    """Read a T1w volume in MNI space as (80, 112, 80) at 2 mm in RAS order, with intensities in [0, 1].

    The file may have any orientation and voxels of 1 to 4 mm.

    Raises:
        ValueError: the volume cannot be measured. The message names the file.
    """
    image = read_volume(path)
    with named(path):
        values = from_black(grey_values(image).astype(np.float32))
        refuse_noise(values)
    spacing_mm = nib.affines.voxel_sizes(image.affine)
    if not ((0.45 < spacing_mm) & (spacing_mm < 4.5)).all():
        raise ValueError(f"{path}: voxels of {np.round(spacing_mm, 2).tolist()} mm, but only 1 to 4 mm can be measured")
    covered = fraction_of_brain_covered(image.affine, values.shape)
    if covered < 0.95:
        raise ValueError(
            f"{path}: its affine places only {covered:.0%} of the MNI brain inside the volume; "
            "register it to MNI space first (rigid, 6 degrees of freedom)"
        )

    return scale_intensity(on_grid(values, image.affine, SPACING_MM))


def on_grid(values: np.ndarray, affine: np.ndarray, spacing_mm: float) -> torch.Tensor:
    """Interpolate a float32 volume of any grid on the project's box, in RAS order. Outside of the volume it is 0."""
    # Finer volumes are interpolated at several points of each voxel and averaged, so that no voxel is skipped.
    points = int(np.ceil(spacing_mm / nib.affines.voxel_sizes(affine).min() - 0.01))
    volume = MetaTensor(torch.from_numpy(values)[None], affine=torch.from_numpy(affine))
    resample = SpatialResample(mode="bilinear", padding_mode="zeros", dtype=torch.float32)
    size = [n * points for n in mni_box.size(spacing_mm)]
    found = resample(volume, dst_affine=mni_box.affine(spacing_mm / points, "RAS"), spatial_size=size).as_tensor()
    return torch.nn.functional.avg_pool3d(found, points)[0]


def refuse_bright_surroundings(image: torch.Tensor, probabilities: torch.Tensor) -> None:
    """Refuse an inverted scan or another volume, in which the surroundings of the brain are about as bright as white matter.

    Args:
        image: intensities (80, 112, 80), as `read_on_grid` returns them.
        probabilities: probability of each of CLASSES in each voxel, shape (5, 80, 112, 80).
    """
    around, *_, white, _ = ((share * image).sum() / share.sum() for share in probabilities)
    if around > MOST_AROUND * white:
        raise ValueError(f"the surroundings are {around / white:.0%} as bright as white matter. Is it a T1w of a head?")


def refuse_bright_fluid(image: torch.Tensor) -> None:
    """Refuse a T2w or another volume whose ventricles are brighter than white matter, as `read_on_grid` returns it."""
    if found := fluid_brighter_than_white_matter(image.numpy(), mni_box.LOWER_CORNER_MM, SPACING_MM):
        raise ValueError(f"fluid is brighter than white matter ({found}), as in a T2w. Give a T1w in MNI space")


def fraction_of_brain_covered(affine: np.ndarray, shape: tuple[int, ...]) -> float:
    """Return the fraction of the MNI brain's bounding box that lies inside a volume."""
    points_mm = np.stack(np.meshgrid(*[np.linspace(low, high, 12) for low, high in BRAIN_EXTENT_MM])).reshape(3, -1)
    voxels = nib.affines.apply_affine(np.linalg.inv(affine), points_mm.T)
    return float(((voxels > -0.5) & (voxels < np.array(shape) - 0.5)).all(1).mean())


def volumes_ml(probabilities: torch.Tensor) -> dict[str, float]:
    """Sum probabilities to volumes in mL.

    For brain and intracranial volume, only the largest connected part of the intracranial space counts. For the lateral
    ventricles, only the two largest parts of that class and 4 mm around them count. Islands elsewhere are errors of the
    network.

    Args:
        probabilities: probability of each of CLASSES in each voxel, shape (5, 80, 112, 80).
    """
    labels = probabilities.max(0).indices.numpy()  # equals argmax, which takes 15 times as long along this axis
    inside = near_largest(labels > 0, 1)
    near_ventricles = near_largest(labels == CLASSES.index("ventricles"), 2)
    other, _, grey, white, ventricles = probabilities
    return {
        "ventricles_ml": float(ventricles[near_ventricles].sum()) * VOXEL_ML,
        "brain_ml": float((grey + white)[inside].sum()) * VOXEL_ML,
        "icv_ml": float((1 - other)[inside].sum()) * VOXEL_ML,
    }


def near_largest(mask: np.ndarray, parts: int) -> torch.Tensor:
    """Keep the `parts` largest connected parts of a mask, and the voxels within 2 of them."""
    largest = get_largest_connected_component_mask(mask, connectivity=1, num_components=parts)
    return torch.from_numpy(ndimage.binary_dilation(largest, iterations=2))
