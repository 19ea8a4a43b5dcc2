"""Limits of ventricular, brain and intracranial volumes, which show a wrong unit or a failed measurement."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median

# Intracranial volume of the template ICBM152 2009a, to which brain volume is normalised: brain volume x 1902 mL / ICV.
TEMPLATE_ICV_ML = 1902.0
VOLUMES = ("ventricles_ml", "brain_ml", "icv_ml")
# No adult head has volumes outside these limits, whatever its disease. In a wrong unit, a volume is 1000 times too large or
# small.
POSSIBLE_ML = {"ventricles_ml": (0.5, 700), "brain_ml": (300, 2500), "icv_ml": (500, 3000)}
# The lateral ventricles of healthy young adults have about 15 mL, which are about 1 % of the head. Both limits are chosen.
LEAST_MEDIAN_ML = 5
FEWEST = 4


def check_volumes(volumes_ml: Mapping[str, float], where: str) -> None:
    """Refuse volumes of one head outside `POSSIBLE_ML`, and brain and ventricles that together do not fit into the skull.

    Args:
        volumes_ml: some of `VOLUMES` in mL. NaN is accepted, and so is a missing one.
        where: start of the message, such as file and row.

    Raises:
        ValueError: a volume is impossible. The message names the unit that it seems to have.
    """
    for name, (low, high) in POSSIBLE_ML.items():
        value = volumes_ml.get(name, math.nan)
        if math.isnan(value) or low <= value <= high:
            continue
        unit = "; it looks like mm3 where mL were expected" if low <= value / 1000 <= high else ""
        if low <= value * 1000 <= high:
            unit = "; it looks 1000 times too small, like L for mL or mL for mm3"
        raise ValueError(f"{where}: {name} would be {value:g} mL, but only {low:g} to {high:g} mL are possible{unit}")
    try:
        check_fit(volumes_ml)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def check_fit(volumes_ml: Mapping[str, float | str | None]) -> None:
    """Refuse brain and ventricles in mL that together do not fit into the skull. NaN and None are accepted."""
    ventricles, brain, icv = (volumes_ml.get(name) or math.nan for name in VOLUMES)
    if (inside := brain + (0 if math.isnan(ventricles) else ventricles)) > icv:
        raise ValueError(
            f"brain_ml and ventricles_ml are {inside:g} mL together, more than icv_ml, {icv:g} mL. Measure again, or "
            f"leave out the volume that is wrong"
        )


def check_median(ventricles_ml: Sequence[float], where: str) -> None:
    """Refuse a column of ventricular volumes that looks like percent of the head.

    Raises:
        ValueError: there are `FEWEST` volumes or more, and their median is below `LEAST_MEDIAN_ML`.
    """
    if len(ventricles_ml) >= FEWEST and (middle := median(ventricles_ml)) < LEAST_MEDIAN_ML:
        raise ValueError(
            f"{where}: the median of ventricles_ml is {middle:g}, which looks like percent of the head. Give the volumes in mL"
        )
