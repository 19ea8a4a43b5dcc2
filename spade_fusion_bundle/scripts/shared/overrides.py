"""Refuse misspelt settings. MONAI accepts any unknown name silently, and the run uses the default."""

from __future__ import annotations

import ast
import difflib
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence

from monai.bundle import ConfigParser

from .refusals import is_bundle_command
from .tables import SYNONYMS

# Arguments of `python -m monai.bundle run` itself (MONAI 1.6).
RUN_ARGUMENTS = {
    "run_id", "init_id", "final_id", "meta_file", "config_file", "logging_file", "tracking", "args_file",
    "workflow_name", "workflow_type", "workflow", "help",
}  # fmt: skip


def command_line(argv: Sequence[str] | None = None) -> dict[str, object]:
    """Read the `--name value` and `--name=value` pairs of a command line, by default of this `python -m monai.bundle`.

    Python literals such as 3 or [1, 2] are evaluated, and all other values stay text.
    """
    if argv is None:
        argv = sys.argv if is_bundle_command() else []
    pairs = {}
    for position, argument in enumerate(argv):
        if not _is_flag(argument):
            continue
        name, equals, value = argument.lstrip("-").partition("=")
        if not equals:
            following = argv[position + 1 : position + 2]
            value = following[0] if following and not _is_flag(following[0]) else "True"
        try:
            pairs[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            pairs[name] = value
    return pairs


def _is_flag(argument: str) -> bool:
    """Tell a name after one or two dashes from a negative number."""
    return re.match(r"--?[A-Za-z_]", argument) is not None


def config_files(given: Mapping[str, object]) -> list[str]:
    """Return the files of `--config_file`, or [] without it."""
    files = given.get("config_file", [])
    return [files] if isinstance(files, str) else list(files)


def refuse_unknown(also_known: Callable[[], Iterable[str]] = tuple, argv: Sequence[str] | None = None) -> None:
    """Check the names on the command line and in further config files against the first config file.

    Nothing is checked without `--config_file`. The names that `also_known` returns, such as covariates, are valid although
    the config does not contain them; it is called only if there are such names.

    Raises:
        ValueError: a setting is unknown (the message suggests the nearest name), or true or false is written in lower case,
            which is read as text and so counts as True.
    """
    given = command_line(argv)
    base, *overlays = config_files(given) or [None]
    if base is None:
        return
    config = ConfigParser.load_config_file(base)
    names = {name: "the command line" for name in given if name not in RUN_ARGUMENTS}
    for overlay in overlays:
        content = ConfigParser.load_config_file(overlay)
        if "bundle_root" in content and "bundle_root" not in config:
            raise ValueError(f"config_file: {base} stands before {overlay}, which replaces its settings. Give {overlay} first")
        names |= {name: overlay for name in content}
    for name, place in names.items():
        path = name.lstrip("+").replace("::", "#").split("#")
        if path[0] not in config and path[0] not in (others := set(also_known())):
            raise ValueError(f"{place}: no setting is called {path[0]!r} in {base}.{_nearest(path[0], {*config, *others})}")
        here = config[path[0]] if path[0] in config else None
        for position, part in enumerate(path[1:], 1):
            if isinstance(here, list) and part.isdigit() and int(part) < len(here):
                here = here[int(part)]
                continue
            if isinstance(here, dict) and here and part not in here:
                raise ValueError(f"{place}: {'#'.join(path[:position])} has no {part!r} in {base}.{_nearest(part, here)}")
            here = here.get(part) if isinstance(here, dict) else None
        value = given.get(name)
        if value in ("true", "false") or (isinstance(here, bool) and place not in overlays and not isinstance(value, bool)):
            raise ValueError(f"{place}: {name} is {value!r}, which counts as true. Write True or False")


def refuse_ineffective(config: Mapping, base: Mapping, path: tuple[str, ...] = ()) -> None:
    """Refuse names that a workflow in Python was given, that the bundle's config `base` lacks, and that nothing refers to."""
    used = re.findall(r"@(\w+)", str(config)) if not path else ()
    for name in config:
        value, known = config[name], base.get(name)
        if name not in base and name not in used and name != "_meta_" and not is_run_id(value):
            where = f"in {'#'.join(path)}" if path else "in this config"
            raise ValueError(f"no setting is called {name!r} {where}, and nothing uses it.{_nearest(name, base)}")
        if known and isinstance(known, dict) and "_target_" not in known and isinstance(value, dict):
            refuse_ineffective(value, known, (*path, name))


def is_run_id(value: object) -> bool:
    """Tell a list of expressions from other values."""
    return isinstance(value, list) and str(value[:1])[2:3] in ("$", "@")


def _nearest(name: str, known: Iterable[str]) -> str:
    known = set(known)
    nearest = known & {SYNONYMS.get(name.lower())} or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if nearest:
        return f" Did you mean {next(iter(nearest))!r}?"
    return f" Known: {', '.join(sorted(known))}." if len(known) < 20 else " docs/settings.md lists all."
