"""Simulate a T1w head from a FreeSurfer or SynthSeg label map. The map gives the anatomy, and the contrast is simulated."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from measurement.label_values import read_label_names, read_label_values, read_volume_labels
from registration.deep_grey import rigid_to_mni
from scipy.ndimage import gaussian_filter, map_coordinates
from shared.label_files import by_names, read_labels
from shared.mni_box import FIELD_OF_VIEW_MM
from shared.nifti import named

from simulation.acquisition import PROTOCOLS, acquire, smooth_field
from simulation.subject import deform, voxel_centres_mm

# T1w signal of each tissue, from 0 to 255: its mean, the spread of the mean between scans, its texture, and the spread of the
# texture. The source is SynthSeg's T1w priors, rounded (github.com/BBillot/SynthSeg, data/labels_classes_priors,
# prior_means_t1.npy and prior_stds_t1.npy, Apache-2.0; Billot et al. 2023, Med. Image Anal. 86:102789). The background differs:
# here it is air.
SIGNALS = {
    "background": (2, 1, 2, 1),
    "CSF": (44.4, 11.2, 25.6, 9.8),
    "choroid plexus": (59.6, 10.4, 23.7, 11.1),
    "vessel": (86.8, 17.5, 17.2, 8.5),
    "cerebral white matter": (160.3, 21.7, 15.6, 5.5),
    "cerebral cortex": (96.3, 12.2, 18.9, 6.3),
    "caudate, accumbens, hippocampus, amygdala": (96.3, 12.2, 18.9, 6.3),
    "thalamus": (129.5, 17.7, 19.6, 7.8),
    "putamen": (124.1, 15.7, 13.8, 7.1),
    "pallidum": (151.8, 19.5, 8.6, 4.1),
    "ventral diencephalon": (142.5, 16.1, 21.1, 7.0),
    "lesion": (116.1, 14.8, 19.5, 7.2),
    "brain stem": (129.8, 12.2, 17.5, 6.8),
    "cerebellar cortex": (88.2, 10.6, 17.1, 5.5),
    "cerebellar white matter": (136.0, 13.4, 15.3, 5.7),
    "soft tissue 502": (126.4, 24.8, 84.0, 49.4),
    "eye": (18.1, 3.8, 13.9, 7.4),
    "soft tissue 507": (93.9, 9.1, 48.6, 12.6),
    "soft tissue 508": (117.1, 11.7, 64.8, 28.5),
    "soft tissue 509": (69.9, 9.2, 25.5, 13.1),
    "soft tissue 511": (113.7, 12.4, 74.9, 20.5),
    "soft tissue 512": (68.2, 11.1, 35.9, 18.4),
    "soft tissue 514": (48.4, 8.6, 19.9, 9.0),
    "skull": (30.2, 6.9, 22.0, 11.6),
    "marrow": (94.2, 18.3, 43.3, 20.1),
    "soft tissue 530": (144.5, 16.3, 44.7, 26.2),
}
# Classes of the label table that have the signal of a tissue with another name.
TISSUE_OF_CLASS = {
    "lateral ventricle": "CSF",
    "third, fourth and fifth ventricle": "CSF",
    "optic chiasm": "cerebral white matter",
    **dict.fromkeys(("caudate", "accumbens", "hippocampus", "amygdala"), "caudate, accumbens, hippocampus, amygdala"),
}
LABELS = {value: TISSUE_OF_CLASS.get(name, name) for name, values in read_label_values().items() for value in sorted(values)}
VOLUMES = {name: tuple(sorted(values)) for name, values in read_volume_labels().items()}


def read_label_map(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a label map in any orientation as int16, and the affine from its voxels to MNI space in mm.

    Raises:
        ValueError: values are not in the label table, or the map shows too little of a brain to place it.
    """
    with named(path):
        labels, image = read_labels(path)
        labels = by_names(labels, path, read_label_names("freesurfer"), "freesurfer")
        if unknown := sorted(set(np.unique(labels).tolist()) - LABELS.keys()):
            raise ValueError(
                f"label values {unknown[:10]} are not known. Give FreeSurfer aseg / aparc+aseg or SynthSeg label maps"
            )
        return labels.astype(np.int16), rigid_to_mni(labels, image.affine) @ image.affine


@torch.no_grad()
def make_subject(path: Path, spacing_mm: int, seed: int, warp: bool, protocol: str = "many") -> tuple[np.ndarray, np.ndarray]:
    """Make a T1w (float32, 0 to 1) and its labels (int16) from a label map, on the project's box in RAS order and MNI space.

    `warp` deforms the anatomy smoothly by a few millimetres, to make another subject from the same map. `protocol` is a key of
    `acquisition.PROTOCOLS`.
    """
    labels, to_mni = read_label_map(path)
    to_voxels = np.linalg.inv(to_mni)
    generator = torch.Generator().manual_seed(seed)
    points_mm = voxel_centres_mm(FIELD_OF_VIEW_MM, 1)
    if warp:
        points_mm += deform(points_mm, generator)
    matrix, shift = torch.from_numpy(to_voxels[:3, :3]).float(), torch.from_numpy(to_voxels[:3, 3:]).float()
    voxels = (matrix @ points_mm.flatten(1) + shift).round().reshape(3, *FIELD_OF_VIEW_MM)  # nearest neighbour
    resampled = torch.from_numpy(map_coordinates(labels, voxels.numpy(), order=0, mode="grid-constant"))  # 0 outside the map

    image = paint(resampled, generator, protocol)
    if spacing_mm > 1:
        image = F.avg_pool3d(image[None, None], spacing_mm)[0, 0]
        resampled = _most_frequent(resampled, spacing_mm)
    return image.numpy(), resampled.numpy()


def paint(labels: torch.Tensor, generator: torch.Generator, protocol: str = "many") -> torch.Tensor:
    """Simulate a T1w in [0, 1] from a label map (X, Y, Z) at 1 mm. Its borders are as blurred as in a scan."""
    mean, texture = torch.zeros(max(LABELS) + 1), torch.zeros(max(LABELS) + 1)
    for tissue, (mean_mean, mean_sd, texture_mean, texture_sd) in SIGNALS.items():
        values = [value for value, name in LABELS.items() if name == tissue]
        # 0.6 gives less variation between scans than SynthSeg's training.
        a, b = 0.6 * PROTOCOLS[protocol].contrast * torch.randn(2, generator=generator)
        mean[values] = max(mean_mean + mean_sd * float(a), 0) / 255
        texture[values] = max(texture_mean + texture_sd * float(b), 1) / 255
    pattern = 0.45 * torch.randn(labels.shape, generator=generator)
    for share, scale_mm in [(0.75, 4.0), (0.40, 14.0)]:
        pattern += share * smooth_field(generator, labels.shape, 1, scale_mm)[0]
    values = labels.long()
    signal = gaussian_filter((mean[values] + 0.4 * texture[values] * pattern).numpy(), 0.65)
    return acquire(torch.from_numpy(signal), torch.isin(labels, torch.tensor(VOLUMES["brain_ml"])), 1, generator, protocol)


def _most_frequent(labels, factor):
    """Return the most frequent value in each cube of `factor` voxels per side."""
    best, count = torch.zeros(()), torch.zeros([size // factor for size in labels.shape])
    for value in labels.unique():
        share = F.avg_pool3d((labels == value)[None, None].float(), factor)[0, 0]
        best, count = torch.where(share > count, value, best), torch.maximum(share, count)
    return best.to(torch.int16)
