"""Write an HTML page and a picture that show how generated volumes look, and whether they show what was requested.

    python scripts/report.py GENERATED_DIR [--measured volumes.tsv [ages.tsv ...]] [--evaluation DIR ...] [--output report.html]
        [--real COHORT_DIR --real_measured real_volumes.tsv ...] [--synthetic SYNTHETIC_DIR] [--training DIR ...]

GENERATED_DIR is the output folder of inference with either bundle. To show both bundles on one page, give the folder of the
brain LDM, and the folder of SPADE fusion with --synthetic. To compare requested with measured values, first measure the volumes
with scripts/measure_volumes.py. The page contains all its pictures and volumes, so it opens without a network. The picture is a
.png file with the same name. The tool is for research, not for clinical use.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from command_line import Parser
from whole_numbers import at_least

COARSEST_MM = 10  # chosen: larger voxels show no anatomy


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    paths = {"type": Path, "nargs": "+", "default": []}
    parser.add_argument("generated", type=Path, metavar="GENERATED_DIR", help="output of inference, with participants.tsv")
    parser.add_argument("--measured", **paths, metavar="TSV", help="tables of measure_volumes.py or a regressor (column age)")
    parser.add_argument("--evaluation", **paths, metavar="DIR", help="output folders of evaluations, whose sections are shown")
    parser.add_argument("--real", type=Path, metavar="COHORT_DIR", help="BIDS cohort with true values, for comparison")
    parser.add_argument("--real_measured", **paths, metavar="TSV", help="tables of measurements for all or part of the cohort")
    synthetic = "output of inference of SPADE fusion, shown on the same page beside its label maps"
    parser.add_argument("--synthetic", type=Path, metavar="SYNTHETIC_DIR", help=synthetic)
    parser.add_argument("--training", **paths, metavar="DIR", help="output_dir of trainings, to show steps, time and curves")
    parser.add_argument("--training_note", default="", metavar="TEXT", help="sentence above the curves of the trainings")
    parser.add_argument("--gallery", type=at_least(1), default=24, metavar="N", help="generated volumes to show (default 24)")
    viewer = "volumes of each generated folder that the viewer can open (default: all that the page shows)"
    parser.add_argument("--viewer", type=at_least(0), metavar="N", help=viewer)
    scans = "scans that the viewer can open (default 0, because a whole head can identify a person)"
    parser.add_argument("--viewer_scans", type=at_least(0), default=0, metavar="N", help=scans)
    parser.add_argument(
        "--viewer_spacing_mm", type=float, help="resample the viewer's volumes (default: as fine as 11 MB allow)"
    )
    parser.add_argument("--output", type=Path, help="HTML file (default: GENERATED_DIR_report.html, next to the folder)")
    options = parser.parse_args(arguments)
    if options.real is None and (options.real_measured or options.viewer_scans):
        parser.error("--real_measured and --viewer_scans need --real")
    if options.viewer_spacing_mm is not None and not 0 < options.viewer_spacing_mm <= COARSEST_MM:
        parser.error(f"--viewer_spacing_mm must be above 0 and at most {COARSEST_MM}, got {options.viewer_spacing_mm:g}")
    if options.output is None:
        folder = options.generated.resolve()
        options.output = folder.with_name(f"{folder.name}_report.html")
    if options.output.suffix != ".html":
        parser.error(f"--output must end in .html, got {options.output}")
    return options


if __name__ == "__main__":
    parse()  # answers --help and wrong options before the imports below, which take seconds

import numpy as np
from cohorts.cohort import Cohort, describe, read_cohort, refuse_requests, refuse_same_folder
from cohorts.scans_or_synthetic import refuse_scans, refuse_synthetic, warn_of_missing_sidecars
from nibabel.affines import voxel_sizes
from report_page.embedded_volumes import fitting_spacing
from report_page.label_names import read_label_names
from report_page.overview import columns, from_map, overview
from report_page.page import Content, page
from report_page.provenance import provenance_rows
from report_page.read_sections import find_sections, name_others
from report_page.training_log import draw_curves, training_rows
from shared import refusals
from shared.files import atomic, refuse_unwritable
from shared.nifti import open_image, refuse_damaged

LARGE_MB = 20  # some browsers take seconds to open such a page


def read_content(options: argparse.Namespace) -> Content:
    """Read and check everything that the page shows, except the voxels of the volumes."""
    sections = find_sections(options.evaluation)
    refuse_same_folder(filter(None, (options.generated, options.real, options.synthetic)))
    refuse_requests(options.measured)
    cohorts = {"generated": read_cohort(options.generated, options.measured)}
    if options.real:
        cohorts["cohort"] = read_cohort(options.real, options.real_measured, everyone=not options.real_measured)
    if options.synthetic:
        cohorts["synthetic"] = read_cohort(options.synthetic)
    for cohort in cohorts.values():
        if cohort.expected.empty:
            raise ValueError(f"{cohort.folder / 'participants.tsv'}: lists no volume")
    for kind, where in (("generated", "GENERATED_DIR"), ("synthetic", "--synthetic"), ("cohort", "--real")):
        for image in cohorts[kind].images.values() if kind in cohorts else ():
            (refuse_synthetic if kind == "cohort" else refuse_scans)(image, where)
    for kind in cohorts.keys() & {"generated", "synthetic"}:
        warn_of_missing_sidecars(cohorts[kind].images.values())
    for volume, image in cohorts["synthetic"].images.items() if options.synthetic else ():
        if not cohorts["synthetic"].from_map(volume):
            raise ValueError(f"{image}: was not made from a label map, but --synthetic takes only such. Give their folder")
    name_others(sections, [cohorts[kind].folder for kind in ("generated", "synthetic") if kind in cohorts])
    content = Content(
        cohorts=cohorts,
        names={kind: read_label_names(cohort.folder) for kind, cohort in cohorts.items()},
        gallery=options.gallery,
        in_viewer={"generated": options.viewer, "cohort": options.viewer_scans, "synthetic": options.viewer},
        viewer_spacing_mm=options.viewer_spacing_mm,
        sections=sections,
        curves=[curve for folder in options.training for curve in draw_curves(folder)],
        training_note=options.training_note,
    )
    shown = {(kind, volume) for kind, drawn in content.drawn.items() for volume in drawn} | set(from_map(cohorts).items())
    shown |= {(column.kind, volume) for column in columns(cohorts) for volume in column.volumes if volume is not None}
    refuse_damaged([path for kind, volume in sorted(shown) for path in cohorts[kind].files([volume])])
    if content.viewer_spacing_mm is None:
        viewed = {kind: list(content.numbers(kind)) for kind in cohorts}
        content.viewer_spacing_mm = fitting_spacing(
            [(cohorts[kind], some, content.names[kind]) for kind, some in viewed.items() if some]
        )
    content.picture = overview(cohorts, content.names)
    if options.real:
        content.provenance.append(["Cohort", describe(cohorts["cohort"])])
        content.provenance.append(["Voxels", compare_voxels(cohorts["generated"], cohorts["cohort"])])
    for folder in options.training:
        content.provenance += training_rows(folder)
    for kind in ("generated", "synthetic"):
        content.provenance += provenance_rows(cohorts[kind], content.drawn[kind]) if kind in cohorts else []
    return content


def compare_voxels(generated: Cohort, scans: Cohort) -> str:
    """Say how large the voxels of the first head of both are, and warn if they differ."""
    ours, theirs = (voxel_sizes(open_image(next(iter(each.images.values()))).affine) for each in (generated, scans))
    of_ours, of_theirs = (" x ".join(f"{side:.3g}" for side in sizes) + " mm" for sizes in (ours, theirs))
    if np.allclose(np.sort(ours), np.sort(theirs), rtol=0.01):
        return of_ours
    incomparable = "Their sharpness cannot be compared"
    print(f"{generated.folder} has voxels of {of_ours}, {scans.folder} of {of_theirs}. {incomparable}", file=sys.stderr)
    return f"{of_ours} generated, {of_theirs} scans. {incomparable}"


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    picture = options.output.with_suffix(".png")
    for output in (options.output, picture):
        refuse_unwritable(output)
    content = read_content(options)
    with atomic(options.output) as file:
        file.writelines(part.encode() for part in page(content))
    with atomic(picture) as file:
        file.write(content.picture)
    size_mb = options.output.stat().st_size / 1e6
    print(f"{options.output} ({size_mb:.1f} MB) and {picture}")
    if size_mb > LARGE_MB:
        print("The page is large. --viewer 8, --viewer_spacing_mm 2 or a shorter --gallery make it smaller")


if __name__ == "__main__":
    refusals.run(main)
