"""Test the sweeps of conditioning.py: which volumes form a sweep, which are within the range, and their slopes."""

import json

import conditioning
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from cohorts.cohort import read_cohort
from conditioning_parts import sweep_figures, sweeps
from tiny_report import make_cohort

from brain_ldm_bundle.scripts.data.covariates import CovariateSchema
from brain_ldm_bundle.scripts.data.derivative import Derivative
from brain_ldm_bundle.scripts.generation import requests as cohort
from brain_ldm_bundle.scripts.shared import mni_box

SPACING_MM = 8.0
PROVENANCE = {"Sampler": "ddim", "Steps": 2, "GuidanceScale": 1.0, "PredictionType": "epsilon", "WeightsSHA256": "ab" * 32}
SCHEMA = CovariateSchema.from_dict(
    {
        "covariates": [
            {"name": "sex", "levels": {"F": 0, "M": 1}},
            {"name": "age", "unit": "years", "range": [40, 80], "limits": [18, 120]},
            {"name": "ventricles_ml", "unit": "mL", "range": [0, 100]},
        ]
    }
)


def generate(folder, rows):
    """A generated folder as inference writes it; a volume is as bright as its ventricles are small, and marked at the left."""
    derivative = Derivative(folder, SCHEMA, mni_box.affine(SPACING_MM), mni_box.size(SPACING_MM))
    for item in cohort.pending(rows, derivative, PROVENANCE, base_seed=0):
        volume = np.full(mni_box.size(SPACING_MM), 0.9 - item["request"].values["ventricles_ml"] / 400)
        volume[:3] = 0.0  # voxel order LAS: the first voxels are the rightmost
        derivative.write(item["request"], volume, item["provenance"])
    derivative.finish(rows)
    return folder


def request(name, noise, ventricles_ml, age=60, sex="F"):
    row = {"participant_id": f"sub-{name}", "sex": sex, "age": age, "ventricles_ml": ventricles_ml, "noise": noise}
    return SCHEMA.request(row)


def measure(path, values):
    """values: participant to ventricles_ml."""
    table = pd.DataFrame({"participant_id": [f"sub-{name}" for name in values], "ventricles_ml": list(values.values())})
    table.to_csv(path, sep="\t", index=False)
    return path


@pytest.fixture
def swept(tmp_path):
    """Ventricles of two noises, also beyond the range, where the second half of what is asked for is made; ages of one."""
    rows, measured = [], {}
    for noise in "12":
        for ventricles_ml in (-50, 0, 25, 50, 75, 100, 150, 190):
            name = f"v{noise}x{ventricles_ml}".replace("-", "m")
            rows.append(request(name, noise, ventricles_ml))
            beyond = max(ventricles_ml - 100, 0) + min(ventricles_ml, 0)
            measured[name] = ventricles_ml - 0.5 * beyond + (3 if noise == "2" else 0)
    rows += [request(f"a{age}", "1", 40, age=age) for age in (45, 58, 75)]
    rows += [request("male", "1", 55, sex="M"), request("own", None, 60)]
    folder = generate(tmp_path / "generated", rows)
    return read_cohort(folder, [measure(tmp_path / "volumes.tsv", measured)])


def test_a_sweep_is_one_noise_and_one_changing_covariate(swept):
    first, second = sweeps.find_sweeps(swept, "ventricles_ml")
    for sweep in (first, second):
        assert list(sweep.rows["requested"]) == [-50, 0, 25, 50, 75, 100, 150, 190]
        assert list(sweep.inside["requested"]) == [0, 25, 50, 75, 100]
        assert list(sweep.outside["requested"]) == [-50, 150, 190]
    noises = {sweep.rows.index[0][:6] for sweep in (first, second)}
    assert noises == {"sub-v1", "sub-v2"}
    (ages,) = sweeps.find_sweeps(swept, "age")
    assert list(ages.rows.index) == ["sub-a45", "sub-a58", "sub-a75"] and ages.tools == ()


