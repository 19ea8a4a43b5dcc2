"""Draw the signs of age that a simulated head shows beyond the sizes of its brain and ventricles, and where they lie.

Every sign has an age of its own: the person's age plus a deviation of `SPREAD_YEARS`. So people of one age differ in each sign,
for example by 5 % in the volume of the hippocampus for its head size, and by a factor of 1.4 in white matter hypointensities.
Real people differ more in each sign, but have hundreds of them. All eight together tell the age to two or three years, as
networks do in UK Biobank (Peng et al. 2021, Med. Image Anal. 68:101871).
"""

import math
from dataclasses import dataclass

import torch

from simulation.acquisition import smooth_field

REFERENCE_YEARS = 63.0
SPREAD_YEARS = 6.0  # chosen, so that eight signs tell as much as the hundreds of a real brain

# Hippocampus in the template: x, y, z in MNI mm, and radius in mm, from head to tail. x is mirrored.
HIPPOCAMPUS = [(23, -12, -21, 6.0), (26, -17, -19, 6.0), (29, -24, -14.5, 4.8), (31, -31, -9, 4.3), (28, -37, -3, 3.5)]
HORN_SIDE = (0.72, 0.35, 0.60)  # the temporal horn lies lateral, anterior and above; x away from the midline, y, z
CAPS = [(20, 32, 8), (30, -54, 14)]  # tips of the frontal horns, and white matter behind the trigones; x is mirrored
CAP_MM = 14.0
DEEP_MM = 7.0  # spots lie at least this far from the ventricles


@dataclass(frozen=True)
class Signs:
    """Signs of age in one head. Factors are relative to a head of REFERENCE_YEARS with the same volumes."""

    contrast: float  # factor of the difference between white and grey matter
    cortex: float  # factor of the cortex's volume at a fixed volume of the brain
    superior_sulci: float  # factor of the CSF in the sulci of the convexity
    sylvian_fissures: float  # factor of the CSF between the temporal and the other lobes
    caps_ml: float  # dark white matter along the walls of the ventricles
    spots_ml: float  # dark spots in deep white matter
    hippocampus_ml: float  # both sides, in a head of the template's size
    horns_ml: float  # temporal horns of the lateral ventricles, both sides, in a head of the template's size


# The value at REFERENCE_YEARS, and its change per year as a fraction of the value.
CHANGES = {
    # Salat et al. 2009, NeuroImage 48:21: contrast falls nearly everywhere, more clearly than thickness. Size chosen.
    "contrast": (1.0, -0.006),
    # Storsve et al. 2014, J. Neurosci. 34:8488: thickness falls by 0.35 % a year from 23 to 87 years.
    "cortex": (1.0, -0.0035),
    # Jin et al. 2018, Front. Aging Neurosci. 10:339: sulci are 17 % wider at 64-70 than at 44-50 years, above all the superior
    # frontal ones. Kochunov et al. 2005, Hum. Brain Mapp. 26:210: they widen by 0.7 mm in ten years, more in multimodal areas.
    "superior_sulci": (1.0, 0.012),
    "sylvian_fissures": (1.0, 0.012),
    # de Kort et al. 2025, Neurobiol. Aging 146:38: volume grows exponentially with age. Nyquist et al. 2015, Neurobiol. Aging
    # 36:1653: faster beside the ventricles than in deep white matter. Sizes chosen; T1w shows only the densest part.
    "caps_ml": (3.0, 0.06),
    "spots_ml": (1.0, 0.05),
    # Fraser et al. 2015, NeuroImage 112:364: 0.85 % a year. Nobis et al. 2019, NeuroImage Clin. 23:101904: size in UK Biobank.
    "hippocampus_ml": (9.5, -0.0085),
    # Scheltens et al. 1992, J. Neurol. Neurosurg. Psychiatry 55:967: horns widen as the hippocampus shrinks. Size chosen.
    "horns_ml": (1.8, 0.035),
}


def draw_signs(age_years: float, generator: torch.Generator) -> Signs:
    """Draw the signs of a person of `age_years`."""
    deviations = SPREAD_YEARS * torch.randn(len(CHANGES), generator=generator).clamp(-2.5, 2.5)
    years = (age_years - REFERENCE_YEARS + deviations).tolist()
    drawn = zip(CHANGES.items(), years, strict=True)
    return Signs(**{name: value * math.exp(change * since) for (name, (value, change)), since in drawn})


def widened(logit: torch.Tensor, inside: torch.Tensor, in_template_mm: torch.Tensor, signs: Signs) -> torch.Tensor:
    """Shift the logit of sulcal CSF (X, Y, Z) in each region, so that the region's CSF grows by the factor of its sign.

    The requested brain volume is restored afterwards. This takes CSF from all regions, so about half of the growth remains.
    """
    x, y, z = in_template_mm
    superior = torch.sigmoid((z - 30) / 6) * torch.sigmoid((y + 60) / 8)
    sylvian = torch.exp(-(((x.abs() - 46) / 13) ** 2) - ((y - 2) / 24) ** 2 - ((z + 0) / 14) ** 2)
    for region, factor in ((superior, signs.superior_sulci), (sylvian, signs.sylvian_fissures)):
        share = torch.sigmoid(logit)
        slope = (region * inside * share * (1 - share)).sum() / (region * inside * share).sum()  # of the log volume
        logit = logit + region * (math.log(factor) / slope)
    return logit


