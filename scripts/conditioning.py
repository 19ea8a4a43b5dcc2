"""Check whether generated volumes show what was requested, and whether brains and ventricles are as large as real ones.

    python scripts/conditioning.py GENERATED_DIR --measured volumes.tsv [ages.tsv ...] --output DIR
        [--real COHORT_DIR --real_measured real_volumes.tsv ...]
        [--reconstructed RECONSTRUCTIONS_DIR --reconstructed_measured reconstructed_volumes.tsv ...]
        [--sweeps SWEEPS_DIR --sweep ventricles_ml --sweep age --sweeps_measured sweeps_volumes.tsv ...]

The command reads the tables of measurement once, and writes up to three answers into DIR. If the input for an answer is not
given, the command says so and leaves the answer out.

Requested against measured values (Figure 3 of Pinaya et al. 2022), from GENERATED_DIR and --measured
    figure3.png                one panel per quantity and tool, with the line of equality
    conditioning.json          r, partial r, slope, bias and error with their intervals, or the reason why there are none

Sweeps of one covariate with constant noise (Figures 2 and 4), from --sweeps and --sweep
    figure2.png  figure4.png   volumes within the range of the model, and beyond it
                               (request the sweeps with: make_requests.py --sweep NAME LOW HIGH --noises 3 --extrapolate)

Distributions of sizes, from --measured and --real_measured
    volumes.tsv  volumes.json  Wasserstein-1 distance in mL of real and generated volumes: interval, floor, trivial answer, p
    volumes.png                histograms
    Only this answer needs no folders: --measured generated.tsv --real_measured real.tsv [--reconstructed_measured r.tsv]

Each answer has a NAME.section.json for scripts/report.py --evaluation DIR. The tables come from scripts/measure_volumes.py,
scripts/read_volumes.py, or a regressor. Scans with known values, and the same scans through the autoencoder, show how well the
tools can measure. The command is for research, not for clinical use.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path

from command_line import Parser
from whole_numbers import at_least


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    add, tables = parser.add_argument, {"type": Path, "nargs": "+", "default": [], "metavar": "TABLE_TSV"}
    folder = "folder that inference wrote, with participants.tsv"
    add("generated", type=Path, nargs="?", metavar="GENERATED_DIR", help=folder)
    add("--measured", **tables, help="measurements of GENERATED_DIR; sizes are compared by the first tool")
    add("--real", type=Path, metavar="COHORT_DIR", help="BIDS cohort of scans with true values")
    training = "tables of the same tools for the scans; if the cohort has a column split, its training split is left out"
    add("--real_measured", **tables, help=training)
    kept = "the cohort's scans through the autoencoder, which --reconstructions_dir of configs/evaluate.json keeps"
    add("--reconstructed", type=Path, metavar="DIR", help=kept)
    add("--reconstructed_measured", **tables, help="tables of the same tools for these scans")
    add("--sweeps", type=Path, metavar="SWEEPS_DIR", help="folder that inference wrote for a table of sweeps")
    add("--sweeps_measured", **tables, help="measurements of SWEEPS_DIR")
    swept = "covariate that was swept; may be given several times"
    add("--sweep", action="append", default=[], metavar="NAME", help=swept)
    add("--seed", type=at_least(0), default=0, help="seed of the resampling for the sizes (default 0)")
    add("--output", type=Path, required=True, metavar="DIR", help="folder for figures, numbers and sections")
    options = parser.parse_args(arguments)
    if (options.sweeps is None) != (not options.sweep) or (options.sweeps_measured and options.sweeps is None):
        parser.error("--sweeps (the folder) and --sweep (the covariates) need each other")
    return options


if __name__ == "__main__":
    parse()  # answers --help and wrong options before the imports below, which take seconds

from cohorts.cohort import Cohort, read_cohort, refuse_other_tools, refuse_requests, refuse_same_folder
from cohorts.origin import note_on_edits
from cohorts.row_matching import read_by_participant, split_by_tool
from cohorts.scans_or_synthetic import refuse_scans, refuse_synthetic, warn_of_missing_sidecars
from conditioning_parts.report_section import ReportSection
from conditioning_parts.requested_against_measured import GENERATED, SCANS, THROUGH, requested_against_measured
from conditioning_parts.size_distributions import ImpossibleSize, size_distributions
from conditioning_parts.sweep_figures import sweep_figures
from conditioning_parts.sweeps import find_sweeps
from shared import refusals
from shared.files import refuse_unwritable
from shared.sections import drop_sections
from shared.tables import print_table


def read_cohorts(options: argparse.Namespace) -> dict[str, Cohort]:
    """Read each folder that was given, with its tables. Scans of the training split are left out."""
    folders = {GENERATED: options.generated, SCANS: options.real, THROUGH: options.reconstructed}
    refuse_same_folder(filter(None, folders.values()))
    refuse_requests([*options.tables[GENERATED], *options.sweeps_measured])
    cohorts = {}
    for kind, folder in folders.items():
        if (folder is None) != (not options.tables[kind]) and any(folders.values()):
            raise ValueError(f"{kind}: give both the folder and the tables of what was measured in it")
        if folder is not None:
            cohort = read_cohort(folder, options.tables[kind], everyone=kind == GENERATED)
            for image in cohort.images.values():
                if kind == GENERATED:
                    refuse_scans(image, "GENERATED_DIR")
                elif kind == SCANS:
                    refuse_synthetic(image, "--real")
            if kind == GENERATED:
                warn_of_missing_sidecars(cohort.images.values())
            cohorts[kind] = cohort.unseen() if kind == SCANS else cohort
    for cohort in cohorts.values():
        refuse_other_tools(next(iter(cohorts.values())), cohort)
    return cohorts


def sizes(options: argparse.Namespace, cohorts: dict[str, Cohort]) -> ReportSection:
    """Return the distributions of sizes, from the cohorts or, if no folder was given, from the tables alone."""
    measured = {kind: cohort.rows_by_tool() for kind, cohort in cohorts.items()}
    for kind, paths in options.tables.items() if not cohorts else ():
        for path in paths:
            table = read_by_participant(path, several_rows=True)
            if "tool" not in table:
                warnings.warn(f"{path}: has no column tool, so measure_volumes.py counts as its tool", stacklevel=2)
            tools = split_by_tool(table, default="measure_volumes.py")
            if twice := measured.setdefault(kind, {}).keys() & tools:
                raise ValueError(f"{path}: an earlier table of {kind} is also by {twice.pop()}. Join both into one table")
            measured[kind] |= tools
    return size_distributions(measured, options.tables, options.seed)


def make_sections(options: argparse.Namespace) -> tuple[list[ReportSection], dict[str, str]]:
    """Return the answers with input, and for each other answer the reason why it is left out."""
    cohorts = read_cohorts(options)
    sections, left_out = [], {}
    if GENERATED in cohorts:
        sections.append(requested_against_measured(cohorts))
        sections[-1].volumes = [options.generated]
        sections[-1].edits = note_on_edits(cohorts[GENERATED].images.values())
    else:
        left_out["requested against measured"] = "give GENERATED_DIR and --measured"
    if options.sweeps:
        swept = read_cohort(options.sweeps, options.sweeps_measured)
        sweeps = [sweep for name in dict.fromkeys(options.sweep) for sweep in find_sweeps(swept, name)]
        scans = cohorts.get(SCANS) if swept.tables else None
        if scans:
            refuse_other_tools(swept, scans)
        found = sweep_figures(swept, sweeps, scans)
        for section in found:
            section.edits = note_on_edits(swept.images.values())
        sections += found
    else:
        left_out["sweeps"] = "give --sweeps and --sweep"
    if options.tables[GENERATED] and options.tables[SCANS]:
        try:
            sections.append(sizes(options, cohorts))
            sections[-1].scans = [cohorts[SCANS].folder] if SCANS in cohorts else []
            sections[-1].volumes = [options.generated] if GENERATED in cohorts else []
            sections[-1].edits = note_on_edits(cohorts[GENERATED].images.values()) if GENERATED in cohorts else ""
        except ValueError as error:
            if not sections or isinstance(error, ImpossibleSize):
                raise
            left_out["distributions of sizes"] = str(error)
    else:
        left_out["distributions of sizes"] = "give --measured and --real_measured"
    if not sections:
        raise ValueError("; ".join(f"{name}: {reason}" for name, reason in left_out.items()))
    return sections, left_out


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    options.tables = {GENERATED: options.measured, SCANS: options.real_measured, THROUGH: options.reconstructed_measured}
    refuse_unwritable(options.output / "conditioning.json")
    sections, left_out = make_sections(options)
    if options.sweeps:
        drop_sections(options.output, "figure2", "figure4")
    if options.tables[GENERATED] and options.tables[SCANS]:
        drop_sections(options.output, "volumes")
    for section in sections:
        names = section.write(options.output)
        for table in section.tables:
            print_table(table)
        print(f"{options.output}: {', '.join(names)}\n")
    for name, reason in left_out.items():
        print(f"Left out: {name}. {reason[:1].upper()}{reason[1:]}.")


if __name__ == "__main__":
    refusals.run(main)
