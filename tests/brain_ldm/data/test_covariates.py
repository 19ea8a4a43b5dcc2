"""Physical values are scaled. An impossible value is refused with its location and a remedy."""

import json
import warnings

import pytest
from conftest import ROOT

from brain_ldm_bundle.scripts.data.covariates import NULL, CovariateSchema, single_request
from brain_ldm_bundle.scripts.data.measured_rows import measured_values, read_rows
from brain_ldm_bundle.scripts.shared.problems import refuse

CONFIG = ROOT / "brain_ldm_bundle" / "configs" / "covariates.json"
NAMES = ["sex", "age", "ventricles_ml", "brain_normalised_ml"]
HEADER = ["participant_id", *NAMES]
ROW = ["sub-01", "F", "63", "40", "1500"]


@pytest.fixture
def schema():
    return CovariateSchema.from_file(CONFIG)


@pytest.fixture
def table(tmp_path):
    """Write rows of cells below a header, as a tab-separated file."""

    def write(*rows, header=HEADER):
        path = tmp_path / "participants.tsv"
        path.write_text("".join("\t".join(row) + "\n" for row in [header, *rows]), encoding="utf-8")
        return path

    return write


def changed(column, value, row=ROW):
    return [value if name == column else cell for name, cell in zip(HEADER, row, strict=True)]


def user_schema(**entry):
    return CovariateSchema.from_dict({"covariates": [{"name": "volume_ml", "unit": "mL", "range": [1, 100], **entry}]})


def measured(schema, path):
    """Values of a cohort's table, in its order, or its problems as an error."""
    rows, problems = read_rows(path, schema)
    values, faults = measured_values(rows, schema, str(path))
    refuse(problems + faults)
    return list(values.values())


def scaled(schema, row):
    return schema.scale(schema.values(row))


# Scaling


def test_default_covariates_are_in_the_order_of_the_published_model(schema):
    assert schema.names == NAMES


def test_ranges_of_the_paper_are_scaled_to_0_and_1(schema):
    """6,995.68 - 171,375 mm3 and 1,144,240 - 1,793,910 mm3 (Pinaya et al. 2022), ages 44 - 82."""
    lowest = {"sex": "F", "age": 44, "ventricles_ml": 6995.68 / 1000, "brain_normalised_ml": 1144240 / 1000}
    highest = {"sex": "M", "age": 82, "ventricles_ml": 171375 / 1000, "brain_normalised_ml": 1793910 / 1000}
    assert schema.scale(lowest) == pytest.approx([0, 0, 0, 0], abs=1e-9)
    assert schema.scale(highest) == pytest.approx([1, 1, 1, 1])


def test_scale_is_linear_between(schema):
    row = {"sex": "M", "age": 53.5, "ventricles_ml": 89.18534, "brain_normalised_ml": 1306.6575}
    assert schema.scale(row) == pytest.approx([1, 0.25, 0.5, 0.25])


def test_log_scale_puts_the_geometric_mean_in_the_middle():
    assert user_schema(scale="log").scale({"volume_ml": 10}) == pytest.approx([0.5])


def test_unscaled_inverts_scaled():
    for scale in ("linear", "log"):
        covariate = user_schema(scale=scale).covariates[0]
        assert covariate.unscaled(covariate.scaled(37.0)) == pytest.approx(37.0)


def test_missing_values_are_null_where_allowed():
    for missing in (None, "n/a", "", "NaN"):
        assert scaled(user_schema(missing="allowed"), {"volume_ml": missing}) == [NULL]
    assert scaled(user_schema(missing="allowed"), {}) == [NULL]


def test_missing_values_are_refused_by_default(schema):
    with pytest.raises(ValueError, match=r"row 3: age is missing \(None\)"):
        schema.values({"sex": "F", "age": None, "ventricles_ml": 40, "brain_normalised_ml": 1500}, where="row 3")


def test_a_schema_survives_a_checkpoint(schema):
    carried = json.loads(json.dumps(schema.to_dict()))
    assert CovariateSchema.from_dict(carried) == schema
    assert CovariateSchema.from_dict(carried).to_dict() == schema.to_dict()


# Tables


def test_a_table_gives_physical_values_and_ids_with_their_prefix(schema, table):
    rows = schema.read_table(table(ROW, ["02", "M", "70.5", "55.25", "1400"]))
    assert rows == [
        {"participant_id": "sub-01", "sex": "F", "age": 63.0, "ventricles_ml": 40.0, "brain_normalised_ml": 1500.0},
        {"participant_id": "sub-02", "sex": "M", "age": 70.5, "ventricles_ml": 55.25, "brain_normalised_ml": 1400.0},
    ]


