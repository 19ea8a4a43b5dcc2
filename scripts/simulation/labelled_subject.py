"""A T1w head painted on a FreeSurfer or SynthSeg label map: the anatomy is the map's, the contrast is simulated."""

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from simulation.acquisition import acquire, smooth_field
from simulation.atlas import sample_grid
from simulation.subject import CORNER_MM, FIELD_OF_VIEW_MM, random_warp, voxel_centres_mm


@dataclass(frozen=True)
class Tissue:
    """Label values of a tissue, and its T1w signal out of 255: mean with its spread over scans, texture with its."""

    values: tuple[int, ...]
    mean: float
    mean_sd: float
    texture: float
    texture_sd: float


# Signals: SynthSeg's T1w priors (github.com/BBillot/SynthSeg, data/labels_classes_priors, prior_means_t1.npy and
# prior_stds_t1.npy, Apache-2.0; Billot et al. 2023, Med. Image Anal. 86:102789), rounded, but for the background,
# which is air here. Values above 499 and below 1000 are SynthSeg's own, outside the brain. The values of choroid plexus
# (31, 63), white-matter hypointensities (77-79), chiasm, corpus callosum (251-255) and cortical parcels are FreeSurfer's.
TISSUES = {
    "background": Tissue((0,), 2, 1, 2, 1),
    "CSF": Tissue((4, 5, 14, 15, 24, 43, 44, 72), 44.4, 11.2, 25.6, 9.8),
    "choroid plexus": Tissue((31, 63, 136, 137, 163, 164), 59.6, 10.4, 23.7, 11.1),
    "vessel": Tissue((30, 62), 86.8, 17.5, 17.2, 8.5),
    "cerebral white matter": Tissue((2, 41, 85, *range(251, 256)), 160.3, 21.7, 15.6, 5.5),
    "cerebral cortex": Tissue((3, 42, *range(1000, 1036), *range(2000, 2036)), 96.3, 12.2, 18.9, 6.3),
    "caudate, accumbens, hippocampus, amygdala": Tissue((11, 17, 18, 26, 50, 53, 54, 58), 96.3, 12.2, 18.9, 6.3),
    "thalamus": Tissue((10, 49), 129.5, 17.7, 19.6, 7.8),
    "putamen": Tissue((12, 51), 124.1, 15.7, 13.8, 7.1),
    "pallidum": Tissue((13, 52), 151.8, 19.5, 8.6, 4.1),
    "ventral diencephalon": Tissue((28, 60), 142.5, 16.1, 21.1, 7.0),
    "lesion": Tissue((25, 57, 77, 78, 79), 116.1, 14.8, 19.5, 7.2),
    "brain stem": Tissue((16,), 129.8, 12.2, 17.5, 6.8),
    "cerebellar cortex": Tissue((8, 47), 88.2, 10.6, 17.1, 5.5),
    "cerebellar white matter": Tissue((7, 46), 136.0, 13.4, 15.3, 5.7),
    "soft tissue, other": Tissue((502,), 126.4, 24.8, 84.0, 49.4),
    "eye": Tissue((506,), 18.1, 3.8, 13.9, 7.4),
    "soft tissue 507": Tissue((507,), 93.9, 9.1, 48.6, 12.6),
    "soft tissue 508": Tissue((508,), 117.1, 11.7, 64.8, 28.5),
    "soft tissue 509": Tissue((509,), 69.9, 9.2, 25.5, 13.1),
    "soft tissue 511": Tissue((511,), 113.7, 12.4, 74.9, 20.5),
    "soft tissue 512": Tissue((512,), 68.2, 11.1, 35.9, 18.4),
    "soft tissue 514": Tissue((514,), 48.4, 8.6, 19.9, 9.0),
    "skull": Tissue((515,), 30.2, 6.9, 22.0, 11.6),
    "marrow": Tissue((516,), 94.2, 18.3, 43.3, 20.1),
    "soft tissue 530": Tissue((530,), 144.5, 16.3, 44.7, 26.2),
}
LABELS = {value: name for name, tissue in TISSUES.items() for value in tissue.values}
INTRACRANIAL = tuple(value for value in LABELS if value and not 500 <= value < 1000)
BRAIN = tuple(value for value in INTRACRANIAL if LABELS[value] not in ("CSF", "choroid plexus", "vessel"))
VOLUMES = {"ventricles_ml": (4, 5, 43, 44), "brain_ml": BRAIN, "icv_ml": INTRACRANIAL}

# Centres of deep structures in MNI space: label on the left and on the right, and (x, y, z) mm of the right one.
# Rounded by hand, good to 2 mm or so, which is enough to place a map in the box.
DEEP_CENTRES_MM = {
    (10, 49): (11, -19, 7),
    (11, 50): (13, 9, 10),
    (12, 51): (26, 2, 1),
    (13, 52): (20, -4, -1),
    (17, 53): (26, -22, -13),
    (18, 54): (24, -4, -19),
    (26, 58): (9, 11, -7),
}


