"""Each bundle is downloaded alone, so what both need exists twice: the two copies must not drift apart."""

import pytest
from conftest import ROOT


@pytest.mark.parametrize("name", ["device.py", "files.py", "handlers.py", "overrides.py", "panels.py", "sections.py"])
def test_both_bundles_hold_the_same_file(name):
    ours, theirs = (ROOT / bundle / "scripts" / name for bundle in ("brain_ldm_bundle", "spade_fusion_bundle"))
    assert ours.read_text() == theirs.read_text()
