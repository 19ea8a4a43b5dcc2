"""Work of spade_fusion_bundle: three planes and their fusion, on the label map of a simulated head."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from simulation.atlas import load_atlas
from simulation.subject import Person, make_subject
from spade.generation.synthesis import Synthesiser
from spade.model.exact_rewrites import rewrite
from spade.model.networks import SpadeFusion
from spade.shared.label_table import LabelTable

from .measuring import Case

SIZES = {"published": (64, 128, 1), "middle": (32, 64, 2), "tiny": (8, 16, 4)}  # ngf, hidden, spacing in mm
LABELS = Path(__file__).parents[2] / "spade_fusion_bundle" / "configs" / "labels.json"


def label_map(spacing_mm: int, table: LabelTable) -> torch.Tensor:
    """Return classes (1, 1, X, Y, Z) of a simulated head; the sides are multiples of 32."""
    person = Person(age_years=65, sex="F", icv_ml=1350, brain_fraction=0.76, ventricles_ml=35)
    _, values = make_subject(person, load_atlas(spacing_mm), 0)
    classes = torch.from_numpy(table.classes(values, "simulated head"))[None, None].float()
    return F.pad(classes, [pad for side in reversed(classes.shape[2:]) for pad in (0, -side % 32)])


def cases(size: str, device: torch.device, amp: bool) -> Iterator[Case]:
    """Make the cases one after the other."""
    ngf, hidden, spacing_mm = SIZES[size]
    table = LabelTable.from_file(LABELS, "demo")
    labels = label_map(spacing_mm, table).to(device)
    torch.manual_seed(0)
    network = SpadeFusion(table.num_classes, ngf, hidden).to(device).eval()
    with torch.no_grad():
        for parameter in network.parameters():  # a new network makes all pixels nearly equal
            parameter.add_(torch.randn_like(parameter), alpha=0.5 / max(parameter[0].numel(), 1) ** 0.5)
    fast = rewrite(copy.deepcopy(network))
    synthesiser = Synthesiser(amp=amp)
    yield Case(
        "SPADE, three planes", lambda: synthesiser.planes(labels, network), lambda: synthesiser.planes(labels, fast),
        "theirs computes scale and shift at each pixel",
    )  # fmt: skip
    with torch.no_grad():
        volumes = synthesiser.planes(labels, fast)
    patches = Synthesiser("patches", amp=amp)
    yield Case(
        "fusion",
        lambda: patches.fuse(volumes, labels, network),
        lambda: synthesiser.fuse(volumes, labels, network),
        "theirs merges patches of 32 voxels that overlap by half",
        same=False,
    )
