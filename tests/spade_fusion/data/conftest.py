"""A sound cohort of pairs, made once, and copies of it that a test may damage."""

import shutil

import pytest
from tiny_pairs import LABELS, add, save


@pytest.fixture(scope="session")
def sound_cohort(tmp_path_factory):
    """Twelve participants, the second with two sessions, the third with two runs, the fourth's map next to the scan."""
    folder = tmp_path_factory.mktemp("sound") / "cohort"
    for number in range(1, 13):
        name = f"sub-{number:02}"
        for entities in {2: ["ses-1", "ses-2"], 3: ["run-1", "run-2"]}.get(number, [""]):
            session = f"{entities}/" if entities.startswith("ses") else ""
            labels = "." if number == 4 else LABELS
            add(folder, f"{name}/{session}anat/{'_'.join(filter(None, [name, entities]))}", labels)
    save(folder / "sub-01" / "anat" / "sub-01_T2w.nii.gz")
    return folder


@pytest.fixture
def cohort(sound_cohort, tmp_path):
    return shutil.copytree(sound_cohort, tmp_path / "cohort")


@pytest.fixture
def few(sound_cohort, tmp_path):
    """The participants 4, 5 and 6 alone, for tests of a single file."""

    def others(folder, names):
        return [name for name in names if name.startswith("sub-") and name[:6] not in ("sub-04", "sub-05", "sub-06")]

    return shutil.copytree(sound_cohort, tmp_path / "few", ignore=others)
