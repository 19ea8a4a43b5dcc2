"""Train the network of measure_volumes.py on images drawn from label maps. No real scan is needed.

    python scripts/train_volume_net.py --labels LABEL_MAPS_DIR --steps 750 --output volume_net.pt

Every step draws a new subject, see measurement/domain_randomisation.py. A .json file of the same name as the weights states how
they were trained, and how well they measure images of label maps that they were not trained on.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from command_line import Parser
from measurement import WEIGHTS
from whole_numbers import at_least


def parse() -> argparse.Namespace:
    parser = Parser(description=__doc__)
    labels_help = "folder of label maps (*seg*.nii.gz) with FreeSurfer, SynthSeg or demo values; repeat for more"
    steps_help = "subjects to train on, one per step (about 2 CPU-s); 0 only measures the accuracy of --output again"
    parser.add_argument("--labels", type=Path, action="append", required=True, help=labels_help)
    parser.add_argument("--steps", type=at_least(0), required=True, help=steps_help)
    parser.add_argument("--test", type=Path, action="append", default=[], help="BIDS cohort to test on; repeat for more")
    parser.add_argument("--start", type=Path, help="weights to continue from (default: random ones)")
    parser.add_argument("--output", type=Path, default=WEIGHTS, help="file of the weights; its .json file describes them")
    parser.add_argument("--seed", type=at_least(0), default=0, help="the same seed gives the same subjects (default 0)")
    parser.add_quiet()
    arguments = parser.parse_args()
    if arguments.output.suffix == ".json":
        parser.error(f"--output {arguments.output}: this is the name of the description. End the name of the weights in .pt")
    return arguments


if __name__ == "__main__":
    parse()  # answers --help and wrong options before the imports below, which take seconds

import numpy as np
import torch
from measure_volumes import accuracy, read_true
from measurement.accuracy import accuracy_row, format_table
from measurement.domain_randomisation import Anatomy, class_fractions, draw_image, draw_tissue, read_anatomy
from measurement.output_table import VOLUMES
from measurement.volume_net import CLASSES, VOXEL_ML, build_network, load_network, volumes_ml
from monai.losses import DiceCELoss
from shared import refusals
from shared.files import read_json, refuse_unwritable, save_weights, sha256, write_json
from shared.image_files import find_files
from shared.problems import of_each
from shared.weights import load_weights
from tqdm import tqdm

SUMMED = {  # for each volume, the classes of the network that it sums
    "ventricles_ml": ("ventricles",),
    "brain_ml": ("grey", "white"),
    "icv_ml": ("csf", "grey", "white", "ventricles"),
}


def find_label_maps(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the training and the held-out label maps below a folder. Every fourth, in order of name, is held out."""
    paths = find_files(folder, "**/*seg*.nii*", skipped=())
    if len(paths) < 4:
        raise FileNotFoundError(f"{folder}: found {len(paths)} label maps (*seg*.nii.gz), but at least 4 are needed")
    return [path for i, path in enumerate(paths) if i % 4 != 3], paths[3::4]


def read_anatomies(paths: Sequence[Path]) -> list[Anatomy]:
    return of_each(read_anatomy, paths, f"of {len(paths)} label maps cannot be used:")


def summed_ml(fractions: torch.Tensor) -> dict[str, torch.Tensor]:
    """Sum fractions of classes (5, 80, 112, 80) to volumes in mL."""
    classes = {volume: [CLASSES.index(name) for name in names] for volume, names in SUMMED.items()}
    return {volume: fractions[indices].sum() * VOXEL_ML for volume, indices in classes.items()}


