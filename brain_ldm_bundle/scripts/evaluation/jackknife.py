"""Correct the distance between two sets for its bias by the jackknife, and estimate its standard error."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

GROUPS = 20

# Participant of each row of two sets. None means that every row is from another participant, who is not in the other set.
Participants = tuple[Sequence | None, Sequence | None]


def jackknife(
    statistic: Callable[[np.ndarray, np.ndarray], float],
    a: np.ndarray,
    b: np.ndarray,
    groups: int = GROUPS,
    participants: Participants = (None, None),
) -> tuple[float, float]:
    """Return the distance between two sets corrected for its bias, and its standard error.

    The Frechet distance is too large by about c/n. Chong and Forsyth 2020 (CVPR) extrapolate it over 1/n to infinitely many
    samples. The jackknife (Quenouille 1956; Efron and Stein 1981 for the error) does the same from n and n - 1 samples of
    each set, without random subsets. The corrected distance of equal distributions scatters about 0 and may be negative.

    Args:
        statistic: function of two arrays of rows that returns their distance.
        a: rows of the first set.
        b: rows of the second set.
        groups: number of groups of participants that are left out in turn. In a smaller set, each group is one participant.
        participants: participant of each row of both sets. All rows of a participant are left out together, in both sets if
            the sets share participants.
    """
    whole, bias, variance = statistic(a, b), 0.0, 0.0
    part_a, part_b = split_into_parts(a, b, participants, groups)
    numbers = np.unique(part_a), np.unique(part_b)
    for parts in [np.union1d(*numbers)] if len(np.intersect1d(*numbers)) else numbers:
        without = [statistic(a[part_a != part], b[part_b != part]) for part in parts]
        bias += (len(parts) - 1) * (np.mean(without) - whole)
        variance += (len(parts) - 1) * np.var(without)
    return float(whole - bias), float(np.sqrt(variance))


def split_into_parts(a: np.ndarray, b: np.ndarray, participants: Participants, groups: int = GROUPS) -> list[np.ndarray]:
    """Assign each row of both sets to the part with which it is left out. The sets share parts only if they share people."""
    names = [
        [f"row {row} of {name}" for row in range(len(rows))] if who is None else who
        for name, rows, who in zip("ab", (a, b), participants, strict=True)
    ]
    shared = len(np.intersect1d(*names)) > 0
    part, number = {}, 0
    for people in [np.union1d(*names)] if shared else map(np.unique, names):
        order, count = np.random.default_rng(0).permutation(len(people)), min(groups, len(people))
        if shared:
            # Spread the people of each kind (in a, in b, in both) over all parts, so that none holds the whole of a small set.
            kind = np.isin(people, names[0]) + 2 * np.isin(people, names[1])
            order = order[kind[order].argsort(kind="stable")]
            order = np.concatenate([order[start::count] for start in range(count)])
        for chosen in np.array_split(order, count):
            part |= dict.fromkeys(people[chosen].tolist(), number)
            number += 1
    return [np.array([part[person] for person in np.asarray(who).tolist()]) for who in names]
