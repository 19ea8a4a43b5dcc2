"""Compute, read and print the accuracy of measure_volumes.py, which volume_net.json stores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from shared.agreement import agreement
from shared.files import read_json, sha256


def accuracy_row(images: str, spacing_mm: float, volume: str, true: Sequence[float], measured: Sequence[float]) -> dict:
    """Return one row of the accuracy table, rounded as it is printed and stored. `images` names the set. Values are in mL."""
    numbers = agreement(true, measured)
    row = {"images": images, "spacing_mm": round(spacing_mm, 2), "volume": volume, "n": numbers.pop("n")}
    return row | {key: round(value, 3 if key[:1] in "rs" else 1) for key, value in numbers.items()}


def read_accuracy(weights: Path) -> dict:
    """Read the JSON file of the weights. "accuracy" has the rows of the table, and "limits" explains what they do not show.

    Raises:
        ValueError: the file with the facts is missing, or describes other weights.
    """
    sidecar = weights.with_suffix(".json")
    if missing := [path.name for path in (weights, sidecar) if not path.is_file()]:
        raise ValueError(f"{missing[0]} is missing")
    facts = read_json(sidecar)
    if facts["sha256"] != sha256(weights):
        raise ValueError(f"{sidecar.name} describes other weights")
    return facts


def describe_accuracy(weights: Path) -> str:
    """Return the accuracy table of the weights as text."""
    try:
        facts = read_accuracy(weights)
    except ValueError as error:
        return f"Accuracy of {weights.name}: unknown, {error}."
    table = format_table(facts["accuracy"])
    return f"Accuracy of these measurements on images it was not trained on (bias and mae in mL):\n{table}\n{facts['limits']}"


def format_table(rows: Sequence[dict]) -> str:
    """Return the accuracy table as aligned text."""
    return pd.DataFrame(rows).to_string(index=False)
