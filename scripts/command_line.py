"""What all tools do alike on their command line: --version, --quiet, and the list of exit statuses below --help."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

METADATA = Path(__file__).resolve().parents[1] / "brain_ldm_bundle" / "configs" / "metadata.json"
EXIT_STATUS = "exit status: 0 done; 1 refused or failed; 2 wrong command line; 130 stopped by Ctrl-C"


class Parser(argparse.ArgumentParser):
    """Parse the command line of a tool. A tool calls it before it imports what takes seconds, such as PyTorch."""

    def __init__(self, **settings) -> None:
        defaults = {"formatter_class": argparse.RawDescriptionHelpFormatter, "epilog": EXIT_STATUS}
        super().__init__(**defaults | settings)
        version = json.loads(METADATA.read_text())["version"]
        self.add_argument("--version", action="version", version=f"%(prog)s {version}", help="show the version and exit")

    def add_quiet(self) -> None:
        """Add --quiet, which hides the progress bars of this process and of those that it starts."""
        self.add_argument("--quiet", action=_Quiet, nargs=0, dest=argparse.SUPPRESS, help="show no progress bars")


class _Quiet(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None) -> None:
        os.environ["TQDM_DISABLE"] = "1"  # tqdm reads it when it is imported, after the command line
