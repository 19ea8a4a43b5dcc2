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


@pytest.fixture(params=["brain_ldm_bundle"])
def bundle(request, monkeypatch, forget_scripts):
    """Enter a bundle as its user does: working directory and import path at its root, no other `scripts` loaded."""
    root = ROOT / request.param
    monkeypatch.chdir(root)
    monkeypatch.syspath_prepend(root)
    return root


@pytest.fixture
def spade_bundle(monkeypatch, forget_scripts):
    """Enter the SPADE bundle in the same way."""
    root = ROOT / "spade_fusion_bundle"
    monkeypatch.chdir(root)
    monkeypatch.syspath_prepend(root)
    return root
