"""Refuse settings with a wrong type or out of range, before work starts. configs/settings.json holds the allowed values."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
import traceback
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
from monai.bundle import ConfigParser

from .overrides import command_line, config_files, is_run_id, refuse_ineffective, refuse_unknown
from .refusals import reason

logger = logging.getLogger(__name__)
CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PARTS = ("checks", "handlers")  # lists of expressions that are no run ids
REFERENCE = re.compile(r"@(\w+(?:(?:#|::)\w+)*)|settings\.content\('(\w+)'\)")
# A rule can end with a relation to other settings.
RELATIONS = {
    "divides": lambda value, other: all(number % value == 0 for number in other),
    "a multiple of": lambda value, other: value % other == 0,
    "as many as": lambda value, other: len(value) == len(other),
    "one fewer than": lambda value, other: len(value) == len(other) - 1,
    "up to the length of": lambda value, other: value <= len(other),
}
CALL = ("the command line", "the settings")  # origins of a setting that is given for one run, in error messages
RELATION = re.compile(rf"(.*?)(?:, ({'|'.join(RELATIONS)}) (\w+(?: and \w+)*))?")
NUMBERS = re.compile(r"(list of (?:(\d+) )?)?(whole )?numbers?(?: (from|above) (\S+))?(?: (to|below) (\S+))?")


def check(config: str, covariates: str = "") -> None:
    """Check names and values of all settings of the config that evaluates this call, whatever their origin.

    Warn of settings that were given for this run, but that its run id does not read.

    Args:
        config: name of the bundle's config without ".json", whose first block are the settings.
        covariates: name of the config's covariate schema, if covariates are valid on the command line, too.

    Raises:
        ValueError: a name is unknown, or a value is not allowed. The message gives both, and the allowed values.
    """
    parser = config_in_use()
    file = CONFIGS / f"{config}.json"
    base = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    names = list(base)
    settings = names[names.index("bundle_root") + 1 : names.index("device")] if base else []
    if not settings or set(settings) - set(parser.config):
        raise ValueError(
            f"this config is not {file}, but Python has loaded the code of that bundle. Start Python again for each bundle, "
            f"and not in the folder of the other one"
        )
    rules = rules_of(config)
    if "config_file" in command_line():
        refuse_unknown(lambda: parser.get_parsed_content(covariates).names if covariates else ())
    else:
        refuse_ineffective(parser.config, base)
    for name in settings:
        if parser.config[name] != base[name] and (instead := void(name, parser.config, base)):
            place, overlay = _place(name), _place(instead[0])
            if place in CALL and overlay not in CALL:
                raise ValueError(
                    f"{place}: {name} is {parser.config[name]!r}, but nothing reads it, because {overlay} replaces "
                    f"{' and '.join(instead)}. Leave out {name}, or leave out {overlay}"
                )
            other = instead[0]
            if place in CALL and instead == [other] and other in settings and parser.config[name] != parser.config[other]:
                raise ValueError(
                    f"{place}: {name} is {parser.config[name]!r}, but has no effect beside {other} {parser.config[other]!r}. "
                    f"Leave one of them out"
                )

    def refuse(name: str, problem: str | None) -> None:
        if problem is not None:
            default = None if str(base[name]).startswith(("$", "@")) else base[name]
            hint = f" The default is {default!r}." if default is not None else ""
            raise ValueError(f"{_place(name)}: {name} is {values[name]!r}{problem}. Allowed: {rules[name]}.{hint}")

    values = {}
    for name in settings:
        try:
            values[name] = parser.get_parsed_content(name)
        except Exception as error:
            if (given := parser.config[name]) == base[name]:
                raise
            raise ValueError(f"{_place(name)}: {name} is {given!r}, which cannot be evaluated ({reason(error)})") from error
        if isinstance(values[name], (os.PathLike, np.generic)):  # from Python. Configs join paths as text, and write JSON
            values[name] = values[name].item() if isinstance(values[name], np.generic) else os.fspath(values[name])
            parser.ref_resolver.resolved_content[name] = values[name]
        refuse(name, fault(RELATION.fullmatch(rules[name])[1], values[name]))
    for name in settings:
        _, relation, others = RELATION.fullmatch(rules[name]).groups()
        for other in others.split(" and ") if others else ():
            fits = RELATIONS[relation](values[name], values[other])
            refuse(name, None if fits else f" and {other} is {values[other]!r}")
    _warn_of_other_run_ids([name for name in settings if parser.config[name] != base[name] and _place(name) in CALL])


def _warn_of_other_run_ids(given: Iterable[str]) -> None:
    """Warn of each given setting that other run ids read, but not the one that MONAI evaluates in this call."""
    parser = config_in_use()
    frames = (frame.f_locals for frame, _ in traceback.walk_stack(None))
    *_, running = (str(own["id"]) for own in frames if own.get("self") is parser and "id" in own)  # the outermost one
    read = _read_by(running.split("::")[0])
    for name in given:
        others = [other for other, value in parser.config.items() if is_run_id(value) and name in _read_by(other)]
        if name not in read and (readers := [other for other in others if other not in PARTS]):
            whose = f"run id {readers[0]} reads" if len(readers) == 1 else f"run ids {', '.join(readers)} read"
            logger.warning(f"{name} is {parser.config[name]}, but has no effect here: only the {whose} it. Leave it out")


def _read_by(part: str) -> set[str]:
    """Return the parts of the config in use, such as "train#dataset", that are evaluated with this part."""
    parser, found, left = config_in_use(), set(), [part]
    while left:
        if (path := left.pop()) not in found and path in parser:
            found.add(path)
            left += ["".join(names) for names in REFERENCE.findall(str(parser[path]))]
    return found


def void(name: str, config: Mapping, base: Mapping) -> list[str]:
    """Return the parts that were given instead of those that read this setting in the config `base`, if nothing reads it.

    Parts of the run id exporting count only if the command line names it.
    """
    unused = () if "exporting" in sys.argv else ("export",)
    readers, still = (
        [
            other
            for other, value in some.items()
            if other != name and not other.startswith(unused) and re.search(rf"@{name}\b", str(value))
        ]
        for some in (base, config)
    )
    return [] if still else readers


def changed(config: str) -> dict[str, Any]:
    """Return the settings of the config that evaluates this call whose values are not the default's."""
    parser, base = config_in_use(), json.loads((CONFIGS / f"{config}.json").read_text(encoding="utf-8"))
    return {name: parser.get_parsed_content(name) for name in rules_of(config) if parser.config.get(name) != base.get(name)}


