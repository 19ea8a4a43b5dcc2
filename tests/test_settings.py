"""Each bundle's docs/settings.md lists the settings of its configs with their defaults, and settings come first in a config."""

import json
import re

import pytest
from conftest import ROOT

CASES = [
    (bundle, path.name)
    for bundle in ("brain_ldm_bundle", "spade_fusion_bundle")
    for path in sorted((ROOT / bundle / "configs").glob("*.json"))
    if "bundle_root" in json.loads(path.read_text())  # a workflow, neither an overlay nor data
]


def config_of(bundle, name):
    return json.loads((ROOT / bundle / "configs" / name).read_text())


def settings_of(config):
    """The first block of a config: what stands between "bundle_root" and "device", which begins the wiring."""
    names = list(config)
    return {name: config[name] for name in names[names.index("bundle_root") + 1 : names.index("device")]}


def documented(bundle, name, column=1):
    """Name to default, or another column, of each row of a config's table in docs/settings.md."""
    text = (ROOT / bundle / "docs" / "settings.md").read_text()
    section = re.search(rf"^## {re.escape(name)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)[1]
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in section.splitlines() if line.startswith("| `")]
    return {row[0].strip("`"): row[column].strip("`") for row in rows}


def rules_of(bundle, name):
    """The rule of each setting of a config, in the order of the config."""
    rules = config_of(bundle, "settings.json")
    return {
        setting: rules[name[: -len(".json")]].get(setting) or rules.get(setting)
        for setting in settings_of(config_of(bundle, name))
    }


def shown(value):
    """A default as the table shows it: a path by the setting that it begins with, a string without quotes."""
    if isinstance(value, str):
        return re.sub(r"^\$@(\w+) \+ '(/[^']*)'$", r"\1\2", value)
    return value


@pytest.mark.parametrize(("bundle", "name"), CASES)
def test_the_table_holds_the_settings_of_the_config_in_their_order(bundle, name):
    assert list(documented(bundle, name)) == list(settings_of(config_of(bundle, name)))


@pytest.mark.parametrize(("bundle", "name"), CASES)
def test_the_table_holds_the_defaults_of_the_config(bundle, name):
    table = documented(bundle, name)
    for setting, value in settings_of(config_of(bundle, name)).items():
        found = table[setting] if isinstance(value, str) else json.loads(table[setting])
        assert found == shown(value), setting


@pytest.mark.parametrize(("bundle", "name"), CASES)
def test_the_table_holds_the_rules_of_the_values_and_each_setting_has_one(bundle, name):
    assert documented(bundle, name, column=2) == rules_of(bundle, name)


@pytest.mark.parametrize(("bundle", "name"), CASES)
def test_no_setting_hides_below_the_first_block(bundle, name):
    config = config_of(bundle, name)
    wiring = {key: value for key, value in config.items() if key not in settings_of(config) and key != "_desc_"}
    assert [key for key, value in wiring.items() if not isinstance(value, (dict, list)) and str(value)[0] not in "$@"] == []


@pytest.mark.parametrize(("bundle", "name"), CASES)
def test_expressions_of_a_config_are_short_and_without_lambda(bundle, name):
    expressions = re.findall(r'"(\$(?:[^"\\]|\\.)*)"', (ROOT / bundle / "configs" / name).read_text())
    assert [expression for expression in expressions if len(expression) > 100 or "lambda" in expression] == []
