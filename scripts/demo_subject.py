"""One synthetic head: the ICBM152 template warped to a requested head size, ventricular volume and brain volume."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from demo_atlas import CLASSES, Atlas, sample_grid
from simulate_t1w import acquire, smooth_field

FIELD_OF_VIEW_MM = (160, 224, 160)
CORNER_MM = np.array([-79.019, -125.977, -61.054])  # outer edge of the first voxel; the UK Biobank model's grid
LABELS = {
    0: "background",
    1: "sulcal CSF",
    2: "left cerebral cortex",
    3: "right cerebral cortex",
    4: "left cerebral white matter",
    5: "right cerebral white matter",
    6: "left lateral ventricle",
    7: "right lateral ventricle",
    8: "third and fourth ventricle",
    9: "left deep grey matter",
    10: "right deep grey matter",
    11: "left cerebellar cortex",
    12: "right cerebellar cortex",
    13: "left cerebellar white matter",
    14: "right cerebellar white matter",
    15: "brain stem",
    16: "skull",
    17: "scalp and face",
}
VENTRICLES, BRAIN, INTRACRANIAL = (6, 7), (2, 3, 4, 5, 9, 10, 11, 12, 13, 14, 15), range(1, 16)
LEFT_LABEL = {"cortex": 2, "white_matter": 4, "deep_grey": 9, "cerebellar_cortex": 11, "cerebellar_white_matter": 13}
TISSUES = (*LEFT_LABEL, "brain_stem")

# T1w signal, mean and spread between subjects: chosen by eye next to the template.
SIGNAL = {
    "sulcal_csf": (0.10, 0.01),
    "cortex": (0.46, 0.02),
    "white_matter": (0.78, 0.02),
    "lateral_ventricle": (0.09, 0.01),
    "third_fourth_ventricle": (0.12, 0.01),
    "deep_grey": (0.60, 0.02),
    "cerebellar_cortex": (0.45, 0.02),
    "cerebellar_white_matter": (0.72, 0.02),
    "brain_stem": (0.69, 0.02),
}
TEMPLATE_SIGNAL = dict(zip(CLASSES, (0.30, 0.65, 0.86, 0.30, 0.74, 0.66, 0.80, 0.76), strict=True))
CENTRE_MM = torch.tensor([0.0, -18.0, 20.0])[:, None, None, None]  # heads are scaled about this point


@dataclass(frozen=True)
class Person:
    """What is asked of a subject; volumes in mL, `brain_fraction` = brain / intracranial volume."""

    age_years: float
    sex: str
    icv_ml: float
    brain_fraction: float
    ventricles_ml: float


def affine_of(spacing_mm: float) -> np.ndarray:
    """Voxel to MNI RAS millimetres for the project's box at `spacing_mm`."""
    affine = np.diag([spacing_mm] * 3 + [1.0])
    affine[:3, 3] = CORNER_MM + spacing_mm / 2
    return affine


def measure_ml(labels: np.ndarray, spacing_mm: float) -> dict[str, float]:
    """Volumes in mL: voxels of the label map times the volume of a voxel."""
    voxel_ml = spacing_mm**3 / 1000
    counts = np.bincount(labels.ravel(), minlength=len(LABELS))
    groups = {"ventricles_ml": VENTRICLES, "brain_ml": BRAIN, "icv_ml": INTRACRANIAL}
    return {name: float(counts[list(values)].sum() * voxel_ml) for name, values in groups.items()}


