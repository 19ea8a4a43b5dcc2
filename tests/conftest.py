"""Fixtures of all tests: the repository's root, one thread per process, and a clean working folder in a bundle."""

import os
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

# Before torch and ITK are imported: pytest-xdist runs one process per core.
for variable in ("OMP_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
    os.environ.setdefault(variable, "1")

ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def forgotten_scripts():
    """Drop `scripts` and `scripts.*` from `sys.modules` before and after: each bundle has its own."""

    def forget():
        for name in [name for name in sys.modules if name.split(".")[0] == "scripts"]:
            del sys.modules[name]

    forget()
    yield forget
    forget()


@pytest.fixture
def forget_scripts():
    """`forgotten_scripts` around a test."""
    with forgotten_scripts() as forget:
        yield forget


@contextmanager
def entered_bundle(name):
    """Enter a bundle as its user does: working directory and import path at its root, no other `scripts` loaded."""
    root = ROOT / name
    with forgotten_scripts(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.syspath_prepend(root)
        yield root


@pytest.fixture(params=["brain_ldm_bundle"])
def bundle(request):
    with entered_bundle(request.param) as root:
        yield root


@pytest.fixture
def spade_bundle():
    with entered_bundle("spade_fusion_bundle") as root:
        yield root


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """Copy both bundles, with tiny weights instead of their own."""
    from tiny_bundles import BUNDLES, copy_bundle  # not above, because it imports this file

    folder = tmp_path_factory.mktemp("bundles")
    return {name: copy_bundle(name, folder) for name in BUNDLES}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Write a data set for each bundle."""
    import tiny
    import tiny_spade
    from tiny_bundles import LDM, SPADE

    folder = tmp_path_factory.mktemp("data")
    return {
        LDM: str(tiny.write_dataset(folder / LDM, training=3, validation=1)),
        SPADE: str(tiny_spade.write_dataset(folder / SPADE, ("train", "fusion", "validation"))),
    }


@pytest.fixture
def enter(copies, monkeypatch, forget_scripts):
    """Enter the copy of a bundle as its user does, and leave the bundle that was entered before."""

    def enter_one(name):
        forget_scripts()
        monkeypatch.chdir(copies[name])
        monkeypatch.syspath_prepend(copies[name])
        return copies[name]

    return enter_one
