"""Make labelled heads: a label map for each row of a table of requests, and a T1w of each map.

    python scripts/make_labelled_heads.py REQUESTS.tsv OUT

The table has a row for each head, as brain_ldm_bundle reads it: participant_id, age, sex, ventricles_ml and
brain_normalised_ml. First brain_ldm_bundle makes the label maps, in OUT/sourcedata/label_maps. Then spade_fusion_bundle makes
a T1w of each map. OUT becomes one BIDS data set with the images, their maps and the table of label values. The sidecar of an
image names the weights of both models. Heads that exist are skipped, so an interrupted command can be run again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from command_line import Parser
from whole_numbers import at_least

ROOT = Path(__file__).resolve().parents[1]
LDM, SPADE = ROOT / "brain_ldm_bundle", ROOT / "spade_fusion_bundle"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("requests", type=Path, metavar="REQUESTS.tsv", help="table of requests")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the data set")
    parser.add_argument(
        "--label_models",
        type=Path,
        default=LDM / "models" / "labels",
        help="folder of model.pt and autoencoder.pt of label maps",
    )
    parser.add_argument("--image_models", type=Path, default=SPADE / "models", help="folder of model.pt of spade_fusion_bundle")
    parser.add_argument("--variants", type=at_least(1), default=1, help="images of each map; all but the first are deformed")
    parser.add_argument("--shard", metavar="K/N", help="make the K-th of N parts of the table, such as 3/40")
    parser.add_argument("--seed", type=at_least(0), default=0, help="the same seed gives the same heads (default 0)")
    parser.add_argument("--acquisition", choices=("True", "False"), help="whether images get measured noise and bias field")
    parser.add_argument("--sampler_name", help="sampler of the label maps, such as dpm++")
    parser.add_argument("--steps", type=at_least(2), help="steps of the sampler")
    parser.add_argument("--use_device", help="auto, cpu or cuda")
    parser.add_quiet()
    return parser.parse_args(arguments)


if __name__ == "__main__":
    parse_arguments()  # answers --help and wrong options before the imports below, which take seconds

from shared import refusals
from shared.base_derivative import refuse_other_dataset
from shared.files import refuse_unwritable
from shared.label_table import LabelTable
from shared.participants import entity
from shared.problems import refuse
from shared.tables import read_numbered, write_table
from shared.team import shard_of
from shared.weights import read_recipe, refuse_missing

TRAIN = "python -m monai.bundle run training --config_file"
TRAIN_LABELS = f"{TRAIN} \"['{LDM.name}/configs/train.json','{LDM.name}/configs/labels.json']\" --dataset_dir DIR"
TRAIN_IMAGES = f"{TRAIN} {SPADE.name}/configs/train.json --dataset_dir DIR"


def refuse_other_models(label_models: Path, image_models: Path) -> None:
    """Refuse weights that are missing or no models of label maps, and two models of different tables or spacings."""
    files = label_models / "model.pt", image_models / "model.pt"
    refuse_missing(label_models / "autoencoder.pt", TRAIN_LABELS)
    found = []
    for file, made_by, what in zip(files, (TRAIN_LABELS, TRAIN_IMAGES), ("that makes", "that reads")):
        refuse_missing(file, made_by)
        recipe = read_recipe(file)
        if not recipe.get("labels"):
            raise ValueError(f"{file}: these weights are of no model {what} label maps. Make such weights with: {made_by}")
        table = LabelTable.from_dict(recipe["labels"], f"the table in {file}")
        names = {value: name.removeprefix("midline ") for value, name in table.value_names().items()}
        found.append((table.name, names, recipe.get("spacing_mm")))
    (table, names, spacing_mm), (other_table, other_names, other_spacing_mm) = found
    if names != other_names:
        raise ValueError(
            f"{files[0]} makes label maps with the values of the table {table!r}, but {files[1]} reads those of "
            f"{other_table!r}, which differ. Give two models of one table"
        )
    if spacing_mm != other_spacing_mm:
        raise ValueError(
            f"{files[0]} has voxels of {spacing_mm:g} mm, but {files[1]} of {other_spacing_mm:g} mm. Give two models of one "
            f"spacing"
        )


def participants_of(requests: Path, shard: str | None) -> list[str]:
    """Return the participants that a shard of a table of requests names, as brain_ldm_bundle divides the table."""
    header, rows, problems = read_numbered(requests, ["participant_id"])
    if "participant_id" not in header:
        raise ValueError(f"{requests}: no column 'participant_id'. It has: {', '.join(header)}")
    refuse(problems)
    return [entity("sub", cells["participant_id"]) for cells in shard_of(list(rows.values()), shard)]


def commands(options: argparse.Namespace, participants: Path) -> list[tuple[Path, list[str]]]:
    """Return the folder and the settings of both runs: the label maps, then their T1w.

    `participants` is the table of the participants whose T1w are made.
    """
    requests, out = options.requests.absolute(), options.out.absolute()  # because each run has its own working folder
    maps = out / "sourcedata" / "label_maps"
    both = {"seed": options.seed, "use_device": options.use_device}
    of_maps = {
        "requests": requests,
        "output_dir": maps,
        "models_dir": options.label_models.absolute(),
        "sampler_name": options.sampler_name,
        "steps": options.steps,
        "shard": options.shard,
    }
    of_images = {
        "label_maps": maps,
        "participants": participants,
        "partial_maps": True,  # the maps are known to be of this table, even if a model has not learnt all of its structures
        "output_dir": out,
        "models_dir": options.image_models.absolute(),
        "variants": options.variants,
        "acquisition": options.acquisition,
    }
    return [
        (folder, [text for name, value in (own | both).items() if value is not None for text in (f"--{name}", str(value))])
        for folder, own in ((LDM, of_maps), (SPADE, of_images))
    ]


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    refuse_unwritable(options.out / "dataset_description.json")
    refuse_other_dataset(options.out, SPADE.name)
    participants = participants_of(options.requests, options.shard)
    refuse_other_models(options.label_models, options.image_models)
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "participants.tsv"
        write_table(table, [["participant_id"], *([participant] for participant in participants)])
        for bundle, settings in commands(options, table):
            command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.json", *settings]
            if status := subprocess.run(command, cwd=bundle).returncode:
                return status  # the bundle's last line says why
    print(f"{len(participants) * options.variants} labelled heads are in {options.out}")
    return 0


if __name__ == "__main__":
    refusals.run(main)