def content(name: str) -> Any:
    """Evaluate a part of the config that evaluates this call. Unlike `@name`, it is evaluated only when this line runs."""
    return config_in_use().get_parsed_content(name)


def rules_of(config: str) -> dict[str, str]:
    """Return the rule of each setting of a config, such as "number above 0 to 1" or "file or None"."""
    rules = json.loads((CONFIGS / "settings.json").read_text(encoding="utf-8"))
    return {name: rule for name, rule in rules.items() if isinstance(rule, str)} | rules.get(config, {})


def fault(rule: str, value: Any) -> str | None:
    """Return None if the rule allows the value, or else a remark for the error message, which can be empty."""
    optional = re.fullmatch(r"(.*) or None", rule)
    if optional and value is None:
        return None
    rule = optional[1] if optional else rule
    kind, _, _ = rule.partition(",")
    if kind in ("path", "file", "folder", "output folder"):
        return None if "content" in rule and isinstance(value, Mapping) else _path_fault(kind, value)
    if numbers := NUMBERS.fullmatch(rule):
        many, count, *limits = numbers.groups()
        if not many:
            allowed = _in_range(value, *limits)
        else:
            allowed = isinstance(value, (list, tuple)) and len(value) == int(count or len(value) or 1)
            allowed = allowed and all(_in_range(number, *limits) for number in value)
    elif rule == "True or False":
        allowed = isinstance(value, bool)
    elif rule == "values by name":
        allowed = isinstance(value, Mapping)
    elif rule == "text":
        allowed = isinstance(value, str) and bool(value.strip())
    elif rule.startswith("value of"):  # whoever reads the value knows what is allowed
        allowed = True
    else:
        words = "|".join(re.escape(word).replace("N", r"\d+") for word in re.split(r", | or ", rule))
        text = f"{value:g}" if isinstance(value, float) else str(value)
        allowed = isinstance(value, Real) == rule[0].isdigit() and re.fullmatch(words, text)
    if rule == "values by name":
        hint = ". Write \"{'name': value}\""
    else:
        hint = ", which is no text. Write it within quotes twice, \"'12'\"" * (rule == "text")
    return None if allowed else hint


def _in_range(value: Any, whole: str | None, lower: str | None, low: str, upper: str | None, high: str) -> bool:
    """Tell if a value is a finite number in a range whose ends are excluded by the words "above" and "below"."""
    if isinstance(value, bool) or not isinstance(value, Integral if whole else Real) or not math.isfinite(value):
        return False
    above = lower is None or value > float(low) or (lower == "from" and value == float(low))
    return above and (upper is None or value < float(high) or (upper == "to" and value == float(high)))


def _path_fault(kind: str, value: Any) -> str | None:
    """Say what is wrong with a path. Files that are missing are left to whoever reads them."""
    if not isinstance(value, (str, os.PathLike)):
        return ", which is no text. Write ./ before a name that looks like a number or a list"
    if not str(value).strip() or "\0" in str(value):
        return ""
    if "::" in str(value):
        return ", but MONAI reads # in a path as ::. Rename that folder or file, or use a link without #"
    if "://" in str(value):
        return ", which is an address, not a path. Give a folder or file of this computer"
    if str(value).split("/")[0] == "~":
        return ", but the shell did not replace ~ by your home folder. Write the whole path"
    if kind == "file" and os.path.isdir(value):
        return ", which is a folder"
    if kind in ("folder", "output folder") and os.path.isfile(value):
        return ", which is a file"
    if kind == "output folder":
        there = next(path for path in (Path(value).absolute(), *Path(value).absolute().parents) if path.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            return f", but {there} is {'read-only' if there.is_dir() else 'a file'}"
    return None


def _place(name: str) -> str:
    """Name the origin of a setting."""
    if name in command_line():
        return CALL[0]
    files = config_files(command_line())[1:]
    return next((file for file in reversed(files) if name in ConfigParser.load_config_file(file)), CALL[1])


def config_in_use() -> ConfigParser:
    """Return the parser that evaluates the call: it knows overlays, and overrides from the command line and from Python."""
    for frame, _ in traceback.walk_stack(None):
        if isinstance(parser := frame.f_locals.get("self"), ConfigParser):
            return parser
    raise RuntimeError("settings are checked by a config only")
