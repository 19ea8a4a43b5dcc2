"""Write the results of a long run as they come, so that a run that was stopped continues."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .files import code_sha256, is_device, version


class Journal:
    """Results of files, one line of JSON each, in a hidden file beside the output of a run.

    A result counts while its file has the same path, size and dates, and code and settings are the same. Nothing is read or
    written before `open`.

    Args:
        output: file that the run writes at its end. For a device or a pipe, such as /dev/stdout, no result is kept.
        settings: what a result depends on besides its file, as JSON can hold it.
    """

    def __init__(self, output: str | Path, settings: Sequence = ()) -> None:
        output = Path(output)
        self.path = None if is_device(output) else output.with_name(f".{output.name}.unfinished")
        self.settings = list(settings)
        self.found: dict[str, Any] = {}

    def open(self, files: Sequence[str | Path]) -> list[str | Path]:
        """Read the results of an earlier run that was stopped, and return the files without one."""
        known = {}
        if self.path and self.path.is_file():
            for line in self.path.read_bytes().split(b"\n"):
                try:
                    state, result = json.loads(line)
                except (ValueError, TypeError):  # the last line, which was cut short
                    continue
                known[json.dumps(state)] = result
        states = {file: self._state(file) for file in files} if known else {}
        self.found = {str(file): known[key] for file, state in states.items() if state and (key := json.dumps(state)) in known}
        return [file for file in files if str(file) not in self.found]

    def add(self, file: str | Path, result: Any) -> None:
        """Keep a result, as JSON can hold it. It is on the disk when this function returns."""
        self.found[str(file)] = result
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab") as journal:  # begins a line, because the line before may be cut short
                journal.write(f"\n{json.dumps([self._state(file), result])}".encode())

    def close(self) -> None:
        """Remove the hidden file, once the output is written."""
        if self.path:
            self.path.unlink(missing_ok=True)

    def _state(self, file: str | Path) -> list | None:
        try:
            return [code_sha256(), *self.settings, *version(Path(file))]
        except OSError:  # such as a link to a missing file, which the run refuses by name
            return None