def test_slopes_are_measured_within_and_beyond_the_range(swept):
    table = sweep_figures.slope_table(swept, sweeps.find_sweeps(swept, "ventricles_ml"))
    ((name, below, within, above),) = table["rows"]
    assert name == "lateral ventricles by volumes.tsv"
    assert (below, within, above) == ("0.50 (0.50 to 0.50)", "1.00 (1.00 to 1.00)", "0.50 (0.50 to 0.50)")


def test_the_values_of_one_noise_are_not_independent_samples():
    """Six points of one deterministic curve had r 0.995 [0.951, 0.999]. An interval is over noises and needs three."""
    parts = [
        pd.DataFrame({"requested": [10.0, 20.0, 40.0], "a tool": [slope * x + 5 for x in (10, 20, 40)]})
        for slope in (0.2, 0.4, 0.9)
    ]
    assert sweep_figures.slope_cell(parts[:1], "a tool") == "0.20"
    assert sweep_figures.slope_cell(parts[:2], "a tool") == "0.30 (0.20 to 0.40)"
    margin = 4.302653 * np.std([0.2, 0.4, 0.9], ddof=1) / np.sqrt(3)  # t of 2 degrees of freedom
    assert sweep_figures.slope_cell(parts, "a tool") == f"0.50 [{0.5 - margin:.2f}, {0.5 + margin:.2f}] (0.20 to 0.90)"
    assert sweep_figures.slope_cell([parts[0][:1]], "a tool") == sweep_figures.slope_cell(parts, None) == "—"


def test_each_value_beyond_is_listed_with_what_was_measured_and_where_the_range_ends(swept):
    rows = sweep_figures.value_table(swept, sweeps.find_sweeps(swept, "ventricles_ml"))["rows"]
    space = "\N{NO-BREAK SPACE}"
    assert rows[0] == [
        "lateral ventricles by volumes.tsv",
        f"-50.0{space}mL",
        "-0.50",
        "2",
        "-23.5 (-25.0 to -22.0)",
        f"0.0{space}mL",
    ]
    assert [row[1] for row in rows] == [f"{value}.0{space}mL" for value in (-50, 150, 190)]
    assert rows[2][2] == "1.90" and rows[2][5] == f"100.0{space}mL"


def test_the_range_is_found_for_a_logarithmic_scale_too():
    rows = pd.DataFrame({"requested": [10.0, 100.0, 1000.0], "scaled": [0.0, 0.5, 1.0]})
    assert sweeps.model_range([sweeps.Sweep("x", rows, ())]) == pytest.approx((10, 1000))
    linear = pd.DataFrame({"requested": [20.0, 60.0, 120.0], "scaled": [-0.5, 0.5, 2.0]})
    assert sweeps.model_range([sweeps.Sweep("x", linear, ())]) == pytest.approx((40, 80))