def test_columns_may_come_in_any_order(schema, table):
    rows = schema.read_table(table(ROW[::-1], header=HEADER[::-1]))
    assert rows[0]["age"] == 63 and rows[0]["participant_id"] == "sub-01"


def test_utf8_with_byte_order_mark_and_windows_line_ends_is_read(schema, table):
    path = table(ROW)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert schema.read_table(path)[0]["participant_id"] == "sub-01"


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("sex", "f ", r"row 3: sex must be 'F' or 'M', got 'f'"),
        ("sex", "n/a", r"row 3: sex is missing \('n/a'\)"),
        ("age", "", r"row 3: age is missing"),
        ("age", "63,5", r"row 3: age in years must be a number, decimals after a point, got '63,5'"),
        ("age", "inf", r"row 3: age in years must be a number"),
        ("age", "756", r"row 3: age is 756, which looks like months; the column is in years"),
        ("age", "-5", r"row 3: age is -5, outside of the plausible 18 to 120 in years"),
        ("ventricles_ml", "30000", r"row 3: ventricles_ml is 30000, which looks like mm3; the column is in mL: divide"),
        ("ventricles_ml", "0.03", r"row 3: ventricles_ml is 0.03, which looks like litres"),
        ("brain_normalised_ml", "1500000", r"row 3: brain_normalised_ml is 1.5e\+06, which looks like mm3"),
        ("brain_normalised_ml", "0.78", r"row 3: brain_normalised_ml is 0.78, which looks like litres or a ratio"),
        ("participant_id", "../sub-02", r"row 3: participant_id must be 'sub-' and letters or digits.*'../sub-02'"),
        ("participant_id", "sub-0_2", r"row 3: participant_id must be"),
        ("participant_id", "", r"row 3: participant_id must be"),
        ("participant_id", "01", r"row 3: participant_id sub-01 is also in row 2"),
    ],
)
def test_a_bad_cell_is_refused_with_its_row_and_value(schema, table, column, value, message):
    path = table(ROW, changed(column, value, ["sub-02", *ROW[1:]]))
    with pytest.raises(ValueError, match=f"participants.tsv {message}"):
        measured(schema, path)


@pytest.mark.parametrize("name", ["Mean", "Max", "Mittelwert"])
def test_a_row_of_means_is_no_request(schema, table, name):
    with pytest.raises(ValueError, match=f"row 3: {name} sums up other rows. Remove the row"):
        schema.read_table(table(ROW, [name, *ROW[1:]]))


def test_all_bad_cells_are_listed_at_once(schema, table):
    path = table(*(changed("participant_id", f"s{n}", changed("ventricles_ml", "30000")) for n in range(25)))
    with pytest.raises(ValueError) as refusal:
        schema.read_table(path)
    lines = str(refusal.value).split("\n")
    assert len(lines) == 21 and "row 2:" in lines[0] and lines[-1] == "... and 5 more of these problems"


def test_a_missing_column_names_the_nearest_one(schema, table):
    with pytest.raises(ValueError, match="no column 'ventricles_ml' .did you mean 'ventricle_mL'"):
        measured(schema, table(ROW, header=["participant_id", "sex", "age", "ventricle_mL", "brain"]))


def test_the_column_of_an_allowed_missing_covariate_may_be_absent(tmp_path):
    path = tmp_path / "requests.tsv"
    path.write_text("participant_id\nsub-1\n")
    assert user_schema(missing="allowed").read_table(path) == [{"participant_id": "sub-1", "volume_ml": None}]


def test_an_unknown_column_is_refused_in_requests_and_ignored_in_a_cohort(schema, table):
    path = table([*ROW, "7"], header=[*HEADER, "sede"])
    with pytest.raises(ValueError, match="unknown column 'sede' .did you mean 'seed'"):
        schema.read_table(path, optional=["seed"])
    assert "sede" not in measured(schema, path)[0]


def test_optional_columns_are_kept_as_text(schema, table):
    path = table([*ROW, "7"], ["sub-02", *ROW[1:], "n/a"], header=[*HEADER, "seed"])
    assert [row["seed"] for row in schema.read_table(path, optional=["seed", "split"])] == ["7", None]


def test_a_row_with_a_cell_too_few_is_refused(schema, table):
    with pytest.raises(ValueError, match="row 2: 4 cells for 5 columns"):
        schema.read_table(table(ROW[:-1]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty. It needs"),
        ("\t".join(HEADER).encode(), "only a header"),
        ("\t".join([*HEADER, "age"]).encode() + b"\n1\n", "the column name 'age' appears twice"),
        ("\t".join(HEADER).encode("utf-16") + b"\n1\n", "not encoded in UTF-8"),
        ("\t".join(HEADER).encode("utf-16-le") + b"\n1\n", "not encoded in UTF-8"),
        ("participant_id\tgrösse\nsub-1\t2\n".encode("latin-1"), "not encoded in UTF-8"),
    ],
    ids=["empty", "header", "twice", "utf-16", "utf-16-le", "latin-1"],
)
def test_what_is_no_tsv_is_refused(schema, tmp_path, content, message):
    path = tmp_path / "requests.tsv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        schema.read_table(path)


