"""Simulate a head: warp the ICBM152 template to a requested head size, ventricular volume and brain volume."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from measurement.label_values import read_label_names
from scipy.spatial.transform import Rotation
from shared.mni_box import FIELD_OF_VIEW_MM, LOWER_CORNER_MM

from simulation.acquisition import PROTOCOLS, acquire, smooth_field
from simulation.ageing import draw_signs, hypointensities, medial_temporal, thinned, widened
from simulation.atlas import CLASSES, Atlas, sample_grid
from simulation.skull_and_scalp import surround

CORNER_MM = np.array(LOWER_CORNER_MM)
LABELS = read_label_names("demo")
VOLUMES = {
    "ventricles_ml": (6, 7),
    "brain_ml": (2, 3, 4, 5, 9, 10, 11, 12, 13, 14, 15),
    "icv_ml": tuple(range(1, 16)),
}
BRAIN_STEM = 15
LEFT_LABEL = {  # the right label is the left label + 1; only the brain stem has no sides
    **{"cortex": 2, "white_matter": 4, "deep_grey": 9, "cerebellar_cortex": 11, "cerebellar_white_matter": 13},
    "brain_stem": BRAIN_STEM,
}
TISSUES = tuple(LEFT_LABEL)

# Mean T1w signal and its spread between subjects, chosen by eye in comparison with the template.
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
LATTICE = tuple(side // 4 for side in FIELD_OF_VIEW_MM)  # points of smooth displacements, 4 mm apart
REACH_MM = 40.0  # tissue farther than this from the ventricles does not move when they grow
SEPTUM_MM = 1.5  # thickness of the septum pellucidum between the lateral ventricles
CENTRE_MM = torch.tensor([0.0, -18.0, 20.0])[:, None, None, None]  # heads are scaled about this point


@dataclass(frozen=True)
class Person:
    """Covariates of a subject. The simulated head must have these volumes."""

    age_years: float
    sex: str
    icv_ml: float  # intracranial volume
    brain_fraction: float  # brain volume / intracranial volume
    ventricles_ml: float  # both lateral ventricles


def measure_ml(labels: np.ndarray, spacing_mm: float, groups: dict[str, tuple] = VOLUMES) -> dict[str, float]:
    """Return the volume in mL of each group of label values in a label map."""
    voxel_ml = spacing_mm**3 / 1000
    return {name: float(np.isin(labels, values).sum() * voxel_ml) for name, values in groups.items()}


@torch.no_grad()
def make_subject(person: Person, atlas: Atlas, seed: int, protocol: str = "many") -> tuple[np.ndarray, np.ndarray]:
    """Make a T1w (float32, 0 to 1) and its labels (uint8, see LABELS) on the project's box, in RAS order.

    The voxel size of the result is the atlas's. `protocol` is a key of `acquisition.PROTOCOLS`.
    """
    spacing_mm = atlas.spacing_mm
    shape = tuple(size // spacing_mm for size in FIELD_OF_VIEW_MM)
    generator = torch.Generator().manual_seed(seed)
    # Random draws that do not depend on the spacing come first, so that a seed gives about the same head at every spacing.
    deviations = PROTOCOLS[protocol].contrast * torch.randn(len(SIGNAL), generator=generator)
    mean_signal = {name: mean + sd * float(d) for (name, (mean, sd)), d in zip(SIGNAL.items(), deviations, strict=True)}
    signs = draw_signs(person.age_years, generator)
    lost = (SIGNAL["white_matter"][0] - SIGNAL["cortex"][0]) * (1 - signs.contrast)
    mean_signal["cortex"] += 0.25 * lost  # relative to the brightest tissue, which is scaled to 1
    mean_signal["white_matter"] -= 0.75 * lost

    head_mm, scale = _warp(person, atlas, shape, generator)
    maps = atlas.sample(head_mm, "skull_distance", "ventricle_distance", "ventricle_normal")
    skull_distance, ventricle_distance, normal = maps[0] * scale, maps[1] * scale, maps[2]  # mm in the subject
    placed = (skull_distance, ventricle_distance, normal)
    weights, labels, detail = _tissues(person, signs, atlas, head_mm, scale, *placed, generator)
    mean_signal["dark_white_matter"] = 0.9 * mean_signal["cortex"] + 0.1 * mean_signal["white_matter"]

    signal = sum(weight * mean_signal[name] for name, weight in weights.items()) + detail
    texture = 0.6 * smooth_field(generator, shape, spacing_mm, max(3.0, 1.5 * spacing_mm))[0]
    texture += 0.4 * smooth_field(generator, shape, spacing_mm, 12.0)[0]
    inside = sum(weights.values())
    signal += 0.022 * texture * inside

    intracranial = labels > 0
    surroundings, outer_labels = surround(skull_distance, head_mm, spacing_mm, generator)
    signal += surroundings * (1 - inside)
    labels = torch.where(intracranial, labels, outer_labels)
    return acquire(signal, intracranial, spacing_mm, generator, protocol).numpy(), labels.numpy().astype(np.uint8)


def voxel_centres_mm(shape, spacing_mm):
    """Return the positions (3, X, Y, Z) of the voxel centres of the project's box, in MNI space (RAS, mm)."""
    first_mm = CORNER_MM + spacing_mm / 2
    axes = [first + spacing_mm * torch.arange(size) for first, size in zip(first_mm, shape, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).float()


def deform(points_mm: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw a smooth displacement without folds, and return it in mm at `points_mm` (3, ...). It is a few mm at most places.

    Scaling and squaring integrates a stationary velocity field on a 4 mm lattice. This keeps the topology of the anatomy.
    """
    velocity = 2.0 * torch.cat([smooth_field(generator, LATTICE, 4, 45.0) for _ in range(3)])
    velocity += 0.75 * torch.cat([smooth_field(generator, LATTICE, 4, 20.0) for _ in range(3)])
    lattice_mm, shift_mm = voxel_centres_mm(LATTICE, 4), velocity / 16
    for _ in range(4):
        shift_mm = shift_mm + sample_grid(shift_mm, lattice_mm + shift_mm, CORNER_MM + 2, 4)
    return sample_grid(shift_mm, points_mm, CORNER_MM + 2, 4)


def _warp(person, atlas, shape, generator):
    """Return the position in mm of every voxel in the template, and the scale that gives the requested intracranial volume."""
    spacing_mm = atlas.spacing_mm
    aspect = np.exp(0.02 * torch.randn(3, generator=generator).numpy())
    aspect /= aspect.prod() ** (1 / 3)
    rotation = Rotation.from_euler("xyz", 2.0 * torch.randn(3, generator=generator).numpy(), degrees=True).as_matrix()
    centred_mm = voxel_centres_mm(shape, spacing_mm)
    shift_mm = deform(centred_mm, generator)
    centred_mm = centred_mm - CENTRE_MM

    scale = (person.icv_ml / atlas.icv_ml) ** (1 / 3)
    step = max(1, 4 // spacing_mm)  # every 4 mm is enough to count litres
    coarse, lattice_ml = slice(step // 2, None, step), (step * spacing_mm) ** 3 / 1000
    for _ in range(5):  # only the part of the skull inside the box counts, so the scale is iterated
        matrix = torch.tensor(rotation @ np.diag(1 / (scale * aspect)), dtype=torch.float32)
        in_template_mm = torch.einsum("ij,jxyz->ixyz", matrix, centred_mm) + CENTRE_MM + shift_mm
        (distance,) = atlas.sample(in_template_mm[:, coarse, coarse, coarse], "skull_distance")
        realised_ml = float((distance < 0).sum() * lattice_ml)
        if abs(realised_ml / person.icv_ml - 1) < 0.001:
            break
        scale *= (person.icv_ml / realised_ml) ** (1 / 3)
    return in_template_mm, scale


def _tissues(person, signs, atlas, head_mm, scale, skull_distance, ventricle_distance, normal, generator):
    """Return the soft weight of each class, the labels inside the skull (0 outside), and the template's own detail."""
    spacing_mm, shape = atlas.spacing_mm, skull_distance.shape
    inside = (0.5 - skull_distance / spacing_mm).clamp(0, 1)
    intracranial = skull_distance < 0
    ripple_mm = F.interpolate(smooth_field(generator, LATTICE, 4, 25.0)[None], size=shape, mode="trilinear")[0, 0]

    # The body of the ventricle is where `distance` < `edge`. This edge is the quantile that encloses the requested number of
    # voxels, without those of the temporal horns.
    distance = ventricle_distance + ripple_mm
    septum = ((SEPTUM_MM / 2 - head_mm[0].abs() * scale) / spacing_mm + 0.5).clamp(0, min(1, SEPTUM_MM / spacing_mm))
    beside_septum = intracranial & (septum < 0.5)
    body = round(person.ventricles_ml * 1000 / spacing_mm**3) - round(signs.horns_ml * scale**3 * 1000 / spacing_mm**3)
    edge = _value_of_rank(distance[beside_septum], body)
    is_lateral = beside_septum & (distance < edge)
    within_edge = ((edge - distance) / spacing_mm + 0.5).clamp(0, 1) * inside
    lateral, septum = within_edge * (1 - septum), within_edge * septum

    # Tissue is displaced: the wall of the ventricle moves to its new edge, and tissue REACH_MM away does not move.
    pushed = torch.where(distance < edge, distance - edge, (distance - edge) * REACH_MM / (REACH_MM - edge))
    pushed = torch.where(distance > REACH_MM, distance, pushed)
    in_template_mm = head_mm + normal * ((pushed - distance) / scale)
    allowed = intracranial & ~is_lateral
    hippocampus, horns, is_horn = medial_temporal(in_template_mm, scale, spacing_mm, allowed, signs)
    hippocampus, horns = hippocampus * (inside - within_edge).clamp_min(0), horns * (inside - within_edge).clamp_min(0)
    lateral, is_lateral = lateral + horns, is_lateral | is_horn
    classes, template_t1w = atlas.sample(in_template_mm, "classes", "t1w")
    soft = dict(zip(CLASSES, classes, strict=True))
    detail = template_t1w - sum(TEMPLATE_SIGNAL[name] * soft[name] for name in CLASSES) / classes.sum(0).clamp_min(1e-3)

    # Sulci widen: the logit of CSF is shifted by the quantile that leaves the requested number of brain voxels.
    soft["white_matter"] += septum
    tissue = torch.stack([soft[name] for name in TISSUES]) + 1e-6
    csf = soft["sulcal_csf"].clamp_min(0.004)
    logit = 1.25 * torch.logit((csf / (csf + tissue.sum(0))).clamp(1e-4, 1 - 1e-4))
    folds = 0.9 if spacing_mm < 4 else 0.45
    logit += folds * smooth_field(generator, shape, spacing_mm, max(7.0, 2.0 * spacing_mm))[0]
    logit = widened(logit, inside, in_template_mm, signs) - 20 * (hippocampus > 0.5)
    is_third_fourth = intracranial & ~is_lateral & (soft["third_fourth_ventricle"] > 0.5)
    free = intracranial & ~is_lateral & ~is_third_fourth
    logit -= _value_of_rank(logit[free], person.brain_fraction * float(intracranial.sum()))

    rest = (inside - lateral - hippocampus).clamp_min(0)
    weights = {"lateral_ventricle": lateral, "third_fourth_ventricle": rest * soft["third_fourth_ventricle"]}
    rest = rest - weights["third_fourth_ventricle"]
    weights["sulcal_csf"] = rest * torch.sigmoid(logit)
    tissue = tissue**1.3  # the template is an average of 152 heads: sharpen its borders
    tissue = thinned(tissue * (rest - weights["sulcal_csf"]) / tissue.sum(0), signs.cortex)
    tissue[0] += hippocampus
    weights |= dict(zip(TISSUES, tissue, strict=True))
    dark = hypointensities(tissue[1], distance - edge, in_template_mm, spacing_mm, signs, generator)
    weights["dark_white_matter"] = dark * tissue[1]
    weights["white_matter"] = (1 - dark) * tissue[1]

    right = (in_template_mm[0] > 0).long()
    labels = torch.tensor([LEFT_LABEL[name] for name in TISSUES])[tissue.max(0).indices]  # argmax is slower
    labels += right * (labels != BRAIN_STEM)
    labels[free & (logit >= 0)], labels[is_third_fourth] = 1, 8
    labels[is_lateral] = (6 + right)[is_lateral]
    shown = sum(weights[name] for name in ("deep_grey", "brain_stem", "white_matter", "cerebellar_white_matter"))
    return weights, labels * intracranial, 0.6 * detail.clamp(-0.12, 0.12) * shown


def _value_of_rank(values: torch.Tensor, count: float) -> float:
    """Return the threshold that has `count` of `values` below it."""
    rank = min(max(round(count), 1), values.numel() - 1)
    return float(np.partition(values.numpy(), rank)[rank])
