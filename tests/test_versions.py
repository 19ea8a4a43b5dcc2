"""The project has one version, and every file that states it states the same."""

import datetime
import json
import re

import pytest
import yaml
from conftest import ROOT

BUNDLES = ("brain_ldm_bundle", "spade_fusion_bundle")
VERSION = json.loads((ROOT / "brain_ldm_bundle" / "configs" / "metadata.json").read_text())["version"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())


@pytest.mark.parametrize("bundle", BUNDLES)
def test_a_bundle_has_the_version_of_the_project_and_says_what_is_new(bundle):
    metadata = json.loads((ROOT / bundle / "configs" / "metadata.json").read_text())
    assert metadata["version"] == VERSION == next(iter(metadata["changelog"]))
    assert len(set(metadata["changelog"].values())) == len(metadata["changelog"])


def test_each_part_of_the_version_has_one_digit():
    """MONAI 1.6 sorts versions as text, so that 0.9.0 would be newer than 0.10.0."""
    assert re.fullmatch(r"\d\.\d\.\d", VERSION)


def test_the_newest_release_of_the_changelog_is_this_version():
    released = re.findall(r"^## \[(\d\S*)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released[0] == (VERSION, CITATION["date-released"].isoformat())
    dates = [datetime.date.fromisoformat(date) for _, date in released]
    assert dates == sorted(dates, reverse=True)


def test_changes_after_a_release_have_their_place():
    assert re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0] == "[Unreleased]"


def test_the_citation_has_this_version():
    assert str(CITATION["version"]) == VERSION


@pytest.mark.parametrize("bundle", BUNDLES)
def test_the_pages_download_this_version(bundle):
    addresses = re.findall(rf"{bundle}_v([\d.]+\d)\.zip", (ROOT / bundle / "docs" / "publishing.md").read_text())
    assert addresses and set(addresses) == {VERSION}
