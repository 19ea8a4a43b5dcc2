"""The BIDS validator accepts what both bundles write."""

import shutil
from pathlib import Path

import bids_validator
import tiny
import tiny_spade
from monai.bundle import run
from tiny_bundles import LDM, REQUEST, SPADE


def test_the_validator_finds_a_fault(tmp_path):
    """Else the tests below would show nothing."""
    folder = tiny.write_dataset(tmp_path, 1, 0)
    assert not any(problem.startswith("error") for problem in bids_validator.problems(folder))
    (folder / "sub-0001" / "anat" / "sub-0001_T1w.json").write_text('{"EchoTime": "long"}')
    assert any("error" in problem and "EchoTime" in problem for problem in bids_validator.problems(folder))


def test_generated_edited_and_reconstructed_heads(enter, tmp_path):  # noqa: F811
    enter(LDM)
    cohort, places = tiny.write_dataset(tmp_path / "cohort", 3, 1), tiny.places(tmp_path / "cohort", tmp_path)
    made = {name: str(tmp_path / name) for name in ("generated", "edited", "reconstructed")}
    head = str(cohort / "sub-0001" / "anat" / "sub-0001_T1w.nii.gz")
    settings = {"config_file": "configs/inference.json", "request": REQUEST, "steps": 2, "use_device": "cpu"}
    run(output_dir=made["generated"], **settings)
    run("editing", output_dir=made["edited"], image=head, **settings)
    settings = {"config_file": "configs/evaluate.json", "split": "validation", "use_device": "cpu"}
    del places["models_dir"]
    run("evaluating_reconstruction", reconstructions_dir=made["reconstructed"], **places, **settings)
    for folder in map(Path, made.values()):
        assert len(list(folder.glob("sub-*/anat/*_T1w.nii.gz"))) == 1 and bids_validator.problems(folder) == []


def test_synthesised_heads_with_variants_and_sessions(enter, tmp_path):  # noqa: F811
    enter(SPADE)
    cohort = tiny_spade.write_dataset(tmp_path / "cohort", ("train",))
    given = next(cohort.glob("derivatives/*/sub-01/anat/*_dseg.nii.gz"))
    for session in ("ses-1", "ses-2"):
        path = tmp_path / "maps" / "sub-02" / session / "anat" / f"sub-02_{session}_dseg.nii.gz"
        path.parent.mkdir(parents=True)
        shutil.copy(given, path)
    settings = {"config_file": "configs/inference.json", "variants": 2, "use_device": "cpu"}
    run(label_maps=str(tmp_path / "maps"), output_dir=str(tmp_path / "made"), **settings)
    assert len(list((tmp_path / "made").glob("sub-*/**/anat/*_T1w.nii.gz"))) == 4
    assert bids_validator.problems(tmp_path / "made") == []