def thinned(tissue: torch.Tensor, factor: float) -> torch.Tensor:
    """Move the border of cortex, the first class of `tissue` (C, X, Y, Z), so that its volume changes by `factor`.

    The sum over all classes stays the same in every voxel. Voxels without white matter, the second class, do not change.
    """
    cortex, white = tissue[0], tissue[1]
    both = cortex + white
    wanted, low, high = factor * float(cortex.sum()), -3.0, 3.0
    for _ in range(12):
        shift = (low + high) / 2
        shifted = both * cortex / (cortex + white * math.exp(-shift) + 1e-9)
        low, high = (shift, high) if float(shifted.sum()) < wanted else (low, shift)
    return torch.cat([shifted[None], (both - shifted)[None], tissue[2:]])


def medial_temporal(
    in_template_mm: torch.Tensor, scale: float, spacing_mm: float, allowed: torch.Tensor, signs: Signs
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Place the hippocampi, and the temporal horns beside them.

    Args:
        in_template_mm: position of every voxel in the template (3, X, Y, Z).
        scale: size of the head relative to the template.
        allowed: voxels that may hold them (X, Y, Z), bool.

    Returns:
        Soft weights of hippocampus and horns, and the voxels that the labels count as horns, all (X, Y, Z).
    """
    side = torch.stack([in_template_mm[0].abs(), *in_template_mm[1:]])
    surface = torch.full(side.shape[1:], torch.inf)
    towards_horn = torch.zeros(side.shape[1:])
    direction = torch.tensor(HORN_SIDE)[:, None, None, None]
    for first, second in zip(HIPPOCAMPUS, HIPPOCAMPUS[1:]):
        start, along = torch.tensor(first[:3]).float(), torch.tensor(second[:3]) - torch.tensor(first[:3]).float()
        offset = side - start[:, None, None, None]
        share = (torch.einsum("i,ixyz->xyz", along, offset) / along.square().sum()).clamp(0, 1)
        offset = offset - along[:, None, None, None] * share
        distance = offset.square().sum(0).sqrt()
        radius = first[3] + share * (second[3] - first[3])
        nearer = distance - radius < surface
        surface = torch.where(nearer, distance - radius, surface)
        towards_horn = torch.where(nearer, (offset * direction).sum(0) / distance.clamp_min(1e-3), towards_horn)

    def enclose(score, ml, among):  # soft weights, and the voxels of the lowest scores that make up `ml`
        count = round(ml * scale**3 * 1000 / spacing_mm**3)
        edge = score[among].sort().values[count]
        return (0.5 + (edge - score) * scale / spacing_mm).clamp(0, 1) * among, among & (score < edge), edge

    hippocampus, is_hippocampus, edge = enclose(surface, signs.hippocampus_ml, allowed)
    outside = (surface - edge).clamp_min(0)
    horns, is_horn, _ = enclose(outside + 7 * (1 - towards_horn), signs.horns_ml, allowed & ~is_hippocampus)
    return hippocampus * (1 - horns * ~is_hippocampus), horns * (1 - hippocampus), is_horn


def hypointensities(
    white: torch.Tensor,
    wall_mm: torch.Tensor,
    in_template_mm: torch.Tensor,
    spacing_mm: float,
    signs: Signs,
    generator: torch.Generator,
) -> torch.Tensor:
    """Return the share of each voxel's white matter that is dark on T1w: caps and bands at the ventricles, and spots.

    Args:
        white: weight of white matter (X, Y, Z).
        wall_mm: distance to the wall of the lateral ventricles, negative inside.
        in_template_mm: position of every voxel in the template (3, X, Y, Z).
    """
    shape = white.shape
    side = torch.stack([in_template_mm[0].abs(), *in_template_mm[1:]])
    near_cap = sum(
        torch.exp(-(side - torch.tensor(cap).float()[:, None, None, None]).square().sum(0) / (2 * CAP_MM**2)) for cap in CAPS
    )
    rough = smooth_field(generator, shape, spacing_mm, 10.0)[0]
    patches = smooth_field(generator, shape, spacing_mm, max(11.0, 3.0 * spacing_mm))[0]
    caps = wall_mm - 6 * near_cap + 1.2 * rough
    supratentorial = in_template_mm[2] > 0
    candidates = {
        "caps_ml": (caps, (white > 0.5) & (wall_mm > 0) & supratentorial, spacing_mm),
        "spots_ml": (-patches, (white > 0.8) & (wall_mm > DEEP_MM) & supratentorial, 0.5),
    }
    dark = torch.zeros(shape)
    for name, (score, among, width) in candidates.items():
        if not among.any():  # in large voxels
            continue
        count = min(round(getattr(signs, name) * 1000 / spacing_mm**3), int(among.sum()) - 1)
        edge = score[among].sort().values[count]
        dark = torch.maximum(dark, (0.5 + (edge - score) / width).clamp(0, 1) * (among if name == "spots_ml" else 1))
    return dark * supratentorial
