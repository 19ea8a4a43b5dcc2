"""A large cohort that is finished, or nearly so, is recognised from dates and sizes, without its voxels and without networks.

The slow test does it with 100,000 made-up rows and prints the CPU time:

    python -m pytest -m slow -s tests/test_large_cohort.py
"""

import csv
import resource
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from monai.bundle import create_workflow
from phantom_maps import phantom, save_map
from tiny_bundles import BUNDLES, LDM, REQUEST

SIZES = [30, pytest.param(100_000, marks=pytest.mark.slow)]


def inputs(name, folder, rows):
    """Write what a cohort of this size is made from: a table with one noise for all rows, or label maps."""
    if name == LDM:
        table = folder / "requests.tsv"
        with open(table, "w", newline="") as file:
            writer = csv.writer(file, delimiter="\t")
            writer.writerow(["participant_id", "noise", *REQUEST])
            writer.writerows([f"sub-{row:06d}", "one", *REQUEST.values()] for row in range(rows))
        return {"requests": str(table), "steps": 2}
    source = save_map(folder / "maps" / "sub-000000_dseg.nii.gz", phantom((32, 32, 32)), np.diag([2.0, 2, 2, 1]))
    for row in range(1, rows):
        shutil.copy2(source, source.with_name(f"sub-{row:06d}_dseg.nii.gz"))
    return {"label_maps": str(source.parent)}


def parse(settings):
    workflow = create_workflow(config_file="configs/inference.json", workflow_type="inference", use_device="cpu", **settings)
    workflow.initialize()
    return workflow.parser


def multiply(out: Path, rows: int):
    """Write the files of the first row again under the names of all others."""
    (image,) = out.glob("sub-000000/anat/*_T1w.nii.gz")
    files = sorted(image.parent.iterdir(), key=lambda path: path.suffix == ".json")  # the sidecar is last
    contents = [(path.name, path.read_bytes()) for path in files]
    for row in range(1, rows):
        folder = out / f"sub-{row:06d}" / "anat"
        folder.mkdir(parents=True)
        for name, content in contents:
            if name.endswith(".json"):
                content = content.replace(b"sub-000000", b"sub-%06d" % row)
            (folder / name.replace("000000", f"{row:06d}")).write_bytes(content)


@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("name", BUNDLES)
def test_a_finished_cohort_is_recognised_without_its_voxels(enter, name, rows, tmp_path, monkeypatch):
    enter(name)
    settings = {"output_dir": str(tmp_path / "out"), **inputs(name, tmp_path, rows)}
    one = first_row(settings["requests"]) if name == LDM else {"label_maps": settings["label_maps"] + "/sub-000000*"}
    parse(settings | one).get_parsed_content("run")
    multiply(tmp_path / "out", rows)

    monkeypatch.setattr("nibabel.load", None)  # every reader calls it
    parser = parse(settings)
    cpu, memory = [time.process_time()], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    left = parser.get_parsed_content("dataset" if name == LDM else "pending")
    cpu.append(time.process_time())
    parser.get_parsed_content("run")
    cpu.append(time.process_time())
    assert len(left) == 0
    assert not {"network", "autoencoder", "trained_network", "evaluator"} & set(parser.ref_resolver.resolved_content)
    listed = (tmp_path / "out" / "participants.tsv").read_text().splitlines()
    assert len(listed) == 1 + rows and listed[-1].startswith(f"sub-{rows - 1:06d}\t")
    more_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024
    start, end = np.diff(cpu)
    print(f"\n{name}, {rows} finished rows: start {start:.1f} s, end {end:.1f} s of CPU, {more_mb:.0f} MB more memory")
    assert more_mb < 100 + rows * 5e-3  # whole sidecars of 100,000 rows are 1 GB


def first_row(table):
    path = Path(table).with_name("first.tsv")
    path.write_text("".join(Path(table).read_text().splitlines(keepends=True)[:2]))
    return {"requests": str(path)}