def read_label_map(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Label map (int16, any orientation) and its affine, voxel to mm.

    Raises:
        ValueError: a value that is in no tissue of TISSUES.
    """
    image = nib.load(path)
    labels = np.rint(np.asarray(image.dataobj)).astype(np.int16)
    unknown = sorted(set(np.unique(labels).tolist()) - LABELS.keys())
    if labels.ndim != 3 or unknown:
        problem = f"label values {unknown[:10]} are not known" if labels.ndim == 3 else f"shape {labels.shape} is not 3-D"
        raise ValueError(f"{path}: {problem}. Give FreeSurfer aseg / aparc+aseg or SynthSeg label maps.")
    return labels, image.affine


def rigid_to_mni(labels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Rigid matrix (4, 4), the map's mm to MNI mm, that brings its deep structures to DEEP_CENTRES_MM; size is kept."""
    found, wanted = [], []
    for pair, (x, y, z) in DEEP_CENTRES_MM.items():
        for value, sign in zip(pair, (-1, 1), strict=True):
            voxels = np.argwhere(labels == value)
            if len(voxels) > 20:
                found.append(nib.affines.apply_affine(affine, voxels.mean(0)))
                wanted.append((sign * x, y, z))
    if len(found) < 6:
        raise ValueError(f"only {len(found)} of 14 deep grey structures found, 6 are needed to place the map in MNI space")
    found, wanted = np.array(found), np.array(wanted, float)
    rotation = Rotation.align_vectors(wanted - wanted.mean(0), found - found.mean(0))[0].as_matrix()
    return nib.affines.from_matvec(rotation, wanted.mean(0) - rotation @ found.mean(0))


@torch.no_grad()
def make_subject(path: Path, spacing_mm: int, seed: int, warp: bool) -> tuple[np.ndarray, np.ndarray]:
    """T1w (float32, 0 to 1) and the map's own labels (int16) on the project's box, RAS order, MNI space.

    `warp` deforms the anatomy smoothly, by some millimetres, for a second subject from the same map.
    """
    labels, affine = read_label_map(path)
    try:
        to_voxels = np.linalg.inv(rigid_to_mni(labels, affine) @ affine)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    generator = torch.Generator().manual_seed(seed)
    points_mm = voxel_centres_mm(FIELD_OF_VIEW_MM, 1)
    if warp:
        points_mm += sample_grid(random_warp(generator), points_mm, CORNER_MM + 2, 4)
    matrix, shift = torch.from_numpy(to_voxels[:3, :3]).float(), torch.from_numpy(to_voxels[:3, 3:]).float()
    voxels = (matrix @ points_mm.flatten(1) + shift).round().long()  # nearest neighbour
    size = torch.tensor(labels.shape)[:, None]
    outside = ((voxels < 0) | (voxels >= size)).any(0)
    i, j, k = voxels.clamp(min=torch.zeros_like(size), max=size - 1)
    resampled = torch.from_numpy(labels)[i, j, k].masked_fill(outside, 0).reshape(FIELD_OF_VIEW_MM)

    image = paint(resampled, generator)
    if spacing_mm > 1:
        image = F.avg_pool3d(image[None, None], spacing_mm)[0, 0]
        resampled = _most_frequent(resampled, spacing_mm)
    return image.numpy(), resampled.numpy()


def paint(labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Simulated T1w, 0 to 1, of a label map (X, Y, Z) at 1 mm, blurred over the borders as a scanner does."""
    mean, texture = torch.zeros(max(LABELS) + 1), torch.zeros(max(LABELS) + 1)
    for tissue in TISSUES.values():
        a, b = 0.6 * torch.randn(2, generator=generator)  # 0.6: closer to the typical T1w than SynthSeg's training
        mean[list(tissue.values)] = max(tissue.mean + tissue.mean_sd * float(a), 0) / 255
        texture[list(tissue.values)] = max(tissue.texture + tissue.texture_sd * float(b), 1) / 255
    pattern = 0.45 * torch.randn(labels.shape, generator=generator)
    for share, scale_mm in [(0.75, 4.0), (0.40, 14.0)]:
        pattern += share * smooth_field(generator, labels.shape, 1, scale_mm)[0]
    values = labels.long()
    signal = gaussian_filter((mean[values] + 0.4 * texture[values] * pattern).numpy(), 0.65)
    return acquire(torch.from_numpy(signal), torch.isin(labels, torch.tensor(BRAIN)), 1, generator)


def _most_frequent(labels, factor):
    """The most frequent value in each cube of `factor` voxels a side."""
    best, count = torch.zeros(()), torch.zeros([size // factor for size in labels.shape])
    for value in labels.unique():
        share = F.avg_pool3d((labels == value)[None, None].float(), factor)[0, 0]
        best, count = torch.where(share > count, value, best), torch.maximum(share, count)
    return best.to(torch.int16)
