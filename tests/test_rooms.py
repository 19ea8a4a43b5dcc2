"""Imports inside a bundle run downwards only: evaluation, generation, training, model, data, shared. None is circular."""

import ast

import pytest
from conftest import ROOT

ROOMS = ("shared", "data", "model", "training", "generation", "evaluation")  # a room may import those before it, and itself
BUNDLES = ("brain_ldm_bundle", "spade_fusion_bundle")


def modules(bundle):
    """Dotted name below `scripts` of each module to its file; of packages too."""
    folder = ROOT / bundle / "scripts"
    files = {path.relative_to(folder).with_suffix("").as_posix().replace("/", "."): path for path in folder.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for name, path in files.items() if name != "__init__"}


def imported(name, path):
    """Modules below `scripts` that a module imports, as dotted names; everything else is left out."""
    parts = name.split(".")[: None if path.name == "__init__.py" else -1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*parts[: len(parts) - node.level + 1], *filter(None, [node.module])]
            yield from (".".join([*base, alias.name]) for alias in node.names)


@pytest.mark.parametrize("bundle", BUNDLES)
def test_every_module_lies_in_a_room(bundle):
    assert {name.split(".")[0] for name in modules(bundle)} == set(ROOMS)


@pytest.mark.parametrize("bundle", BUNDLES)
def test_imports_run_downwards(bundle):
    upwards = [
        f"{name} imports {target}"
        for name, path in modules(bundle).items()
        for target in imported(name, path)
        if ROOMS.index(target.split(".")[0]) > ROOMS.index(name.split(".")[0])
    ]
    assert upwards == []


@pytest.mark.parametrize("bundle", BUNDLES)
def test_no_modules_import_each_other_in_a_circle(bundle):
    known = modules(bundle)
    arrows = {
        name: {next((m for m in (target, target.rpartition(".")[0]) if m in known), None) for target in imported(name, path)}
        for name, path in known.items()
    }
    while leaves := {name for name, targets in arrows.items() if not (targets - {None, name}) & arrows.keys()}:
        arrows = {name: targets for name, targets in arrows.items() if name not in leaves}
    assert not arrows, f"a circle among {sorted(arrows)}"