def test_a_table_that_is_not_there_is_named(schema, tmp_path):
    with pytest.raises(FileNotFoundError, match="requests.tsv: no such table"):
        schema.read_table(tmp_path / "requests.tsv")


def test_values_beyond_the_range_give_one_warning_per_column(schema, table):
    path = table(changed("age", "30"), ["02", "F", "90", "250", "1500"], ["03", "F", "60", "40", "1500"])
    with pytest.warns(UserWarning) as caught:
        assert len(measured(schema, path)) == 3
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == 2
    assert "age lies outside of 44 to 82 in years in 2 of 3 rows (30 to 90)" in messages[0]
    assert "ventricles_ml lies outside of 6.99568 to 171.375 in mL in 1 of 3 rows (250 to 250)" in messages[1]


def test_a_level_that_no_training_scan_had_is_warned_about_when_it_is_requested(schema):
    """A model of women alone made men without a word. The weights hold the schema as `to_dict` gives it."""
    woman = dict(zip(NAMES, ["F", 63, 40, 1500]))
    trained = CovariateSchema.from_dict(schema.trained_on([{"covariates": schema.scale(woman)}]).to_dict())
    with pytest.warns(UserWarning, match="request: sex is 'M', which no training scan of the model had"):
        single_request(trained, woman | {"sex": "M"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        single_request(trained, woman)
    assert trained.inputs == schema.inputs
    with pytest.raises(ValueError, match="sex: 'unseen' must be a list of some of its levels, got 'M'"):
        CovariateSchema.from_dict({"covariates": [{"name": "sex", "levels": {"F": 0, "M": 1}, "unseen": "M"}]})


def test_a_table_within_the_ranges_warns_of_nothing(schema, table):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measured(schema, table(ROW))


# Requests


def test_a_request_may_extrapolate_as_far_as_the_paper_but_a_measured_value_may_not(schema, table):
    """The paper asked for ventricles of -0.5, which is a negative volume."""
    path = table(changed("ventricles_ml", "-75"))
    with pytest.warns(UserWarning, match="extrapolates"):
        row = schema.read_table(path)[0]
    assert schema.scale(row)[2] == pytest.approx(-0.5, abs=0.002)
    with pytest.raises(ValueError, match="ventricles_ml is -75, outside of the plausible"):
        measured(schema, path)


def test_a_request_for_a_brain_larger_than_its_skull_is_refused():
    entries = [{"name": name, "unit": "mL", "range": [500, 2000]} for name in ("brain_ml", "icv_ml")]
    with pytest.raises(ValueError, match="request: brain_ml and ventricles_ml are 1300 mL together, more than icv_ml, 1200 mL"):
        single_request(CovariateSchema.from_dict({"covariates": entries}), {"brain_ml": 1300, "icv_ml": 1200})


@pytest.mark.parametrize("name", ["NA", "nan", "n/a", None, "", "../x"])
def test_a_missing_name_of_a_participant_is_refused(schema, table, name):
    with pytest.raises(ValueError, match="row 2: participant_id must be 'sub-' and letters or digits"):
        schema.read_table(table([name or "", *ROW[1:]]))


def test_a_single_request_is_a_row(schema):
    request = single_request(schema, {"age": "70", "sex": "F", "ventricles_ml": 40, "brain_normalised_ml": 1500})
    assert request == {"sex": "F", "age": 70.0, "ventricles_ml": 40.0, "brain_normalised_ml": 1500.0}
    assert single_request(schema, {**request, "participant_id": "A1"})["participant_id"] == "sub-A1"


def test_a_request_is_made_once_and_cannot_be_changed(schema):
    row = {"participant_id": "07", "sex": "M", "age": 63, "ventricles_ml": 6.99568, "brain_normalised_ml": 1793.91}
    request = schema.request(row | {"noise": "a"})
    assert (request.participant_id, request.noise) == ("sub-07", "a")
    assert request.values == {name: row[name] for name in NAMES}
    assert request.scaled == pytest.approx((1, 0.5, 0, 1))
    with pytest.raises(AttributeError):
        request.scaled = (0, 0, 0, 0)


def test_a_misspelt_argument_names_the_nearest_covariate(schema):
    with pytest.raises(ValueError, match="unknown covariate 'ventricle_ml' .did you mean 'ventricles_ml'"):
        single_request(schema, {"ventricle_ml": 40})


def test_a_name_that_only_tables_have_is_no_misspelt_covariate(schema):
    with pytest.raises(ValueError, match="request: 'noise' is no covariate. Known: .*Give it in a table of --requests"):
        single_request(schema, {"noise": "a"})


def test_a_single_request_lists_all_that_it_lacks(schema):
    with pytest.raises(ValueError, match="(?s)sex is missing.*ventricles_ml is missing"):
        single_request(schema, {"age": 70, "brain_normalised_ml": 1500})


# Schemas


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"rnage": [0, 1]}, "unknown key 'rnage' .did you mean 'range'"),
        ({"range": [100, 1]}, "'range' must be"),
        ({"range": None}, "either a 'range'"),
        ({"levels": {"a": 0, "b": 1}}, "either a 'range'"),
        ({"range": None, "levels": {"a": 0, "b": 0}}, "'levels' must give"),
        ({"range": None, "levels": {"a": -1, "b": 0}}, "it means 'missing'"),
        ({"range": None, "levels": {"a": 0, "b": 100}}, "numbers from -3 to 3, got"),
        ({"limits": [5, 200]}, "must enclose 'range'"),
        ({"scale": "logarithmic"}, "'scale' must be linear or log"),
        ({"scale": "log", "range": [0, 100]}, "above 0"),
        ({"missing": "yes"}, "'missing' must be refused or allowed"),
        ({"name": "volume ml"}, "cannot be a covariate's"),
        ({"name": "participant_id"}, "cannot be a covariate's"),
        ({"name": "noise"}, "cannot be a covariate's"),
        ({"name": "seed"}, "cannot be a covariate's"),
        ({"unit": 3}, "'unit' must be text, got 3"),
        ({"range": 44}, "'range' must be .lowest, highest., got 44"),
        ({"limits": 18}, "'limits' must be .lowest, highest., got 18"),
        ({"range": None, "levels": {"none": 0, "AD": 1}}, "the level 'none' is a word for a missing value"),
        ({"limits": [-150, 200]}, "scaled to -1.53; -1 means 'missing'. Raise it above -98"),
    ],
)
def test_a_schema_that_contradicts_itself_is_refused(entry, message):
    with pytest.raises(ValueError, match=message):
        user_schema(**entry)


