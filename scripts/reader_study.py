"""Make and score a reader study. Do people take synthetic slices for real ones, and how do they rate the image quality?

    python scripts/reader_study.py make --real DIR [--split test] --synthetic DIR --output STUDY_DIR
        [--slices 60] [--repeats 0.1] [--seed 0]
    python scripts/reader_study.py rate STUDY_DIR/page/reader_study.html --output STUDY_DIR/computed [--seed 0]
    python scripts/reader_study.py score STUDY_DIR/key/key.tsv results1.tsv [results2.tsv ...] [STUDY_DIR/computed/*.tsv]
        --output DIR [--title "Reader study"] [--partial] [--seed 0]

`make` writes STUDY_DIR/page/reader_study.html. The page shows random slices of real and synthetic volumes in three directions,
blinded, shuffled and balanced. It is one file that opens in any browser without a network: send it to the readers. They rate
each slice from 1 (very good) to 5 (very poor) and guess whether it is real, with keys or mouse. Their answers stay in the
browser until they save them as a file. STUDY_DIR/key/key.tsv holds the right answers. Do not send it.

All volumes must lie on one grid and be prepared in the same way, for example by prepare_data.py. Otherwise resolution and field
of view would reveal which is which. Air is drawn black in both kinds and is not judged, because it is noisy in scans and empty
in many synthetic volumes. A study is refused if the two kinds show different parts of the head, such as brains and whole heads.
Give real scans that the model was not trained on: `--split test` takes the test split of participants.tsv.

`rate` writes the results of four computed readers in the same format. They see only the page. Three rank the slices by one cue
(sharpness, contrast or noise) and guess that the half with more of it is real; "chance" answers at random. Compare people with
them. They do not replace people, because they cannot judge whether an image looks right.

`score` unblinds the readers' files. It gives the frequencies of the ratings (as in Figure 4C of Ayaz et al. 2022), means with
intervals, agreement between and within readers (weighted kappa), and the share of right guesses with an exact interval.
Computed readers are marked, and they are counted separately from people. scripts/report.py --evaluation shows
reader_study.section.json. To show two studies on one page, give each its own folder and --title. The tool is for research, not
for clinical use.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from command_line import Parser
from shared.participants import split_name
from whole_numbers import at_least


def parse() -> argparse.Namespace:
    parser = Parser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make", help="write the page for the readers, and its key")
    make.add_argument("--real", type=Path, nargs="+", required=True, metavar="DIR", help="folders or files of real volumes")
    only = "take only this split of participants.tsv in --real, such as test"
    make.add_argument("--split", type=split_name, metavar="NAME", help=only)
    make.add_argument("--synthetic", type=Path, nargs="+", required=True, metavar="DIR", help="the same for synthetic volumes")
    make.add_argument("--output", type=Path, required=True, metavar="STUDY_DIR", help="folder of this study")
    make.add_argument("--slices", type=int, default=60, help="number of different slices, a multiple of 6 (default 60)")
    make.add_argument("--repeats", type=float, default=0.1, help="fraction of the slices that are shown twice (default 0.1)")
    make.add_argument("--seed", type=at_least(0), default=0, help="another seed chooses other slices (default 0)")
    rating = commands.add_parser("rate", help="let computed readers rate the page")
    rating.add_argument("page", type=Path, metavar="STUDY_DIR/page/reader_study.html")
    rating.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for one file per computed reader")
    rating.add_argument("--seed", type=at_least(0), default=0, help="seed of the reader who answers at random (default 0)")
    scoring = commands.add_parser("score", help="unblind the readers' files")
    scoring.add_argument("key", type=Path, metavar="STUDY_DIR/key/key.tsv")
    scoring.add_argument("results", type=Path, nargs="+", metavar="RESULTS.tsv", help="one file per reader")
    scoring.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the scores")
    scoring.add_argument("--title", default="Reader study", help="title on the page of report.py")
    scoring.add_argument("--partial", action="store_true", help="accept readers who did not finish")
    scoring.add_argument("--seed", type=at_least(0), default=0, help="seed of the bootstrap (default 0)")
    return parser.parse_args()


if __name__ == "__main__":
    parse()  # answers --help and wrong options before the imports below, which take seconds

from reader_studies.make import make_study
from reader_studies.rate import rate
from reader_studies.score import read_key, read_results, score, unblind
from reader_studies.score_report import write_scores
from reader_studies.slices import read_splits
from shared import refusals
from shared.files import refuse_unwritable


def main() -> int:
    options = parse()
    if options.command == "make":
        for folder in options.real:
            if options.split is None and len(set(read_splits(folder).values())) > 1:
                print(
                    f"{folder}: shows all splits, also the training split. Add --split test",
                    file=sys.stderr,
                )
        settings = (options.slices, options.repeats, options.seed, options.split)
        page, key = make_study(options.real, options.synthetic, options.output, *settings)
        size_mb = page.stat().st_size / 1e6
        print(f"{page}: send this page to the readers ({size_mb:.1f} MB)\n{key}: the right answers. Do not send them")
    elif options.command == "rate":
        refuse_unwritable(options.output / "chance.tsv")
        paths = rate(options.page, options.output, options.seed)
        print(f"{options.output}: {', '.join(path.name for path in paths)}, for `score`. These are rules, not people")
    else:
        refuse_unwritable(options.output / "reader_study.json")
        key = read_key(options.key)
        results = [read_results(path, key, options.partial) for path in options.results]
        answers, unfinished = unblind(key, results), any(len(result) < len(key) for result in results)
        write_scores(score(key, answers, options.seed), answers, options.output, unfinished, options.title)
        print(f"{options.output}: ratings.tsv, reader_study.json, reader_study.png and reader_study.section.json")
    return 0


if __name__ == "__main__":
    refusals.run(main)
