"""Each bundle is downloaded alone, so both have a copy of the shared code. The copies must stay equal."""

import filecmp

from conftest import ROOT

COPY = "rm -r spade_fusion_bundle/scripts/shared; cp -r brain_ldm_bundle/scripts/shared spade_fusion_bundle/scripts"


def differences(ours, theirs):
    """Names of the Python files that are not equal in two folders."""
    names = sorted({path.name for folder in (ours, theirs) for path in folder.glob("*.py")})
    same, _, _ = filecmp.cmpfiles(ours, theirs, names, shallow=False)
    return [name for name in names if name not in same]


def test_both_bundles_hold_the_same_shared_folder():
    ours, theirs = (ROOT / bundle / "scripts" / "shared" for bundle in ("brain_ldm_bundle", "spade_fusion_bundle"))
    assert not differences(ours, theirs), f"{differences(ours, theirs)} differ. To copy the files of brain_ldm_bundle: {COPY}"
