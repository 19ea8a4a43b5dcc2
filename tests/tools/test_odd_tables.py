"""All readers of tables give the same answer for tables that were damaged at random: equal values, or a refusal by name."""

import random
import warnings

import make_requests
import pytest
import read_volumes
from cohorts.row_matching import read_by_participant
from conftest import ROOT

from brain_ldm_bundle.scripts.data.covariates import CovariateSchema
from brain_ldm_bundle.scripts.data.measured_rows import measured_values, read_rows
from brain_ldm_bundle.scripts.shared.problems import refuse

SCHEMA = CovariateSchema.from_file(ROOT / "brain_ldm_bundle" / "configs" / "covariates.json")
HEADER = "participant_id\tage\tsex\tventricles_ml\tbrain_normalised_ml\tnotes of the reader\n"
TABLE = HEADER + "".join(
    f"sub-{n:02}\t{50 + n}\t{'FM'[n % 2]}\t{20 + n}\t{1400 + n}\tnothing to be seen here\n" for n in range(8)
)
JUNK = ["\t", "\n", '"', ",", ";", "\0", "\x1a", "é", "\ufeff", "NA", "nan", "1e400", "-", "_", " ", "\r", "\u2028", "inf", "x"]
JUNK += ["0x1f", "１", "٣", "89+", "50,5", "#", "\x85", "S", "1", ".0", " ", "sub-", "5", "F"]


def damaged(rng):
    """The table with one or two changes, in one of the encodings that programs write."""
    text = TABLE
    for _ in range(rng.randint(1, 2)):
        start = rng.randrange(len(text))
        text = text[:start] + rng.choice(JUNK) + text[start + rng.choice([0, 0, 1, 3, 10]) :]
    return text.encode(rng.choice(["utf-8", "utf-8-sig", "utf-16"]), errors="replace")


def by_dataset(path):
    rows, problems = read_rows(path, SCHEMA)
    values, faults = measured_values(rows, SCHEMA, str(path))
    refuse(problems + faults)
    return {participant: row["ventricles_ml"] for (participant, _), row in values.items()}


def by_requests(path):
    make_requests.main([str(path), str(path.with_name("requests.tsv")), "--rows", "2"])


def by_read_volumes(path):
    rows = list(read_volumes.read_source(path))
    refuse([row["error"] for row in rows if row["error"]])
    return with_prefix({row["participant_id"]: row["ventricles_ml"] for row in rows})


def by_report(path):
    return with_prefix(read_by_participant(path)["ventricles_ml"])


def with_prefix(values):
    """The tools also read tables of programs that do not know BIDS' names, so they leave names as they are."""
    return {f"sub-{name.removeprefix('sub-')}": value for name, value in values.items()}


def answers(path):
    """What each reader reads; a refusal must name the file."""
    found = {}
    for read in (by_dataset, by_requests, by_read_volumes, by_report):
        try:
            found[read] = read(path)
        except ValueError as error:
            assert path.name in str(error).split("\n")[0], error
        except KeyError:
            assert read is by_report, path  # a table without ventricles is sound for the report
    return found


@pytest.mark.parametrize("number", [150, pytest.param(5000, marks=pytest.mark.slow)])
def test_damaged_tables_are_read_alike_or_refused_by_name(tmp_path, number):
    rng, path, accepted = random.Random(number), tmp_path / "participants.tsv", 0
    for _ in range(number):
        path.write_bytes(damaged(rng))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = answers(path)
        assert (by_dataset in found) == (by_requests in found)
        if by_dataset in found:
            accepted += 1
            for read in (by_read_volumes, by_report):
                assert found[read] == found[by_dataset], (read, path.read_bytes())
    assert 0.1 * number < accepted < 0.9 * number  # else the changes are too rough or too small to show anything
