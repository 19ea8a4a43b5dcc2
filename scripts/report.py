"""One HTML page and one picture about a generated cohort: does it look right, does it have the volumes it was asked for?

    python scripts/report.py GENERATED_DIR --measured generated_volumes.tsv --output report.html
        [--real COHORT_DIR --real_measured real_volumes.tsv] [--reconstruction reconstruction.json]
        [--training TRAINING_DIR] [--facts weights.json]

Measure first, with scripts/measure_volumes.py. The page holds its pictures and opens without a network; the picture lies
beside it as .png. Research tool, not for clinical use.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

from report_cohort import describe, evenly, read_cohort
from report_page import make_page
from report_pictures import overview
from report_tables import provenance_rows, training_rows
from training_curves import draw as draw_curves


def write_whole(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")
    partial.write_bytes(content)
    os.replace(partial, path)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("generated", type=Path, metavar="GENERATED_DIR", help="what inference wrote, with participants.tsv")
    parser.add_argument("--measured", type=Path, required=True, help="table of measure_volumes.py for it")
    parser.add_argument("--real", type=Path, metavar="COHORT_DIR", help="BIDS cohort whose participants.tsv has true volumes")
    parser.add_argument("--real_measured", type=Path, help="table of measure_volumes.py for (a part of) it")
    parser.add_argument("--reconstruction", type=Path, help="reconstruction.json of the bundle's evaluation")
    parser.add_argument("--training", type=Path, help="training's output_dir: steps and time are read from it")
    parser.add_argument("--facts", type=Path, nargs="*", default=[], help="flat JSON files to list, such as of weights")
    parser.add_argument("--gallery", type=int, default=64, help="generated volumes to show (default 64)")
    parser.add_argument("--output", type=Path, required=True, help="the page, .html; the picture lies beside it as .png")
    options = parser.parse_args(arguments)
    if (options.real is None) != (options.real_measured is None):
        parser.error("--real and --real_measured go together")
    if options.output.suffix != ".html":
        parser.error(f"--output must end in .html, got {options.output}")
    try:
        cohorts = {"generated": read_cohort(options.generated, options.measured, everyone=True)}
        if options.real:
            cohorts["cohort"] = read_cohort(options.real, options.real_measured)
        quantity = cohorts["generated"].quantities()[0]
        curves = draw_curves(options.training) if options.training else None
        provenance = [["Cohort", describe(cohorts["cohort"])]] if options.real else []
        if options.training:
            provenance += training_rows(options.training)
        for file in options.facts:
            provenance += [[f"{file.stem}, {name}", str(value)] for name, value in json.loads(file.read_text()).items()]
        drawn = evenly(cohorts["generated"].sorted_by(quantity), options.gallery)
        provenance += provenance_rows(cohorts["generated"], drawn)
        reconstruction = json.loads(options.reconstruction.read_text()) if options.reconstruction else None
        picture = overview(cohorts, quantity)
        accuracy_file = Path(__file__).with_name("volume_net.json")
        page = make_page(cohorts, picture, quantity, options.gallery, accuracy_file, reconstruction, provenance, curves)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"error: {error}") from None
    write_whole(options.output.with_suffix(".png"), picture)
    write_whole(options.output, page.encode())
    print(f"{options.output} and {options.output.with_suffix('.png')}")


if __name__ == "__main__":
    main()