def test_two_covariates_of_one_name_are_refused():
    with pytest.raises(ValueError, match="twice"):
        CovariateSchema.from_dict({"covariates": [{"name": "age", "range": [0, 1]}] * 2})


def test_a_schema_file_that_is_no_json_says_in_which_line(tmp_path):
    path = tmp_path / "covariates.json"
    path.write_text('{"covariates": [\n{"name": "age",}]}')
    with pytest.raises(ValueError, match="covariates.json: this is not JSON .*line 2"):
        CovariateSchema.from_file(path)
    with pytest.raises(ValueError, match="expected"):
        CovariateSchema.from_dict({"covariates": []})
    path.write_text("[]")
    with pytest.raises(ValueError, match=r'covariates.json: expected {"covariates": \[one entry or more\]}, got list'):
        CovariateSchema.from_file(path)


def test_a_user_changes_covariates_in_the_file_alone(tmp_path):
    path = tmp_path / "covariates.json"
    entries = [
        {"name": "diagnosis", "levels": {"CN": 0, "MCI": 0.5, "AD": 1}},
        {"name": "mmse", "range": [0, 30], "missing": "allowed"},
    ]
    path.write_text(json.dumps({"_desc_": "ours", "covariates": entries}))
    schema = CovariateSchema.from_file(path)
    assert schema.scale(single_request(schema, {"diagnosis": "MCI"})) == [0.5, NULL]
    assert schema.scale({"diagnosis": "AD", "mmse": 24}) == pytest.approx([1, 0.8])


def test_levels_that_pandas_wrote_as_decimals_are_read():
    schema = CovariateSchema.from_dict({"covariates": [{"name": "apoe4", "levels": {"0": 0, "1": 1}}]})
    assert [schema.values({"apoe4": cell})["apoe4"] for cell in ("1.0", "0", 1, 0.0)] == ["1", "0", "1", "0"]


def test_names_that_differ_only_in_case_are_refused():
    """A table's column "age" was read for one of them, and the other got no value."""
    entries = [{"name": name, "range": [40, 90], "missing": "allowed"} for name in ("age", "Age")]
    with pytest.raises(ValueError, match="a name appears twice"):
        CovariateSchema.from_dict({"covariates": entries})


def test_a_code_for_missing_values_is_named():
    schema = CovariateSchema.from_dict(
        {"covariates": [{"name": "age", "unit": "years", "range": [44, 82], "limits": [18, 120]}]}
    )
    for code in ("999", "-99"):
        with pytest.raises(ValueError, match=f"age is {code}, .*If it stands for a missing value, write n/a"):
            schema.values({"age": code})
