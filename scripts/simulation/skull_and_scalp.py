"""Draw skull, scalp, orbits and face as simple solids in MNI space, chosen by eye in comparison with real T1w MRI."""

import torch

from simulation.acquisition import smooth_field

SKULL, SOFT_TISSUE = 16, 17  # label values

THICKNESS_MM = [(6.5, 0.7), (6.0, 0.6), (3.0, 0.6)]  # mean and spread for skull, scalp and fat under the skin
# Ellipsoids have a centre (x, y, z) and semi-axes in mm, and are mirrored in x. All soft tissue is in FACE and NECK or on the
# skull.
FACE = [((0, 30, -55), (64, 63, 62))]
NECK = [((0, -45, -75), (62, 56, 60))]
ORBITS = [((31, 51, -35), (17, 27, 16))]
EYES = [((32, 63, -36), (12.5, 12.5, 12.5))]
AIR = [
    ((0, 62, -52), (9, 26, 17)),  # nasal cavity
    ((27, 56, -60), (13, 15, 16)),  # maxillary sinuses
    ((7, 14, -38), (9, 12, 9)),  # sphenoid sinuses
    ((5, 78, -16), (9, 6, 8)),  # frontal sinuses
    ((0, -2, -62), (11, 7, 16)),  # nasopharynx
]
TEMPLES = [((66, 18, -8), (16, 34, 34))]  # where the temporal muscle thickens the scalp


def surround(skull_distance, in_template_mm, spacing_mm, generator):
    """Draw the signal outside the inner skull surface, and its labels (16 skull, 17 soft tissue, 0 air), both (X, Y, Z).

    Args:
        skull_distance: distance in mm to the inner skull surface, positive outside, shape (X, Y, Z).
        in_template_mm: position of every voxel in the template (MNI space, RAS), shape (3, X, Y, Z).
        spacing_mm: voxel size.
        generator: random generator of the draws.
    """
    shape = skull_distance.shape
    variation = torch.randn(3, generator=generator)
    skull_mm, scalp_mm, fat_mm = (mean + sd * v for (mean, sd), v in zip(THICKNESS_MM, variation, strict=True))
    depth = skull_distance + 0.6 * smooth_field(generator, shape, spacing_mm, 35.0)[0]

    def within(distance):  # fraction of a voxel on the negative side
        return (0.5 - distance / spacing_mm).clamp(0, 1)

    def solids(ellipsoids):
        return torch.stack([_distance_mm(in_template_mm, *ellipsoid) for ellipsoid in ellipsoids]).amin(0)

    scalp_mm = scalp_mm + 9 * (-solids(TEMPLES) / 16).clamp(0, 1)
    outside = _blend(_blend(solids(FACE), solids(NECK)), depth - skull_mm - scalp_mm)  # mm to the skin, negative inside

    # Tissues are drawn from inside to outside, and each covers the earlier ones.
    muscle = 0.36 + 0.05 * smooth_field(generator, shape, spacing_mm, 5.0)[0]
    streaks = torch.sigmoid(4 * (smooth_field(generator, shape, spacing_mm, 14.0)[0] - 1.0))
    fat = 0.80 + 0.08 * smooth_field(generator, shape, spacing_mm, 10.0)[0]
    signal = muscle + (fat - muscle) * streaks
    signal = _over(signal, fat, within(solids(ORBITS)))
    signal = _over(signal, 0.14, within(solids(EYES)))
    air = within(solids(AIR) + 1.5 * smooth_field(generator, shape, spacing_mm, 8.0)[0])
    signal = _over(signal, 0.02, air)
    signal = _over(signal, fat, within(-outside - 1.5 - fat_mm))
    signal = _over(signal, 0.45, within(-outside - 1.5))  # skin
    marrow = 0.40 + 0.10 * smooth_field(generator, shape, spacing_mm, 8.0)[0]
    for end_mm, value in [(skull_mm, 0.05), (skull_mm - 1.5, marrow), (3.0, 0.05), (1.5, 0.10)]:  # last: dura and CSF
        signal = _over(signal, value, within(depth - end_mm))

    labels = torch.where(depth < skull_mm, SKULL, torch.where((outside < 0) & (air < 0.5), SOFT_TISSUE, 0))
    present = torch.maximum(within(outside), within(depth - skull_mm))
    return signal * present, labels


def _distance_mm(points_mm, centre, semi_axes):
    """Return the approximate distance to an ellipsoid and its mirror image across x = 0, negative inside."""
    x, y, z = points_mm
    scaled = [(value - c) / s for value, c, s in zip((x.abs(), y, z), centre, semi_axes, strict=True)]
    return (torch.sqrt(sum(value**2 for value in scaled)) - 1) * min(semi_axes)


def _blend(first, second):
    """Return the distance to the union of two solids, with a rounded crease."""
    round_mm = 10.0
    share = (0.5 + 0.5 * (second - first) / round_mm).clamp(0, 1)
    return second + (first - second) * share - round_mm * share * (1 - share)


def _over(signal, value, share):
    return signal + (value - signal) * share
