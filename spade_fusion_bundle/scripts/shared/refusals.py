"""End a program that fails with one sentence instead of a traceback. BUNDLE_DEBUG=1 shows the traceback before it."""

from __future__ import annotations

import json
import linecache
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NoReturn

# Errors in which MONAI hides the cause.
WRAPPERS = re.compile(r"Failed to evaluate|Failed to instantiate component|applying transform")
LESS_MEMORY = "Close other programs, use smaller batches or a coarser spacing"
# `raise` in this project's code is an answer to the user; any other error there, or elsewhere, is unexpected.
OUR_CODE = re.compile(r"^(?!.*site-packages).*[\\/](scripts[\\/].*\.py)$")


def install() -> None:
    """Show errors that end `python -m monai.bundle` as one sentence. A program that imports the bundle keeps its own way."""
    if is_bundle_command():
        sys.excepthook = show


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run a tool, whose errors end it with one sentence and the exit status 1."""
    sys.excepthook = show
    with suppress(AttributeError):  # stdout is closed
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr has it, because a terminal may lack a path's letters
    sys.exit(main())


def is_bundle_command() -> bool:
    """Tell `python -m monai.bundle ...` from other programs."""
    return re.search(r"monai\Wbundle", "".join(sys.argv[:1])) is not None


def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Write the sentence as the last line of the program. Under torchrun, write it into the summary of the launcher.

    This is a `sys.excepthook`.
    """
    if os.environ.get("BUNDLE_DEBUG"):
        sys.__excepthook__(kind, error, trace)
    text = f"error: {sentence(error)}"
    with suppress(AttributeError, OSError):  # stdout is closed, or nobody reads it
        sys.stdout.flush()
    if summary := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        if int(os.environ.get("RANK", 0)) > 0:
            # If rank 0 fails, too, the launcher ends this rank meanwhile, and the summary has one sentence.
            signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
            time.sleep(20)
        Path(summary).write_text(json.dumps({"message": {"message": text, "extraInfo": {"timestamp": str(int(time.time()))}}}))
    end_with("" if summary else text)


def end_with(text: str) -> None:
    """Write the last line of the program, if any. Neither progress bars nor libraries write after it."""
    if text:
        print(f"\n{text}", file=sys.stderr, flush=True)
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(silence, stream)


def sentence(error: BaseException) -> str:
    """Say in one sentence what ended the program: what, where, the value and what to do."""
    error = reason(error)
    texts = [text for text in (str(error), str(error.__cause__)) if "Traceback (most recent call last)" in text]
    kind, message, refused, place = _parse(texts[0]) if texts else _describe(error)
    if isinstance(error, KeyboardInterrupt):
        return "stopped by Ctrl-C. Run the same command again"
    if kind == "OutOfMemoryError":
        return f"the GPU has too little memory. {message.split('. GPU')[0]}. {LESS_MEMORY}"
    if isinstance(error, MemoryError) or "can't allocate memory" in message:
        return f"this machine has too little memory{message and f' ({message})'}. {LESS_MEMORY}"
    if refused:
        return message
    if kind == "ModuleNotFoundError":
        return f"{message}. Install it with pip"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else f"{error.strerror}{place}"
    return f"unexpected {kind}: {message}{place}. Set BUNDLE_DEBUG=1 to see the traceback"


def reason(error: BaseException) -> BaseException:
    """Return the error below the errors that only say where it happened in a config or in a chain of transforms."""
    while WRAPPERS.match(str(error)) and (error.__cause__ or error.__context__):
        error = error.__cause__ or error.__context__
    return error


def _describe(error: BaseException) -> tuple[str, str, bool, str]:
    """Return the type of an error, its message, if our code raised it on purpose, and the place in our code."""
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    return type(error).__name__, str(error), *_place(frames)


def _parse(text: str) -> tuple[str, str, bool, str]:
    """Read the same from the traceback that another process sent as text."""
    for block in reversed(text.split("\n\nThe above exception was the direct cause of the following exception:\n\n")):
        *_, last = block.split("Traceback (most recent call last)")
        after_code = re.sub(r'[\s\S]*\n  File ".*\n(    .*\n)*', "", last).strip('"\n')
        kind, _, message = after_code.partition(": ")
        if not WRAPPERS.match(message):
            break
    frames = re.findall(r'  File "(.*)", line (\d+)', last)
    return kind.rsplit(".", 1)[-1], message, *_place([(file, int(line)) for file, line in frames])


def _place(frames: list[tuple[str, int]]) -> tuple[bool, str]:
    """Tell if the innermost of the frames is a `raise` in our code, and name the innermost line of our code."""
    refused = bool(frames) and OUR_CODE.search(frames[-1][0]) and linecache.getline(*frames[-1]).lstrip().startswith("raise ")
    ours = [(found[1], line) for file, line in frames if (found := OUR_CODE.search(file))]
    return bool(refused), " ({}:{})".format(*ours[-1]) if ours else ""
