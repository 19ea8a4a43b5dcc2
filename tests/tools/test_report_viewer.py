"""The viewer of the page holds the volumes that it should, its licences, and no other scripts."""

import base64
import hashlib
import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import report
from tiny_report import (
    MEASURED_ML,
    REQUESTED_ML,
    make_cohort,
    page_of,
    requested_cohort,
)

SCRIPTS = Path(report.__file__).parent


@pytest.fixture
def generated(tmp_path):
    return requested_cohort(tmp_path / "generated")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of `generated` without options, for the tests that only read it."""
    return page_of(requested_cohort(tmp_path_factory.mktemp("page") / "generated"))


def test_the_viewer_comes_with_the_licences_of_all_that_is_in_it(page):
    packages = re.findall(r"^(\S+@[\d.]+) +sha512-", (SCRIPTS / "vendor_niivue.sh").read_text(), re.MULTILINE)
    licences = (SCRIPTS / "report_page" / "viewer" / "niivue.LICENSE.txt").read_text()
    assert len(packages) == 10 and packages[0].startswith("@niivue/niivue")
    assert all(f"==== {package} ====" in licences for package in packages[1:])
    assert "Copyright (c) 2021, Niivue" in page and "Copyright (c) 2023 Arjun Barrett" in page  # NiiVue and fflate


def test_the_policy_lets_the_pages_own_scripts_run_and_no_others(page):
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', page)[1]
    run = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    hashes = {base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in run}
    assert set(re.findall(r"sha256-([^']+)'", re.search("script-src(.*?);", policy)[1])) == hashes and len(hashes) == 3
    assert "unsafe" not in policy and "http" not in policy


def test_scans_are_in_the_viewer_only_on_request(generated, tmp_path):
    real = make_cohort(tmp_path / "real", [f"sub-{i}" for i in range(6)], REQUESTED_ML, MEASURED_ML)
    page = page_of(generated, "--real", real[0], "--viewer", 3)
    assert "3 of 6 generated volumes are inside this page" in page and page.count('type="application/gzip"') == 3
    page = page_of(generated, "--real", real[0], "--viewer", 3, "--viewer_scans", 1)
    assert "3 of 6 generated volumes, 1 of 6 scans are inside" in page and page.count('type="application/gzip"') == 4


def test_without_a_viewer_the_page_is_small_and_keeps_its_filters(generated):
    page = page_of(generated, "--viewer", 0)
    assert len(page) < 1e6 and "niivue" not in page.lower() and 'id="filters"' in page and page.count("<script>") == 1


def test_the_viewer_starts_with_a_generated_volume_and_the_scan_most_like_it(generated, tmp_path):
    real = make_cohort(tmp_path / "real", [f"sub-{i}" for i in range(3)], [39.0, 12.0, 70.0], [1.0, 2.0, 3.0])
    page = page_of(generated, "--real", real[0], "--viewer_scans", 3)
    names = [entry["name"] for entry in json.loads(re.search(r'id="volumes">(.*?)</script>', page)[1])]
    left, right = (names[int(start)] for start in re.findall(r'data-start="(\d+)"', page))
    assert (left, right) == ("sub-syn0", "sub-0")  # 40 mL, the fourth of six, and 39 mL
    assert re.search(r"<option value=.*>sub-syn0: age 60.5\syears, sex F, lateral ventricles 40\smL</option>", page)


def test_a_page_of_large_volumes_stays_below_20_mb(tmp_path):
    """A page of heads at 1 mm had 80 MB. Noise cannot be compressed, so that this is the worst case."""
    generated = make_cohort(
        tmp_path / "generated", [f"sub-{i}" for i in range(8)], [*REQUESTED_ML, 70.0, 80.0], [*MEASURED_ML, 71.0, 79.0]
    )
    noise = np.random.default_rng(0).random((100, 120, 110)).astype(np.float32)
    first, *others = generated[0].rglob("*_T1w.nii.gz")
    nib.save(nib.Nifti1Image(noise, np.diag([1.0, 1.0, 1.0, 1.0])), first)
    for path in others:
        shutil.copy(first, path)
    page = page_of(generated)
    assert "resampled to 1.5 mm" in page and len(page) < 20e6
