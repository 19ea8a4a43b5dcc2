"""Measure lateral ventricles, brain and intracranial volume in T1w volumes that lie in MNI space.

    python scripts/measure_volumes.py GENERATED_DIR --output volumes.tsv

A small U-Net labels each volume at 2 mm, and its probabilities sum to volumes in mL; nothing is calibrated. The command
prints its accuracy on simulated images (volume_net.json) after every run. `--accuracy COHORT_DIR` measures the accuracy
on any BIDS cohort whose participants.tsv holds the true volumes. If the command is stopped, run it again: it continues with the
volumes that it has not measured. The flag brain_off_centre marks a head that is not in MNI space, whose volumes are
too small or too large: register it first. Each head that was moved by 15 mm got it, but not each one that was moved by 10 mm.
The command is for research, not for clinical use.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from command_line import Parser
from measurement import WEIGHTS
from whole_numbers import at_least


def parse() -> argparse.Namespace:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("images", nargs="*", type=Path, help="T1w volumes in MNI space, or folders (BIDS or flat)")
    add("--output", type=Path, help="TSV to write, one row per volume")
    add("--accuracy", type=Path, metavar="COHORT_DIR", help="compare with a cohort's participants.tsv")
    add("--weights", type=Path, default=WEIGHTS, help="state dict of the network (default: the shipped one)")
    add("--use_device", default="auto", help="auto (a GPU if there is one; the default), cpu, cuda or cuda:1")
    add("--workers", type=at_least(0), default=0, help="processes that read volumes while others are measured (default 0)")
    parser.add_quiet()
    arguments = parser.parse_args()
    if arguments.accuracy and (arguments.images or arguments.output):
        parser.error("--accuracy prints a table, and takes neither images nor --output")
    if not arguments.accuracy and not (arguments.images and arguments.output):
        parser.error("give images and --output, or --accuracy")
    return arguments


if __name__ == "__main__":
    parse()  # answers --help and wrong options before the imports below, which take seconds

import nibabel as nib
import torch
from cohorts.row_matching import refuse_other_unit, typed
from measurement import tissue_contrast, volume_net
from measurement.accuracy import accuracy_row, describe_accuracy, format_table
from measurement.output_table import COLUMNS, VOLUMES, complete_row, identity_of, write_table
from measurement.volume_net import load_network, read_on_grid, refuse_bright_fluid, refuse_bright_surroundings, volumes_ml
from shared import mni_box, refusals
from shared.device import choose
from shared.files import is_device, refuse_unwritable, sha256
from shared.image_files import find_t1w
from shared.journal import Journal
from shared.nifti import named, open_image
from shared.participants import Row, Rows, find_row, other_units, read_participants, refuse_given_once
from shared.problems import count, refuse
from shared.simulated import made_by
from shared.tables import refuse_users_columns
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

TOOL = "measure_volumes.py"
MOST_UNEQUAL_SPACING = 1.5  # largest over smallest voxel of a table without a warning; chosen
LDM = "brain_ldm_bundle"  # writes what was requested into participants.tsv


@dataclass
class OnGrid(Dataset):
    """Volumes as `read_on_grid` returns them, each with "", or zeros with the reason why the volume is refused."""

    images: Sequence[Path]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
        path = self.images[index]
        try:
            image = read_on_grid(path)
            with named(path):
                refuse_bright_fluid(image)
            return image, ""
        except ValueError as refusal:
            return torch.zeros(0), str(refusal)


@torch.inference_mode()
def measure(images: Sequence[Path], weights: Path = WEIGHTS, device: str = "cpu", workers: int = 0) -> Iterator[dict]:
    """Measure T1w volumes in MNI space. `workers` processes read them; with 0, this one does.

    Yields:
        One row of `complete_row` for each image. ventricles_ml counts the lateral ventricles with choroid plexus. brain_ml
        counts grey and white matter, cerebellum, and brain stem down to z = -61 mm. icv_ml counts brain and all CSF. If an
        image is refused, `error` has the reason and the volumes are NaN. Otherwise `error` is "".
    """
    device = choose(device)
    network = load_network(weights).to(device)
    loader = DataLoader(OnGrid(images), batch_size=None, num_workers=workers)
    for path, (image, error) in zip(images, loader, strict=True):
        volumes, flags = {}, []
        try:
            if error:
                raise ValueError(error)
            probabilities = torch.softmax(network(image.to(device)[None, None]), 1)[0].cpu()
            with named(path):
                refuse_bright_surroundings(image, probabilities)
            volumes = volumes_ml(probabilities)
            labels = probabilities.max(0).indices.numpy()
            flags = tissue_contrast.flags(image.numpy(), labels, mni_box.LOWER_CORNER_MM, volume_net.SPACING_MM)
            if volumes["brain_ml"] < 300:
                raise ValueError(f"{path}: only {volumes['brain_ml']:.0f} mL of brain found; is it a T1w in MNI space?")
        except ValueError as refusal:
            volumes, error = {}, str(refusal)
        yield complete_row(identity_of(path), path, volumes, TOOL, error, flags)


def measured_rows(
    images: Sequence[Path], weights: Path, device: str, workers: int, journal: Journal
) -> tuple[list[dict], list[dict]]:
    """Measure the images that the journal lacks, show the progress, and return the rows of measured and of refused images."""
    left = journal.open(images)
    bar = tqdm(measure(left, weights, device, workers), total=len(images), initial=len(images) - len(left), unit="scan")
    for path, row in zip(left, bar, strict=True):
        journal.add(path, row)
    rows = [journal.found[str(path)] for path in images]
    refused = [row for row in rows if row["error"]]
    if len(refused) == len(rows):
        journal.close()
        refuse([row["error"] for row in refused], f"none of {len(rows)} images can be measured:")
    return [row for row in rows if not row["error"]], refused


def find_images(paths: Iterable[Path]) -> list[Path]:
    """List the volumes to measure.

    A BIDS data set stands for its own T1w without derivatives, another folder for all *_T1w.nii[.gz] below it or, without any,
    for its own *.nii[.gz].
    """
    images = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
        images += find_t1w(path) if path.is_dir() else [path]
    images = list({path.parent.resolve() / path.name: path for path in images}.values())  # a folder and its file may be given
    first: dict[Path, Path] = {}
    for path in images:  # two links to one object of git-annex, for example
        if (other := first.setdefault(path.resolve(), path)) != path:
            print(f"{path} and {other} are one file, so one scan counts twice", file=sys.stderr)
    return images


def warn_of_mixed_spacings(images: Sequence[Path]) -> None:
    """Say so if one table holds volumes of fine and of coarse voxels, because these differ for the same head."""
    sizes_mm = [float(nib.affines.voxel_sizes(open_image(path).affine).max()) for path in images]
    if max(sizes_mm) > MOST_UNEQUAL_SPACING * min(sizes_mm):
        print(
            f"voxels of {min(sizes_mm):.3g} and {max(sizes_mm):.3g} mm are in one table: the same heads measured 31 to 87 mL "
            f"more brain at 4 mm than at 1 mm. Compare volumes of one spacing only",
            file=sys.stderr,
        )


def read_true(cohort: Path) -> tuple[list[Path], Rows]:
    """Return the images of a BIDS cohort, and the rows of its participants.tsv, which must have true volumes."""
    table = cohort / "participants.tsv"
    header, rows, problems = read_participants(table, VOLUMES)
    if missing := set(VOLUMES) - set(header):
        raise ValueError(f"{table}: no column {sorted(missing)}")
    refuse(problems + other_units(table, dict.fromkeys(VOLUMES, "mL")))
    if any(row.cells.get("tool") == TOOL for sessions in rows.values() for row in sessions.values()):
        raise ValueError(f"{table}: holds what {TOOL} measured, as its column tool says. Give volumes from another source")
    if made_by(cohort, LDM):
        raise ValueError(f"{table}: holds what was requested from {LDM}, not true volumes. Give a cohort of scans")
    every = ((participant, row.cells, row.where) for participant, sessions in rows.items() for row in sessions.values())
    names, cells, wheres = zip(*every)
    refuse_other_unit(typed(names, VOLUMES, cells, wheres), str(table))
    return find_images([cohort]), rows


def accuracy(cohort: Path, weights: Path = WEIGHTS, device: str = "cpu", workers: int = 0) -> list[dict]:
    """Return how well measured volumes agree with a BIDS cohort's participants.tsv, one row of `accuracy_row` per quantity."""
    images, rows = read_true(cohort)
    for path in images:
        find_row(rows, *identity_of(path))  # before the images are measured
    measured, refused = measured_rows(images, weights, device, workers, Journal("/dev/null"))
    for row in refused:
        print("left out:", row["error"], file=sys.stderr)
    used: dict[str, dict[str | None, Row]] = {}
    for row in measured:
        found = find_row(rows, row["participant_id"], row["session_id"])
        used.setdefault(row["participant_id"], {})[row["session_id"]] = found
    for participant, sessions in used.items():
        refuse_given_once(participant, sessions, VOLUMES)
    own = [used[row["participant_id"]][row["session_id"]] for row in measured]
    true = typed([row["participant_id"] for row in measured], VOLUMES, [row.cells for row in own], [row.where for row in own])
    spacing_mm = float(nib.affines.voxel_sizes(open_image(images[0]).affine).max())
    return [accuracy_row(cohort.name, spacing_mm, name, true[name], [row[name] for row in measured]) for name in VOLUMES]


def main() -> int:
    arguments = parse()
    if arguments.accuracy:
        print(format_table(accuracy(arguments.accuracy, arguments.weights, arguments.use_device, arguments.workers)))
        return 0
    refuse_unwritable(arguments.output, arguments.images)
    refuse_users_columns(arguments.output, COLUMNS)

    images = find_images(arguments.images)
    journal = Journal(arguments.output, [sha256(file) for file in (arguments.weights, volume_net.__file__, __file__)])
    measured, refused = measured_rows(images, arguments.weights, arguments.use_device, arguments.workers, journal)
    write_table(measured, arguments.output)
    journal.close()
    warn_of_mixed_spacings([Path(row["file"]) for row in measured])
    status = f"{arguments.output}: {count(measured, 'volume')} measured.\n{describe_accuracy(arguments.weights)}"
    print(status, file=sys.stderr if is_device(arguments.output) else sys.stdout)
    for row in refused:
        print("refused:", row["error"], file=sys.stderr)
    return 1 if refused else 0


if __name__ == "__main__":
    refusals.run(main)
