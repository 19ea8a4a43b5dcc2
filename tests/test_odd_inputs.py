"""Damage tables, images and settings at random, with a fixed seed. Each result is right, or one sentence names the fault.

The default run draws hundreds of inputs, the slow one thousands.
"""

import gzip
import itertools
import json
import math
import subprocess
import sys

import make_requests
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import LoadImage

from brain_ldm_bundle.scripts.data.covariates import CovariateSchema
from brain_ldm_bundle.scripts.shared.image_reader import CheckedReader
from brain_ldm_bundle.scripts.shared.nifti import read_volume

MANY = pytest.param(3000, marks=pytest.mark.slow)
SCHEMA = CovariateSchema.from_file(ROOT / "brain_ldm_bundle" / "configs" / "covariates.json")
COLUMNS = ["participant_id", "sex", "age", "ventricles_ml", "brain_normalised_ml"]
ROWS = [[f"sub-{i:02d}", "FM"[i % 2], f"{50 + 3 * i}", f"{20.5 + 4 * i}", f"{1500 - 7.25 * i:.2f}"] for i in range(1, 9)]
NUMBERS = "nan|inf|-inf|1e400|1e-400|89+|50,5|720|-1|0|5O|60 y|0x3C|१२|6_0|1.5e2|+61".split("|")
WORDS = ["", *" |n/a|NA|N/A|#N/A|None|-|?|F|f|male|True|[1]|=A1|\"|'|\ufeff61".split("|"), "x" * 150_000]
CELLS = NUMBERS + WORDS


def one_sentence(message, path):
    """Whether each line of the message names the file, apart from a heading."""
    assert "Traceback" not in message and message.strip(), message
    assert all(str(path) in line or number == 0 for number, line in enumerate(message.splitlines())), message[:2000]
    assert str(path) in message, message[:2000]


def damaged_table(random):
    """Return the bytes of a table with one fault, and the set of (participant, column) whose cells the fault may change."""
    header, rows = list(COLUMNS), [list(row) for row in ROWS]
    kind = random.integers(12)
    row, column = int(random.integers(len(rows))), int(random.integers(1, len(header)))
    changed, separator, encoding = set(), "\t", "utf-8"
    if kind <= 3:
        rows[row][column] = str(random.choice(CELLS))
        changed = {(rows[row][0], header[column])}
    elif kind == 4:
        header[column] = str(
            random.choice([header[column].upper(), f" {header[column]} ", "", header[column - 1], "Sex", "age "])
        )
        changed = None
    elif kind == 5:
        rows[row] = rows[row][: int(random.integers(len(header)))]
        changed = None
    elif kind == 6:
        rows[row] += [str(random.choice(CELLS))] * int(random.integers(1, 4))
    elif kind == 7:
        separator = str(random.choice([",", ";", " ", "|"]))
    elif kind == 8:
        encoding = str(random.choice(["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"]))
    elif kind == 9:
        rows.insert(row, list(random.choice([rows[column], [""] * 5, ["#", "", "", "", ""]]).tolist()))
    elif kind == 10:
        rows[row][0] = str(
            random.choice(["", "n/a", rows[column][0], rows[row][0].upper(), "../x", "sub-", "sub-a/b", rows[row][0][4:]])
        )
        changed = None
    text = "".join(separator.join(cells) + "\n" for cells in [header, *rows])
    content = text.encode(encoding)
    if kind == 11:
        content, changed = bytearray(content), None
        content[int(random.integers(len(content)))] = int(random.integers(256))
    return bytes(content), changed


@pytest.mark.parametrize("number", [200, MANY])
def test_a_table_with_a_fault_is_refused_or_every_other_cell_is_read_right(tmp_path, number):
    random, path = np.random.default_rng(0), tmp_path / "requests.tsv"
    right = {row[0]: dict(zip(COLUMNS[1:], row[1:])) for row in ROWS}
    accepted = 0
    for _ in range(number):
        content, changed = damaged_table(random)
        path.write_bytes(content)
        try:
            found = SCHEMA.read_table(path)
        except ValueError as error:
            one_sentence(str(error), path)
            continue
        accepted += 1
        for row in found:
            for covariate in SCHEMA.covariates:
                cell = row[covariate.name]
                assert (
                    cell in ("F", "M")
                    if covariate.levels
                    else math.isfinite(float(cell)) and covariate.value(cell, True) is not None
                )
                if changed is not None and (row["participant_id"], covariate.name) not in changed:
                    expected = right[row["participant_id"]][covariate.name]
                    assert str(cell) == expected or float(cell) == float(expected), content
    assert 0.1 < accepted / number < 0.7  # both kinds of answer were tried


