"""Score any generator's folder of heads against real scans, and name what is wrong with it.

    python scripts/benchmark_generators.py FOLDER [FOLDER ...] --real STUDY --output DIR

FOLDER and STUDY hold NIfTI volumes of any grid, orientation and intensity convention: *_T1w.nii.gz anywhere below, or *.nii.gz
directly inside. Volumes must lie in MNI space by their affine; otherwise add --align. participants.tsv is read where it exists:
age, sex and volumes show whether requests are followed. The same number of volumes of each folder, one of each participant,
is compared with one half of the real scans. Other halves of the scans show how far scans are from scans, and scans with planted
defects show that each score finds its defect. Results: scoreboard.html, scoreboard.tsv and scoreboard.json in DIR. The tool is
for research, not for clinical use.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from command_line import Parser
from scoreboard import FEWEST
from whole_numbers import at_least


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("folders", type=Path, nargs="+", metavar="FOLDER", help="volumes of one generator")
    add("--real", type=Path, required=True, metavar="STUDY", help="real scans that the generators have not seen")
    add("--output", type=Path, required=True, metavar="DIR", help="folder for the results")
    number = "volumes of each set, if there are as many, and twice as many scans (default 50, some minutes on two cores)"
    add("--n", type=at_least(FEWEST), default=50, help=number)
    mask = "brain (default): inside of the skull, also for skull-stripped volumes; head: whole heads, faster, no structures"
    add("--mask", choices=("brain", "head"), default="brain", help=mask)
    add("--align", action="store_true", help="register each volume rigidly to MNI space first, some seconds each")
    add("--spacing_mm", type=float, default=4.0, help="voxel size of the common grid (default 4, as the default features need)")
    add("--extractor_file", type=Path, help="MedicalNet or RadImageNet, see docs/evaluation.md of the brain bundle")
    add("--extractor_sha256", help="hash that this file must have")
    add("--pairs", type=at_least(1), default=300, help="random pairs of volumes for MS-SSIM (default 300)")
    add("--seed", type=at_least(0), default=0, help="seed of the subsets, halves and pairs (default 0)")
    add("--use_device", default="auto", help="auto (a GPU if there is one; the default), cpu, cuda or cuda:1")
    add("--workers", type=at_least(0), default=0, help="processes that read volumes (default 0: this one)")
    parser.add_quiet()
    options = parser.parse_args(arguments)
    if options.extractor_sha256 is not None and options.extractor_file is None:
        parser.error("--extractor_sha256 is the hash of --extractor_file, which is missing")
    return options


if __name__ == "__main__":
    parse()  # answers --help and wrong options before the imports below, which take seconds

from cohorts.cohort import refuse_same_folder
from cohorts.origin import note_on_edits
from cohorts.scans_or_synthetic import refuse_synthetic
from scoreboard.board import HALF, Board, score_all, write_results
from scoreboard.conforming import Files
from scoreboard.measures import Meter
from scoreboard.naming import refuse_few_pairs
from scoreboard.page import page
from scoreboard.sets import find_volumes, read_table
from shared import mni_box, refusals
from shared.device import choose
from shared.files import atomic, refuse_unwritable
from shared.simulated import note_on


def benchmark(options: argparse.Namespace) -> Board:
    """Check the input, measure and score all sets, and write the results."""
    refuse_unwritable(options.output / "scoreboard.html")
    refuse_same_folder([options.real, *options.folders])
    mni_box.size(options.spacing_mm)
    names = [folder.resolve().name for folder in options.folders]
    names = [str(folder) if names.count(name) > 1 else name for folder, name in zip(options.folders, names, strict=True)]
    found = {name: find_volumes(folder, options.seed) for name, folder in zip(names, options.folders, strict=True)}
    scans = find_volumes(options.real, options.seed)
    for scan in scans:
        refuse_synthetic(scan, "--real")
    n = min(options.n, len(scans) // 2, *map(len, found.values()))
    if n < FEWEST:
        counts = ", ".join(f"{name}: {len(paths)}" for name, paths in found.items())
        raise ValueError(
            f"{options.real}: volumes of {len(scans)} participants ({counts}), but at least {FEWEST} of each set and "
            f"{2 * FEWEST} scans are needed. Add volumes"
        )
    refuse_few_pairs(options.pairs, n, options.seed)
    tables = {name: read_table(folder, found[name][:n]) for name, folder in zip(names, options.folders, strict=True)}
    table = read_table(options.real, scans[: 2 * n])
    extractor = (options.extractor_file, options.extractor_sha256)
    device = choose(options.use_device)
    meter = Meter(options.spacing_mm, options.mask, options.pairs, options.seed, device, options.workers, *extractor)

    real = meter.measure(Files(scans[: 2 * n], options.align), table, "scans")
    sets = {name: meter.measure(Files(paths[:n], options.align), tables[name], name) for name, paths in found.items()}
    if (n := min(n, len(real) // 2)) < FEWEST:
        raise ValueError(f"{options.real}: only {len(real)} scans can be measured. The first fault: {real.faults[0]}")
    board = score_all(meter, real, sets, n)
    settings = {
        "n": n,
        "extractor": meter.extractor.name,
        "features": board.space.text(meter.extractor.name).removeprefix("Features: "),
        "mask": options.mask,
        "spacing_mm": options.spacing_mm,
        "aligned": options.align,
        "pairs for MS-SSIM": options.pairs,
        "seed": options.seed,
        "scans": str(options.real),
        "folders": dict(zip(names, map(str, options.folders), strict=True)),
        "a copy has a relative distance below": board.floor.copied_below,
    }
    edits = note_on_edits(path for one in sets.values() for path in one.paths)
    parts = [part.encode() for part in page(board, settings, f"{edits} {note_on([options.real])}".strip())]
    write_results(board, settings, options.output)
    with atomic(options.output / "scoreboard.html") as file:
        file.writelines(parts)
    return board


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    board = benchmark(options)
    for name in (*board.sets, HALF):
        print(f"{name}: {', '.join(dict.fromkeys(board.named(name).values())) or 'nothing is named'}")
    lost = [name for name in board.controls if not board.finds(name)]
    print(f"Controls that were found: {len(board.controls) - len(lost)} of {len(board.controls)}. {', '.join(lost)}".strip())
    print(f"{options.output / 'scoreboard.html'}, scoreboard.tsv and scoreboard.json")


if __name__ == "__main__":
    refusals.run(main)