def test_both_figures_and_sections_are_written(swept, tmp_path):
    second = pd.read_csv(tmp_path / "volumes.tsv", sep="\t").assign(tool="another tool")
    second["ventricles_ml"] = second["ventricles_ml"].clip(upper=110)  # it reads none larger
    second.to_csv(tmp_path / "second.tsv", sep="\t", index=False)
    scans, scans_measured = make_cohort(tmp_path / "scans", ["sub-1", "sub-2", "sub-3"], [90.0, 9.0, 140.0], [0.0, 0.0, 0.0])
    by_second = pd.DataFrame({"participant_id": ["sub-1", "sub-2", "sub-3"], "ventricles_ml": [88.0, 12.0, 110.0]})
    by_second.assign(tool="another tool").to_csv(scans_measured, sep="\t", index=False)
    arguments = ["--sweep", "ventricles_ml", "--sweep", "age", "--output", tmp_path / "out"]
    arguments += ["--sweeps_measured", tmp_path / "volumes.tsv", tmp_path / "second.tsv"]
    arguments += ["--real", scans, "--real_measured", scans_measured]
    conditioning.main([str(part) for part in ("--sweeps", swept.folder, *arguments)])
    for name in ("figure2", "figure4"):
        section = json.loads((tmp_path / "out" / f"{name}.section.json").read_text())
        assert section["figures"][0]["file"] == f"{name}.png"
        assert (tmp_path / "out" / f"{name}.png").stat().st_size > 10_000
        assert all(len(row) == len(table["header"]) for table in section["tables"] for row in table["rows"])
    slopes, values, ceiling = (table["rows"] for table in section["tables"])
    assert [row[3].split()[0] for row in slopes] == ["0.50", "0.10"]  # the second tool's: its own, not the model's
    assert [row[0] for row in values[::3]] == ["lateral ventricles by volumes.tsv", "lateral ventricles by another tool"]
    assert [text.replace("\N{NO-BREAK SPACE}", " ") for text in ceiling[0]] == [
        "lateral ventricles by another tool",
        "3",
        "9.0 mL, 12.0 mL",
        "140.0 mL, 110.0 mL",
    ]
    (table,) = json.loads((tmp_path / "out" / "figure2.section.json").read_text())["tables"]
    ventricles, again, age = table["rows"]
    assert ventricles[:4] == ["lateral ventricles by volumes.tsv", "2", "10", "1.00 (1.00 to 1.00)"]
    assert ventricles[5] == again[5] == "30.0 mL"  # of 0, 25, 50, 75, 100 from their mean
    assert age[:4] == ["age", "1", "0", "not measured"]


def test_without_values_beyond_the_range_there_is_no_figure_4(tmp_path):
    folder = generate(tmp_path / "generated", [request(f"{v}", "1", v) for v in (10, 50, 90)])
    conditioning.main(["--sweeps", str(folder), "--sweep", "ventricles_ml", "--output", str(tmp_path / "out")])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["figure2.png", "figure2.section.json"]


def test_the_subjects_left_is_at_the_pictures_right(swept):
    picture = sweep_figures.two_planes(swept.images["sub-v1x50"], white=1.0)
    axial, coronal = np.split(picture, 2, axis=1)
    assert picture.shape == (28, 2 * 22)
    for plane, rows in ((axial, slice(None)), (coronal, slice(4, 24))):
        assert (plane[rows, 1:4] == 0).all()  # right, dark
        assert np.allclose(plane[rows, 4:-1], 0.775, atol=0.01)


def test_mistakes_are_named_and_nothing_is_written(swept, tmp_path):
    def refused(*arguments):
        with pytest.raises(ValueError) as error:
            conditioning.main([str(part) for part in ("--sweeps", swept.folder, "--output", tmp_path / "out", *arguments)])
        assert not (tmp_path / "out").exists()
        return str(error.value)

    assert "no covariate is called 'height'; there are sex, age, ventricles_ml" in refused("--sweep", "height")
    assert "sex is a category" in refused("--sweep", "sex")
    assert "scans: give both the folder and the tables" in refused("--sweep", "age", "--real", swept.folder)
    (swept.folder / "sub-own" / "anat" / "sub-own_T1w.json").write_text("{}")
    assert "sub-own_T1w.json: not the sidecar of a generated volume" in refused("--sweep", "age")


def test_volumes_with_noise_of_their_own_are_no_sweep(tmp_path):
    folder = generate(tmp_path / "generated", [request(f"{v}", None, v) for v in (10, 50, 90)])
    with pytest.raises(ValueError, match="no three volumes of one noise differ in ventricles_ml alone.*make_requests.py"):
        conditioning.main(["--sweeps", str(folder), "--sweep", "ventricles_ml", "--output", str(tmp_path / "out")])


def test_volumes_are_left_as_they_are(swept):
    before = nib.load(swept.images["sub-v1x50"]).get_fdata()
    sweep_figures.figure2(swept, sweeps.find_sweeps(swept, "ventricles_ml"))
    assert np.array_equal(nib.load(swept.images["sub-v1x50"]).get_fdata(), before)