@pytest.mark.parametrize("number", [40, MANY])
def test_requests_are_drawn_from_sound_cells_alone(tmp_path, capsys, number):
    random, path, output = np.random.default_rng(1), tmp_path / "participants.tsv", tmp_path / "requests.tsv"
    for _ in range(number):
        path.write_bytes(damaged_table(random)[0])
        try:
            make_requests.main([str(path), str(output), "--rows", "12"])
        except ValueError as error:
            one_sentence(str(error), path)
            assert sorted(tmp_path.iterdir()) == [path]
            continue
        made = pd.read_csv(output, sep="\t", keep_default_na=False, dtype=str)
        assert len(made) == 12 and list(made.columns) == COLUMNS[:1] + SCHEMA.names
        for row in made.to_dict("records"):
            SCHEMA.values(row)
        output.unlink()


SHAPE = (7, 9, 11)
ROTATION = np.linalg.qr([[-1.5, 0.1, 0.0], [0.1, 2.0, -0.2], [0.0, 0.15, 2.5]])[0]
AFFINE = nib.affines.from_matvec(ROTATION @ np.diag([1.5, 2.0, 2.5]), [10, -20, 5])
VALUES = np.random.default_rng(5).integers(0, 900, SHAPE).astype(np.int16)
FIELDS = (
    "dim datatype bitpix pixdim vox_offset scl_slope scl_inter xyzt_units qform_code sform_code quatern_b quatern_c".split()
)
FIELDS += "quatern_d qoffset_x qoffset_y srow_x srow_y srow_z magic sizeof_hdr".split()
ODD_NUMBERS = [0, 1, 2, 3, 5, 7, 8, -1, 16, 128, 1000, 30000, -30000, 0.001, 25, np.nan, np.inf, 1e30]


def sound_image():
    image = nib.Nifti1Image(VALUES, AFFINE)
    image.set_sform(AFFINE, 1)
    image.set_qform(AFFINE, 1)
    return image


def damaged_image(random):
    """Return a file's name and bytes with one fault, and whether the fault leaves the header as it was."""
    content, name = bytearray(sound_image().to_bytes()), "scan.nii"
    kind = random.integers(8)
    if kind <= 2:
        header = nib.Nifti1Header(bytes(content[:348]), check=False)
        field, value = str(random.choice(FIELDS)), random.choice(ODD_NUMBERS)
        cell = header.structarr[field]
        with np.errstate(all="ignore"):
            if cell.dtype.kind == "S":
                header.structarr[field] = b"xx"
            elif cell.ndim:
                changed = cell.copy()
                changed[int(random.integers(cell.size))] = (
                    int(np.clip(np.nan_to_num(value), -30000, 30000)) if cell.dtype.kind == "i" else value
                )
                header.structarr[field] = changed
            else:
                kept = np.nan_to_num(value, posinf=9, neginf=-9) % 100 if cell.dtype.kind in "iu" else value
                header.structarr[field] = kept
        content[:348] = header.structarr.tobytes()
        return name, bytes(content), False
    if kind == 3:
        content[int(random.integers(348))] ^= 1 << int(random.integers(8))
        return name, bytes(content), False
    if kind == 4:
        content = (
            content[: int(random.integers(len(content)))]
            if random.integers(2)
            else content + b"\0" * int(random.integers(1, 99))
        )
        return name, bytes(content), True
    zipped = bytearray(gzip.compress(bytes(content)))
    if kind == 5:
        zipped[int(random.integers(10, len(zipped)))] ^= 1 << int(random.integers(8))
    elif kind == 6:
        zipped = zipped[: int(random.integers(len(zipped)))]
    return (name if random.integers(4) == 0 else "scan.nii.gz"), bytes(zipped), True


@pytest.mark.parametrize("number", [200, MANY])
def test_an_image_with_a_fault_is_refused_or_lies_where_each_of_its_forms_says(tmp_path, number):
    """And the transforms of MONAI load the same voxels at the same place."""
    random, load = np.random.default_rng(2), LoadImage(reader=CheckedReader(), image_only=True)
    corners = list(itertools.product(*((0, side - 1) for side in SHAPE)))
    accepted = 0
    for _ in range(number):
        name, content, header_is_sound = damaged_image(random)
        path = tmp_path / name
        path.write_bytes(content)
        try:
            image = read_volume(path)
            values = np.asanyarray(image.dataobj)
        except ValueError as error:
            one_sentence(str(error), path)
            assert len(str(error).splitlines()) == 1
            continue
        accepted += 1
        raw = image.header
        assert max(int(raw["sform_code"]), int(raw["qform_code"])) > 0 and int(raw["xyzt_units"]) & 7 in (0, 2)
        for form in (image.get_sform(coded=True)[0], image.get_qform(coded=True)[0]):
            if form is not None and image.shape == SHAPE:
                apart = nib.affines.apply_affine(form, corners) - nib.affines.apply_affine(image.affine, corners)
                assert np.abs(apart).max() < 0.51
        if header_is_sound:
            np.testing.assert_array_equal(values, VALUES)
        loaded = load(path)
        assert isinstance(loaded, MetaTensor)
        np.testing.assert_allclose(loaded.affine.numpy(), image.affine, atol=1e-6)
        np.testing.assert_allclose(loaded.numpy(), values.astype(np.float32))
    assert 0.05 < accepted / number < 0.9