def volume_loss(probabilities: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the mean |log ratio| of measured to true ventricles, brain and ICV. Both are class fractions (1, 5, ...)."""
    measured, true = summed_ml(probabilities[0]), summed_ml(target[0])
    return torch.stack([((measured[name] + 1) / (true[name] + 1)).log().abs() for name in VOLUMES]).mean()


def train(
    network: torch.nn.Module, sources: list[list[Anatomy]], steps: int, seed: int, output: Path, peak_rate: float
) -> None:
    """Train on one drawn subject per step, and save the weights every 100 steps.

    Each list in `sources` is used equally often. `peak_rate` is the highest learning rate of the one-cycle schedule.
    """
    rng = np.random.default_rng(seed)
    network.train().to(memory_format=torch.channels_last_3d)
    optimizer = torch.optim.AdamW(network.parameters(), peak_rate, weight_decay=1e-5)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak_rate, total_steps=steps, pct_start=0.1)
    # Dice alone enlarges uncertain structures such as small ventricles, so cross entropy and volumes get more weight.
    shape_loss = DiceCELoss(softmax=True, include_background=False, lambda_dice=0.25, lambda_ce=2)
    running = None
    progress = tqdm(range(1, steps + 1), unit="step", mininterval=5)
    for step in progress:
        maps = sources[rng.integers(len(sources))]
        tissue = draw_tissue(maps[rng.integers(len(maps))], rng)
        image, target = draw_image(tissue, rng)[None, None], class_fractions(tissue)[None]
        logits = network(image.contiguous(memory_format=torch.channels_last_3d))
        loss = shape_loss(logits, target) + 3 * volume_loss(torch.softmax(logits, 1), target)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        progress.set_postfix(loss=f"{running:.3f}")
        if step % 100 == 0 or step == steps:
            save_weights(network.state_dict(), output)


@torch.inference_mode()
def held_out_accuracy(network: torch.nn.Module, name: str, maps: Sequence[Anatomy], native_mm: int) -> list[dict]:
    """Measure 30 simulated T1w volumes of held-out maps, and compare them with the volumes that were drawn."""
    rng = np.random.default_rng(1000 + native_mm)
    true, measured = [], []
    for i in tqdm(range(30), unit="scan"):
        tissue = draw_tissue(maps[i % len(maps)], rng)
        image = draw_image(tissue, rng, ordinary=True, native_mm=native_mm)
        measured.append(volumes_ml(torch.softmax(network(image[None, None]), 1)[0]))
        true.append({name: float(value) for name, value in summed_ml(class_fractions(tissue).double()).items()})
    return [
        accuracy_row(name, native_mm, volume, [row[volume] for row in true], [row[volume] for row in measured])
        for volume in VOLUMES
    ]


def main() -> None:
    arguments = parse()

    sidecar = arguments.output.with_suffix(".json")
    for path in (arguments.output, sidecar):
        refuse_unwritable(path)
    folders = {folder: find_label_maps(folder) for folder in arguments.labels}
    held_out = {folder: read_anatomies(rest) for folder, (_, rest) in folders.items()}
    for cohort in arguments.test:
        read_true(cohort)  # to refuse it before the training
    if arguments.steps:
        torch.manual_seed(arguments.seed)
        network = build_network()
        if arguments.start:
            earlier = read_json(arguments.start.with_suffix(".json"))
            load_weights(network, arguments.start)
        sources = [read_anatomies(training) for training, _ in folders.values()]
        peak_rate = 1e-3 if arguments.start else 3e-3  # chosen
        train(network, sources, arguments.steps, arguments.seed, arguments.output, peak_rate)
        facts = {
            "data": {folder.name: f"{len(use)} maps, {len(rest)} held out" for folder, (use, rest) in folders.items()},
            "command": " ".join(["python scripts/train_volume_net.py", *(Path(word).name for word in sys.argv[1:])]),
            "cpu_s": round(time.process_time()),
        }
        if arguments.start:
            facts["started_from"] = {key: value for key, value in earlier.items() if key != "accuracy"}
    else:
        facts = read_json(sidecar)
    network = load_network(arguments.output)
    shapes = ", ".join(f"{folder.name}: of {len(maps)} maps" for folder, maps in held_out.items())
    rows = []
    for folder, maps in held_out.items():
        for native_mm in (2, 4):
            rows += held_out_accuracy(network, f"{folder.name}, simulated T1w", maps, native_mm)
    for cohort in arguments.test:
        rows += accuracy(cohort, arguments.output)
    limits = f"The T1w are simulated and show few anatomies in several shapes ({shapes}), so intervals are too narrow."
    facts |= {"sha256": sha256(arguments.output), "limits": limits, "accuracy": rows}
    write_json(sidecar, facts)
    print(format_table(rows))


if __name__ == "__main__":
    refusals.run(main)
