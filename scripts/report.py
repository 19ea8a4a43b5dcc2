"""One HTML page and one picture about a folder of generated volumes: how they look, and whether they are what was asked for.

    python scripts/report.py GENERATED_DIR [--measured volumes.tsv [ages.tsv ...]] [--evaluation DIR ...] [--output report.html]
        [--real COHORT_DIR --real_measured real_volumes.tsv ...] [--training TRAINING_DIR] [--facts weights.json]
        [--gallery 64] [--viewer 24]

GENERATED_DIR is what inference of either bundle wrote. Measure first with scripts/measure_volumes.py to see requested against
measured values. The page holds all that it shows, pictures and volumes, and opens without a network; the picture lies beside it
as .png. Research tool, not for clinical use.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from cohorts.cohort import describe, read_cohort
from report_page.agreement_table import provenance_rows, training_rows
from report_page.label_names import read_label_names
from report_page.page import Content, page
from report_page.plots import overview
from report_page.read_sections import find_sections
from report_page.training_log import draw as draw_curves
from shared.files import read_json

LARGE_MB = 50  # a page that some browsers take seconds to open


def read_content(options: argparse.Namespace) -> Content:
    """All that the page shows, read and checked, except the volumes themselves."""
    sections = find_sections(options.evaluation)
    cohorts = {"generated": read_cohort(options.generated, options.measured)}
    if options.real:
        cohorts["cohort"] = read_cohort(options.real, options.real_measured, everyone=not options.real_measured)
    for cohort in cohorts.values():
        if cohort.expected.empty:
            raise ValueError(f"{cohort.folder / 'participants.tsv'}: lists no volume")
    provenance = [["Cohort", describe(cohorts["cohort"])]] if options.real else []
    if options.training:
        provenance += training_rows(options.training)
    for file in options.facts:
        provenance += [[f"{file.stem}, {name}", str(value)] for name, value in read_json(file).items()]
    content = Content(
        cohorts=cohorts,
        picture=overview(cohorts),
        names=read_label_names(options.generated),
        shown=options.gallery,
        in_viewer=options.viewer,
        facts_file=Path(__file__).with_name("measurement").joinpath("volume_net.json"),
        scans_in_viewer=options.viewer_scans,
        viewer_spacing_mm=options.viewer_spacing_mm,
        sections=sections,
        curves=draw_curves(options.training) if options.training else None,
    )
    content.provenance = provenance + provenance_rows(cohorts["generated"], content.drawn["generated"])
    return content


def write_whole(path: Path, parts: Iterable[bytes]) -> None:
    """Write a file in parts; where that fails, nothing is left and an older one stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")
    try:
        with open(partial, "wb") as file:
            file.writelines(parts)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    paths = {"type": Path, "nargs": "+", "default": []}
    parser.add_argument("generated", type=Path, metavar="GENERATED_DIR", help="what inference wrote, with participants.tsv")
    parser.add_argument("--measured", **paths, metavar="TSV", help="tables of measure_volumes.py, of a regressor (column age)")
    parser.add_argument("--evaluation", **paths, metavar="DIR", help="folders that evaluations wrote: all their sections")
    parser.add_argument("--real", type=Path, metavar="COHORT_DIR", help="BIDS cohort with true values, to compare with")
    parser.add_argument("--real_measured", **paths, metavar="TSV", help="tables of measurement for it or a part of it")
    parser.add_argument("--training", type=Path, help="training's output_dir: steps, time and curves are read from it")
    parser.add_argument("--facts", type=Path, nargs="*", default=[], help="flat JSON files to list, such as of weights")
    parser.add_argument("--gallery", type=int, default=64, metavar="N", help="generated volumes to show (default 64)")
    parser.add_argument(
        "--viewer", type=int, default=24, metavar="N", help="volumes inside the page for its viewer (default 24)"
    )
    scans = "the same for scans (default 0: whole heads of persons go into a page only when told)"
    parser.add_argument("--viewer_scans", type=int, default=0, metavar="N", help=scans)
    parser.add_argument("--viewer_spacing_mm", type=float, help="resample the viewer's volumes (default: all their voxels)")
    parser.add_argument("--output", type=Path, help="the page (default: GENERATED_DIR_report.html, beside it), picture: .png")
    options = parser.parse_args(arguments)
    if options.real_measured and options.real is None:
        parser.error("--real_measured needs --real")
    if options.viewer_scans and options.real is None:
        parser.error("--viewer_scans needs --real")
    if options.gallery < 1 or options.viewer < 0 or options.viewer_scans < 0:
        parser.error("--gallery must be 1 or more, --viewer and --viewer_scans 0 or more")
    if options.viewer_spacing_mm is not None and not options.viewer_spacing_mm > 0:
        parser.error(f"--viewer_spacing_mm must be positive, got {options.viewer_spacing_mm:g}")
    if options.output is None:
        folder = options.generated.resolve()
        options.output = folder.with_name(f"{folder.name}_report.html")
    if options.output.suffix != ".html":
        parser.error(f"--output must end in .html, got {options.output}")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    try:
        content = read_content(options)
        write_whole(options.output, (part.encode() for part in page(content)))
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"error: {error}") from None
    write_whole(options.output.with_suffix(".png"), [content.picture])
    size_mb = options.output.stat().st_size / 1e6
    print(f"{options.output} ({size_mb:.1f} MB) and {options.output.with_suffix('.png')}")
    if size_mb > LARGE_MB:
        print("The page is large. --viewer 8, --viewer_spacing_mm 2 or a shorter --gallery make it smaller")


if __name__ == "__main__":
    main()