ODD_SETTINGS = [None, True, False, 0, 1, -1, 2, 2.5, 8, 1e9, -1e-9, 10**30, math.nan, math.inf, 20241130, ("a", "b")]
ODD_SETTINGS += [
    [],
    [0],
    [1, "a"],
    {},
    {"a": 1},
    *"|  |abc|8mm|None|nan|true|yes|gpu|a\0b".split("|"),
    str(ROOT),
    str(ROOT / "README.md"),
]
CONFIGS = [("brain_ldm_bundle", name) for name in ("train", "inference", "evaluate", "train_regressor", "baselines")]
CONFIGS += [("spade_fusion_bundle", name) for name in ("train", "inference", "evaluate", "segmentation")]


@pytest.mark.parametrize("number", [20, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("bundle_name", "config_name"), CONFIGS)
def test_a_setting_is_refused_by_name_or_is_of_the_kind_of_its_default(
    monkeypatch, forget_scripts, bundle_name, config_name, number
):
    monkeypatch.syspath_prepend(ROOT / bundle_name)
    config = json.loads((ROOT / bundle_name / "configs" / f"{config_name}.json").read_text())
    names = list(config)[list(config).index("bundle_root") + 1 : list(config).index("device")]
    random = np.random.default_rng(3)
    for _ in range(number):
        name, value = str(random.choice(names)), ODD_SETTINGS[int(random.integers(len(ODD_SETTINGS)))]
        parser = ConfigParser(config | {name: value, "probe": [f"$scripts.shared.settings.check('{config_name}')"]})
        try:
            parser.get_parsed_content("probe")
        except RuntimeError as error:
            message = str(error.__cause__)
            assert isinstance(error.__cause__, ValueError) and len(message.splitlines()) == 1, message
            assert f"{name} is {value!r}" in message and "Allowed: " in message, message
            continue
        default = config[name]
        if isinstance(default, (int, float)):  # bool, too
            assert isinstance(value, (int, float)) and math.isfinite(value), (name, value)
            assert isinstance(value, bool) == isinstance(default, bool), (name, value)
        elif isinstance(default, list):
            assert isinstance(value, list) and value, (name, value)
        elif isinstance(default, str) and not default.startswith("$") and value is not None:  # None: a later check names it
            assert isinstance(value, str) and value.strip(), (name, value)


WRONG = {  # what a shell passes on, for every run id
    "brain_ldm_bundle": [
        ("training", "train"),
        ("training_diffusion", "train"),
        ("generating", "inference"),
        ("editing", "inference"),
        ("evaluating", "evaluate"),
        ("auditing", "evaluate"),
        ("predicting", "train_regressor"),
        ("generating", "baselines"),
    ],
    "spade_fusion_bundle": [
        ("training", "train"),
        ("training_fusion", "train"),
        ("synthesising", "inference"),
        ("evaluating", "evaluate"),
        ("run", "segmentation"),
    ],
}
ARGUMENTS = [
    [],
    ["--seed", "abc"],
    ["--output_dir", "2024_11_30"],
    ["--output_dir", "a,b"],
    ["--use_device", "gpu"],
    ["--seeed", "1"],
    ["--dataset_dir", "missing"],
    ["--batch_size", "0"],
    ["--models_dir", "/dev/null/x"],
]


@pytest.mark.slow
@pytest.mark.parametrize(("bundle_name", "run_id", "config_name"), [(b, *pair) for b, pairs in WRONG.items() for pair in pairs])
def test_a_run_that_cannot_start_ends_with_the_reason(tmp_path, bundle_name, run_id, config_name):
    for arguments in ARGUMENTS:
        command = [sys.executable, "-m", "monai.bundle", "run", run_id, "--config_file"]
        command += [str(ROOT / bundle_name / "configs" / f"{config_name}.json"), *arguments]
        ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        _, _, answer = ended.stderr.rpartition("\nerror: ")
        assert ended.returncode == 1 and answer and "Traceback" not in answer, ended.stderr
        assert not answer.startswith("unexpected"), answer
        assert not arguments or arguments[0].strip("-") in answer or arguments[1] in answer, answer
        assert list(tmp_path.iterdir()) == [], arguments