@torch.no_grad()
def make_subject(person: Person, atlas: Atlas, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """T1w (float32, 0 to 1) and labels (uint8, see LABELS) on the project's box at the atlas' spacing, RAS order."""
    spacing_mm = atlas.spacing_mm
    shape = tuple(size // spacing_mm for size in FIELD_OF_VIEW_MM)
    generator = torch.Generator().manual_seed(seed)
    # What does not depend on the spacing is drawn first: the same seed is the same head at every spacing.
    spread = {name: mean + sd * _normal(generator) for name, (mean, sd) in SIGNAL.items()}
    skull_mm, scalp_mm = 6.0 + 0.8 * _normal(generator), 6.5 + 0.6 * _normal(generator)
    in_template_mm, scale = _warp(person, atlas, shape, generator)

    skull_distance = atlas.sample(atlas.skull_distance, in_template_mm) * scale  # mm in the subject
    weights, labels, in_template_mm = _tissues(person, atlas, in_template_mm, skull_distance, scale, generator)

    spread["cortex"] += 0.0005 * (person.age_years - 63)  # grey and white matter lose contrast with age
    spread["white_matter"] -= 0.0012 * (person.age_years - 63)
    signal = sum(weight * spread[name] for name, weight in weights.items())
    signal += _template_detail(atlas, in_template_mm, weights)
    texture = 0.6 * smooth_field(generator, shape, spacing_mm, max(3.0, 1.5 * spacing_mm))[0]
    texture += 0.4 * smooth_field(generator, shape, spacing_mm, 12.0)[0]
    inside = sum(weights.values())
    signal += 0.022 * texture * inside

    head, outer_labels = _skull_and_scalp(skull_distance, skull_mm, scalp_mm, spacing_mm, generator)
    signal += head * (1 - inside)
    labels = torch.where(labels > 0, labels, outer_labels)
    intracranial = (labels > 0) & (labels < 16)
    return acquire(signal, intracranial, spacing_mm, generator).numpy(), labels.numpy().astype(np.uint8)


def _normal(generator, *size):
    return float(torch.randn((), generator=generator)) if not size else torch.randn(size, generator=generator)


def _voxel_centres_mm(shape, spacing_mm):
    first_mm = CORNER_MM + spacing_mm / 2
    axes = [first + spacing_mm * torch.arange(size) for first, size in zip(first_mm, shape, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).float()  # (3, X, Y, Z)


def _warp(person, atlas, shape, generator):
    """Template position (mm) of every voxel, and the linear scale that gives the requested intracranial volume."""
    spacing_mm, voxel_ml = atlas.spacing_mm, atlas.spacing_mm**3 / 1000
    aspect = np.exp(0.02 * _normal(generator, 3).numpy())
    aspect /= aspect.prod() ** (1 / 3)
    rotation = np.eye(3)
    for (i, j), angle in zip([(1, 2), (0, 2), (0, 1)], np.deg2rad(2.0 * _normal(generator, 3).numpy()), strict=True):
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[j, i] = np.sin(angle)
        turn[i, j] = -turn[j, i]
        rotation = rotation @ turn

    # A stationary velocity field on a 4 mm lattice, integrated by scaling and squaring, keeps the anatomy in one piece.
    lattice = tuple(size // 4 for size in FIELD_OF_VIEW_MM)
    lattice_mm = _voxel_centres_mm(lattice, 4)
    velocity = 2.0 * torch.cat([smooth_field(generator, lattice, 4, 45.0) for _ in range(3)])
    velocity += 0.75 * torch.cat([smooth_field(generator, lattice, 4, 20.0) for _ in range(3)])
    shift_mm = velocity / 16
    for _ in range(4):
        shift_mm = shift_mm + sample_grid(shift_mm, lattice_mm + shift_mm, CORNER_MM + 2, 4)
    centred_mm = _voxel_centres_mm(shape, spacing_mm)
    shift_mm = sample_grid(shift_mm, centred_mm, CORNER_MM + 2, 4)
    centred_mm = centred_mm - CENTRE_MM

    scale = (person.icv_ml / atlas.icv_ml) ** (1 / 3)
    for _ in range(4):  # the part of the skull in the box is what counts: correct for what the box cuts off
        matrix = torch.tensor(rotation @ np.diag(1 / (scale * aspect)), dtype=torch.float32)
        in_template_mm = torch.einsum("ij,jxyz->ixyz", matrix, centred_mm) + CENTRE_MM + shift_mm
        realised_ml = float((atlas.sample(atlas.skull_distance, in_template_mm) < 0).sum() * voxel_ml)
        if abs(realised_ml / person.icv_ml - 1) < 0.002:
            break
        scale *= (person.icv_ml / realised_ml) ** (1 / 3)
    return in_template_mm, scale


def _tissues(person, atlas, in_template_mm, skull_distance, scale, generator):
    """Soft weights by class, hard labels, and template positions once the tissue has made room for the ventricles."""
    spacing_mm, shape = atlas.spacing_mm, skull_distance.shape
    lattice = tuple(size // 4 for size in FIELD_OF_VIEW_MM)
    ripple_mm = F.interpolate(smooth_field(generator, lattice, 4, 25.0)[None], size=shape, mode="trilinear")[0, 0]
    inside = (0.5 - skull_distance / spacing_mm).clamp(0, 1)
    intracranial = skull_distance < 0

    # The ventricle is where `distance` < `edge`; the edge is the quantile that holds the requested number of voxels.
    distance = atlas.sample(atlas.ventricle_distance, in_template_mm) * scale + ripple_mm
    edge = _value_of_rank(distance[intracranial], person.ventricles_ml * 1000 / spacing_mm**3)
    lateral = ((edge - distance) / spacing_mm + 0.5).clamp(0, 1) * inside
    is_lateral = intracranial & (distance < edge)

    # Tissue within 40 mm of the ventricles is pushed aside, all of it at the edge and none of it at 40 mm.
    reach_mm = 40.0
    moved = torch.where(distance < edge, distance - edge, (distance - edge) * reach_mm / (reach_mm - edge))
    moved = torch.where(distance > reach_mm, distance, moved)
    normal = atlas.sample(atlas.ventricle_normal, in_template_mm)
    in_template_mm = in_template_mm + normal * ((moved - distance) / scale)

    soft = dict(zip(CLASSES, atlas.sample(atlas.classes, in_template_mm).clamp_min(0), strict=True))
    tissue = torch.stack([soft[name] for name in TISSUES]) + 1e-6
    total = tissue.sum(0)
    csf = soft["sulcal_csf"].clamp_min(0.004)
    logit = 1.25 * torch.logit((csf / (csf + total)).clamp(1e-4, 1 - 1e-4))
    folds = 0.9 if spacing_mm < 4 else 0.45
    logit += folds * smooth_field(generator, shape, spacing_mm, max(7.0, 2.0 * spacing_mm))[0]

    # Sulci widen by one shift of the logit, again the quantile that leaves the requested number of brain voxels.
    is_third_fourth = intracranial & ~is_lateral & (soft["third_fourth_ventricle"] > 0.5)
    free = intracranial & ~is_lateral & ~is_third_fourth
    logit -= _value_of_rank(logit[free], person.brain_fraction * float(intracranial.sum()))
    is_csf = free & (logit >= 0)

    rest = inside * (1 - lateral)
    weights = {"lateral_ventricle": lateral, "third_fourth_ventricle": rest * soft["third_fourth_ventricle"]}
    rest = rest - weights["third_fourth_ventricle"]
    weights["sulcal_csf"] = rest * torch.sigmoid(logit)
    tissue = tissue**1.3  # the template is an average of 152 heads: sharpen its borders
    tissue = tissue / tissue.sum(0) * (rest - weights["sulcal_csf"])
    weights |= dict(zip(TISSUES, tissue, strict=True))

    right = (in_template_mm[0] > 0).long()
    codes = torch.stack([*(left + right for left in LEFT_LABEL.values()), torch.full_like(right, 15)])
    labels = codes.gather(0, tissue.argmax(0)[None])[0]
    labels[is_csf], labels[is_third_fourth] = 1, 8
    labels[is_lateral] = (6 + right)[is_lateral]
    return weights, labels * intracranial, in_template_mm


def _value_of_rank(values: torch.Tensor, count: float) -> float:
    """The threshold with `count` of `values` below it."""
    rank = min(max(round(count), 1), values.numel() - 1)
    return float(np.partition(values.numpy(), rank)[rank])


def _template_detail(atlas, in_template_mm, weights):
    """What the template shows within deep grey, white matter and brain stem beyond the mean of each class."""
    soft = dict(zip(CLASSES, atlas.sample(atlas.classes, in_template_mm), strict=True))
    expected = sum(TEMPLATE_SIGNAL[name] * soft[name] for name in CLASSES) / sum(soft.values()).clamp_min(1e-3)
    detail = (atlas.sample(atlas.t1w, in_template_mm) - expected).clamp(-0.12, 0.12)
    shown = ("deep_grey", "brain_stem", "white_matter", "cerebellar_white_matter")
    return 0.6 * detail * sum(weights[name] for name in shown)


def _skull_and_scalp(skull_distance, skull_mm, scalp_mm, spacing_mm, generator):
    """Signal of the layers outside the inner skull surface, and their labels."""
    shape = skull_distance.shape
    depth = skull_distance + 0.7 * smooth_field(generator, shape, spacing_mm, 30.0)[0]

    def layer(start_mm, end_mm):
        return ((depth - start_mm) / spacing_mm + 0.5).clamp(0, 1) * ((end_mm - depth) / spacing_mm + 0.5).clamp(0, 1)

    marrow = 0.38 + 0.10 * smooth_field(generator, shape, spacing_mm, 8.0)[0]
    fat = 0.72 + 0.12 * smooth_field(generator, shape, spacing_mm, 10.0)[0]
    signal = 0.10 * layer(0, 1.5) + 0.05 * layer(1.5, 3) + marrow * layer(3, skull_mm - 1)
    signal += 0.05 * layer(skull_mm - 1, skull_mm + 0.5) + fat * layer(skull_mm + 0.5, skull_mm + scalp_mm)
    labels = torch.where(depth < skull_mm + 0.5, 16, torch.where(depth < skull_mm + scalp_mm, 17, 0))
    return signal, labels
