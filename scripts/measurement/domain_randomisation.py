"""Draw T1w volumes with known volumes from label maps, to train the network of measure_volumes.py and to test it.

A label map is warped and scaled, its lateral ventricles grow or shrink, and its tissues get random intensities. The method
follows SynthSeg (Billot et al. 2023, Med. Image Anal. 86:102789).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from monai.networks.layers import GaussianFilter
from registration.deep_grey import rigid_to_mni
from scipy import ndimage
from scipy.spatial.transform import Rotation
from shared import mni_box
from shared.label_files import by_names, read_labels
from shared.nifti import named
from simulation.acquisition import smooth_field

from measurement.label_values import read_label_names, read_label_values
from measurement.volume_net import CLASSES, SHAPE, SPACING_MM, scale_intensity

# Each tissue has its class in CLASSES, its T1w intensity (white matter = 1), the spread of the intensity between scans, the
# texture inside a scan, and its classes in the label tables `freesurfer` and `demo` (see label_values.py). The numbers were
# chosen from typical MPRAGE contrasts.
TISSUES = {
    "background": ("other", 0.03, 0.02, 0.02, ("background",)),
    "csf": (
        *("csf", 0.24, 0.08, 0.08),
        ("CSF", "sulcal CSF", "third, fourth and fifth ventricle", "third and fourth ventricle", "vessel"),
    ),
    "ventricles": ("ventricles", 0.22, 0.07, 0.05, ("lateral ventricle",)),
    "choroid plexus": ("ventricles", 0.36, 0.08, 0.08, ("choroid plexus",)),
    "cortex": ("grey", 0.60, 0.07, 0.07, ("cerebral cortex",)),
    "deep grey": (
        *("grey", 0.70, 0.07, 0.06),
        ("caudate", "putamen", "accumbens", "hippocampus", "amygdala", "deep grey matter"),
    ),
    "thalamus": ("grey", 0.80, 0.07, 0.06, ("thalamus",)),
    "cerebellar cortex": ("grey", 0.57, 0.08, 0.07, ("cerebellar cortex",)),
    "white": ("white", 1.00, 0.05, 0.06, ("cerebral white matter", "optic chiasm")),
    "pallidum": ("white", 0.92, 0.06, 0.06, ("pallidum", "ventral diencephalon")),
    "lesion": ("white", 0.70, 0.08, 0.08, ("lesion",)),
    "cerebellar white": ("white", 0.88, 0.07, 0.07, ("cerebellar white matter",)),
    "brain stem": ("white", 0.82, 0.08, 0.07, ("brain stem",)),
    "skull": ("other", 0.18, 0.10, 0.12, ("skull",)),
    "dura": ("other", 0.32, 0.12, 0.12, ("soft tissue 514",)),
    "eyes": ("other", 0.15, 0.08, 0.10, ("eye",)),
    "scalp": ("other", 0.75, 0.28, 0.22, ("soft tissue 511", "scalp and face")),
    "muscle": ("other", 0.58, 0.15, 0.15, ("soft tissue 507",)),
    "marrow": ("other", 0.60, 0.20, 0.20, ("marrow",)),
    "other soft tissue": (
        *("other", 0.70, 0.25, 0.15),
        ("soft tissue 502", "soft tissue 508", "soft tissue 509", "soft tissue 512", "soft tissue 530"),
    ),
}
TISSUE_OF = {name: index for index, row in enumerate(TISSUES.values()) for name in row[4]}
CLASS_OF_TISSUE = torch.tensor([CLASSES.index(row[0]) for row in TISSUES.values()])
LARGEST_DEMO_LABEL = 17
FINE_SHAPE = mni_box.size(1)  # label maps are kept at 1 mm
GROWTH_REACH_MM = 40.0  # tissue farther than this from the ventricles does not move when they grow


@dataclass
class Anatomy:
    """One label map on the project's box.

    Attributes:
        tissue: index into TISSUES of each 1 mm voxel, uint8, shape (160, 224, 160).
        distance_mm: signed distance to the surface of the lateral ventricles, negative inside, shape (80, 112, 80) at 2 mm.
    """

    tissue: torch.Tensor
    distance_mm: torch.Tensor


def read_anatomy(path: Path) -> Anatomy:
    """Read a label map with FreeSurfer or SynthSeg values in any space, or with demo values in MNI space."""
    with named(path):
        labels, image = read_labels(path)
        table = "freesurfer" if labels.max() > LARGEST_DEMO_LABEL else "demo"
        labels = by_names(labels, path, read_label_names(table), table)
        tissue_of = {value: TISSUE_OF[name] for name, values in read_label_values(table).items() for value in values}
        if unknown := set(np.unique(labels).tolist()) - tissue_of.keys():
            raise ValueError(f"label values {sorted(unknown)} are not in the table {table} of labels.json")
        to_mni = rigid_to_mni(labels, image.affine) if table == "freesurfer" else np.eye(4)
    lookup = np.zeros(max(tissue_of) + 1, np.uint8)
    lookup[list(tissue_of)] = list(tissue_of.values())

    to_voxels = np.linalg.inv(to_mni @ image.affine) @ mni_box.affine(1, "RAS")
    on_box = ndimage.affine_transform(lookup[labels], to_voxels, output_shape=FINE_SHAPE, order=0, mode="nearest")
    tissue = torch.from_numpy(on_box)

    inside = (CLASS_OF_TISSUE[tissue.long()] == CLASSES.index("ventricles"))[::2, ::2, ::2].numpy()
    if inside.sum() < 100:
        raise ValueError(f"{path}: no lateral ventricles found in the box")
    outside_mm, inside_mm = (ndimage.distance_transform_edt(mask) * SPACING_MM for mask in (~inside, inside))
    # The surface lies half a voxel before the first voxel on the other side.
    distance = np.where(inside, SPACING_MM / 2 - inside_mm, outside_mm - SPACING_MM / 2)
    return Anatomy(tissue, torch.from_numpy(ndimage.gaussian_filter(distance, 0.5).astype(np.float32)))


def sample(volume: torch.Tensor, position_mm: torch.Tensor) -> torch.Tensor:
    """Interpolate a volume (C, 80, 112, 80) at positions (3, ...) in mm from the corner of the box."""
    size_mm = torch.tensor(SHAPE)[:, None, None, None] * SPACING_MM
    grid = (2 * position_mm / size_mm - 1).flip(0).movedim(0, -1)[None]
    return F.grid_sample(volume[None], grid, padding_mode="border", align_corners=False)[0]


def grow_ventricles(anatomy: Anatomy, position_mm: torch.Tensor, target_ml: float) -> torch.Tensor:
    """Move sampling positions so that the lateral ventricles fill `target_ml`. Tissue around them moves away."""
    distance = sample(anatomy.distance_mm[None], position_mm)[0]
    voxels = max(1, int(target_ml * 1000 / SPACING_MM**3))
    level = float(distance.flatten().kthvalue(voxels).values)
    level = min(max(level, -5.0), 15.0)  # beyond this the map's own anatomy is no longer recognisable
    squeezed = (distance - level) * GROWTH_REACH_MM / (GROWTH_REACH_MM - level)
    source = torch.where(distance < level, distance - level, squeezed)
    source = torch.where(distance > GROWTH_REACH_MM, distance, source)
    direction = torch.stack(torch.gradient(anatomy.distance_mm, spacing=SPACING_MM))
    return position_mm + sample(direction, position_mm) * (source - distance)


def draw_tissue(anatomy: Anatomy, rng: np.random.Generator) -> torch.Tensor:
    """Draw a subject from a map. Return tissue indices (4, 80, 112, 80) at four points inside each 2 mm voxel.

    The points are a tetrahedron of four of the voxel's eight 1 mm parts. They give the image and the target the same partial
    volume, at half the cost of all eight parts.
    """
    centre_mm = torch.stack(torch.meshgrid(*[torch.arange(n) * 2.0 + 1 for n in SHAPE], indexing="ij"))
    middle_mm = torch.tensor([80.0, 108.0, 70.0])[:, None, None, None]
    scale = np.exp(rng.normal(0, 0.04) + rng.normal(0, 0.02, 3))
    rotation = Rotation.from_euler("XYZ", rng.normal(0, 5, 3) * (1, -1, 1), degrees=True).as_matrix()
    matrix = torch.tensor(rotation / scale, dtype=torch.float32)
    shift_mm = torch.from_numpy(rng.normal(0, 3, 3).astype(np.float32))[:, None, None, None]
    position = torch.einsum("ij,jabc->iabc", matrix, centre_mm - middle_mm) + middle_mm + shift_mm
    position += 2.0 * smooth_field(rng, SHAPE, SPACING_MM, 50, 3) + 0.8 * smooth_field(rng, SHAPE, SPACING_MM, 25, 3)
    if rng.random() < 0.7:
        position = grow_ventricles(anatomy, position, float(np.exp(rng.uniform(np.log(5), np.log(170)))))

    points = []
    for corner in ((1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)):
        offset_mm = (matrix @ torch.tensor(corner, dtype=torch.float32) * 0.5)[:, None, None, None]
        i, j, k = ((axis.floor().long().clamp(0, n - 1)) for axis, n in zip(position + offset_mm, FINE_SHAPE, strict=True))
        points.append(anatomy.tissue.view(-1)[(i * FINE_SHAPE[1] + j) * FINE_SHAPE[2] + k])
    tissue = torch.stack(points)
    return tissue.flip(1) if rng.random() < 0.5 else tissue


def class_fractions(tissue: torch.Tensor) -> torch.Tensor:
    """Return the fraction of each class in each voxel, shape (5, 80, 112, 80). Fractions sum to 1."""
    classes = CLASS_OF_TISSUE[tissue.long()]
    return torch.stack([(classes == k).float().mean(0) for k in range(len(CLASSES))])


def draw_image(
    tissue: torch.Tensor, rng: np.random.Generator, ordinary: bool = False, native_mm: int | None = None
) -> torch.Tensor:
    """Paint tissue as an MR image (80, 112, 80) in 0 to 1.

    Args:
        tissue: tissue indices of `draw_tissue`, shape (4, 80, 112, 80).
        rng: random generator of the intensities.
        ordinary: True always draws a whole head with T1w contrast of usual quality, for tests. False also draws other contrasts
            (20 %), stripped skulls and blurred images.
        native_mm: voxel size before resampling to 2 mm, either 2 or 4. None draws it.
    """
    t1w = ordinary or rng.random() < 0.8
    native_mm = (4 if rng.random() < 0.45 else 2) if native_mm is None else native_mm

    _, mean, spread, texture, _ = zip(*TISSUES.values(), strict=True)
    if t1w:
        mean = rng.normal(mean, np.array(spread) * (1.0 if ordinary else 1.4)).clip(0)
        if rng.random() < 0.5:
            mean[2] = mean[1]  # ventricles as dark as the other CSF
    else:
        mean = rng.uniform(0, 1, len(TISSUES))
        mean[0] = rng.uniform(0, 0.05)
    texture = np.array(texture) * rng.uniform(0.2, 1.0)
    if not ordinary and rng.random() < 0.25:  # skull stripped
        outside = CLASS_OF_TISSUE.numpy() == 0
        mean[outside], texture[outside] = 0, 0

    mean, texture = (torch.tensor(values, dtype=torch.float32) for values in (mean, texture))
    image = mean[tissue.long()].mean(0)
    grain = torch.from_numpy(rng.standard_normal(SHAPE, dtype=np.float32))
    grain = 0.5 * grain + 0.5 * smooth_field(rng, SHAPE, SPACING_MM, 6)[0] + 0.4 * smooth_field(rng, SHAPE, SPACING_MM, 16)[0]
    image = image + texture[tissue[0].long()] * grain

    # The blur is in voxels of 2 mm. Generative models give smoother images than scanners.
    blur = rng.uniform(0.5, 1.1) if not ordinary and rng.random() < 0.25 else rng.uniform(0.05, 0.55)
    image = GaussianFilter(3, float(blur))(image[None, None])
    image = image * torch.exp(float(rng.uniform(0, 0.15)) * smooth_field(rng, SHAPE, SPACING_MM, 90))
    if native_mm == 4:
        image = F.avg_pool3d(image, 2)
    noise = torch.from_numpy(rng.standard_normal((2, *image.shape), dtype=np.float32)) * rng.uniform(0, 0.035)
    image = torch.sqrt((image + noise[0]).square() + noise[1].square())  # Rician
    if native_mm == 4:
        image = F.interpolate(image, scale_factor=2, mode="trilinear")
    return scale_intensity(image[0, 0]) ** float(np.exp(rng.normal(0, 0.15)))
