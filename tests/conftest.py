"""Fixtures of all tests: the repository's root, one thread per process, and a clean working folder in a bundle."""

import os
import sys
from contextlib import ExitStack, contextmanager
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


LOADED = {}  # the modules of each bundle that was left: to import them again takes a third of a second


@contextmanager
def entered_bundle(root):
    """Enter a bundle as its user does: working directory and import path at its root, no other `scripts` loaded."""
    with forgotten_scripts(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.syspath_prepend(root)
        sys.modules.update(LOADED.get(root, {}))
        yield root
        LOADED[root] = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "scripts"}


@pytest.fixture(params=["brain_ldm_bundle"])
def bundle(request):
    with entered_bundle(ROOT / request.param) as root:
        yield root


@pytest.fixture
def spade_bundle():
    with entered_bundle(ROOT / "spade_fusion_bundle") as root:
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
def enter(copies):
    """Enter the copy of a bundle as its user does, and leave the bundle that was entered before."""
    with ExitStack() as stack:

        def enter_one(name):
            stack.close()
            return stack.enter_context(entered_bundle(copies[name]))

        yield enter_one
