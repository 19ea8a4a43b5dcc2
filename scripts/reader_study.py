"""Reader study: do people take synthetic slices for real ones, and how do they rate them?

    python scripts/reader_study.py make --real DIR [--split test] --synthetic DIR --output STUDY_DIR
        [--slices 60] [--repeats 0.1] [--seed 0]
    python scripts/reader_study.py rate STUDY_DIR/page/reader_study.html --output STUDY_DIR/computed [--seed 0]
    python scripts/reader_study.py score STUDY_DIR/key/key.tsv results1.tsv [results2.tsv ...] [STUDY_DIR/computed/*.tsv]
        --output DIR [--title "Reader study"] [--partial] [--seed 0]

`make` writes STUDY_DIR/page/reader_study.html, one file that opens in any browser, without a network: random slices of real and
synthetic volumes in three directions, blinded, shuffled and balanced. Send it to the readers. They rate each slice from 1 (very
good) to 5 (very poor) and guess whether it is real, by keys or mouse; answers stay in their browser until they save them as a
file. STUDY_DIR/key/key.tsv says which item is what: keep it to yourself.

All volumes must lie on one grid, prepared in the same way, such as by prepare_data.py: otherwise resolution and field of view
would give the answer away. Air is drawn black in both kinds, by the head that each volume shows, since it is noisy in scans and
empty in many synthetic volumes: air is not judged. Where the kinds show different parts of the head, such as brains and heads,
the study is refused. Give real scans that the model was not trained on: `--split test` takes those of participants.tsv.

`rate` writes the results of four computed readers, in the same format: rules that see nothing but the page. Three rate by one
cue, sharpness, contrast or noise, by rank, and take the half of the slices with more of it for real; "chance" answers at
random. They are the yardstick beside people, and no substitute: they cannot say whether an image looks right.

`score` unblinds the files of the readers: frequency chart of the ratings, means with intervals, agreement between and within
readers (weighted kappa), guesses with an exact interval; after Figure 4C of Ayaz et al. 2022. Computed readers stand apart
from people and are marked. reader_study.section.json is for scripts/report.py --evaluation; two studies on one page need a
folder and a --title each. Research tool, not for clinical use.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from reader_studies.make import make_study, read_splits
from reader_studies.rate import rate
from reader_studies.score import read_key, read_results, score, unblind
from reader_studies.score_report import write_scores


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make", help="write the page for the readers, and its key")
    make.add_argument("--real", type=Path, nargs="+", required=True, metavar="DIR", help="folders or files of real volumes")
    make.add_argument("--split", metavar="NAME", help="take only this split of participants.tsv in --real, such as test")
    make.add_argument("--synthetic", type=Path, nargs="+", required=True, metavar="DIR", help="of synthetic ones, same grid")
    make.add_argument("--output", type=Path, required=True, metavar="STUDY_DIR", help="folder of this study")
    make.add_argument("--slices", type=int, default=60, help="different slices, a multiple of 6 (default 60)")
    make.add_argument("--repeats", type=float, default=0.1, help="share of them that is shown twice (default 0.1)")
    make.add_argument("--seed", type=int, default=0, help="of the choice")
    rating = commands.add_parser("rate", help="let computed readers rate the page")
    rating.add_argument("page", type=Path, metavar="STUDY_DIR/page/reader_study.html")
    rating.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for a file of each computed reader")
    rating.add_argument("--seed", type=int, default=0, help="of the reader who answers at random")
    scoring = commands.add_parser("score", help="unblind the readers' files")
    scoring.add_argument("key", type=Path, metavar="STUDY_DIR/key/key.tsv")
    scoring.add_argument("results", type=Path, nargs="+", metavar="RESULTS.tsv", help="one file per reader")
    scoring.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write into")
    scoring.add_argument("--title", default="Reader study", help="of the section on the page of report.py")
    scoring.add_argument("--partial", action="store_true", help="accept readers who did not finish")
    scoring.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    arguments = parser.parse_args()

    if arguments.command == "make":
        for folder in arguments.real:
            if arguments.split is None and len(set(read_splits(folder).values())) > 1:
                print(f"{folder}: scans of all splits are shown, also those of training. Add --split test", file=sys.stderr)
        settings = (arguments.slices, arguments.repeats, arguments.seed, arguments.split)
        page, key = make_study(arguments.real, arguments.synthetic, arguments.output, *settings)
        print(
            f"{page}: for the readers, opens in a browser ({page.stat().st_size / 1e6:.1f} MB)\n{key}: the answers, keep them"
        )
        return 0
    if arguments.command == "rate":
        paths = rate(arguments.page, arguments.output, arguments.seed)
        print(f"{arguments.output}: {', '.join(path.name for path in paths)}, for `score`. No person has rated by that")
        return 0
    key = read_key(arguments.key)
    results = [read_results(path, key, arguments.partial) for path in arguments.results]
    answers, unfinished = unblind(key, results), any(len(result) < len(key) for result in results)
    write_scores(score(key, answers, arguments.seed), answers, arguments.output, unfinished, arguments.title)
    print(f"{arguments.output}: ratings.tsv, reader_study.json, reader_study.png and reader_study.section.json")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
