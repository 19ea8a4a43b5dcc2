"""Write files completely or not at all, and name a damaged file when it is read."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import tempfile
import uuid
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

DATA = (".nii", ".nii.gz", ".mgz", ".mgh", "_sessions.tsv", "aseg.stats")  # no table, page or weights may replace such a file

WORKBOOKS = (".xls", ".xlsx", ".ods")
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")


@contextmanager
def atomic(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for writing that gets its name only when it is complete. A missing folder is created.

    Raises:
        OSError: the file cannot be written. The message names it, an older file stays, and no incomplete file is left.
    """
    path = Path(path)
    in_place = is_device(path)
    target = path if in_place else path.with_name(f".{uuid.uuid4().hex}.tmp")
    own = False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "ab" if in_place else "xb") as file:  # stdout may be a file with content, as in `command >> file`
            own = not in_place
            yield file
        if own:
            os.replace(target, path)
    except OSError as error:
        if error.strerror is None or error.filename and Path(error.filename) not in (target, path, *path.parents):
            raise  # the writer's own message, such as about a file that it reads
        raise _cannot_write(path, error) from error
    finally:
        if own:
            target.unlink(missing_ok=True)


def refuse_unwritable(path: str | Path, inputs: Iterable[Path] = ()) -> None:
    """Refuse an output file that cannot be written, or that is one of the inputs, before work starts. Nothing is created."""
    if re.match(r"\w\w+:/", str(path)):
        raise ValueError(f"{path}: this is an address, not a path. Give a file of this computer")
    if Path(path).parts[:1] == ("~",):
        raise ValueError(f"{path}: the shell did not replace ~ by your home folder. Write the whole path")
    path = Path(path).absolute()
    if path.suffix.lower() in WORKBOOKS:
        raise ValueError(f"{path}: this output is text, not a workbook. End its name in .tsv or .csv")
    if path.is_file() and any(source.is_file() and source.samefile(path) for source in inputs):
        raise ValueError(f"{path}: this output is also an input, which would be lost. Give it another name")
    if path.is_file() and (path.name == "participants.tsv" or path.name.endswith(DATA)):
        raise ValueError(f"{path}: this output would replace data of a study. Give it another name")
    if path.suffix.lower() in COMPRESSED and not path.name.endswith(DATA):
        raise ValueError(f"{path}: this output is not compressed. Leave {path.suffix} out of its name")
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "A folder has this name")
        if not is_device(path):
            with tempfile.TemporaryFile(dir=next(parent for parent in path.parents if parent.exists())):
                pass
    except OSError as error:
        raise _cannot_write(path, error) from error


def _cannot_write(path: Path, error: OSError) -> OSError:
    remedy = "Make room or choose another folder, then run again"
    if isinstance(error, BrokenPipeError):
        remedy = "The program that read it ended early"
    return type(error)(f"{error.strerror} while writing {path}. {remedy}")


def is_device(path: Path) -> bool:
    """Tell /dev/stdout or a pipe, which must not be replaced, from a file."""
    return path.parent == Path("/dev") or path.exists() and not (path.is_file() or path.is_dir())


def write_text(path: str | Path, text: str) -> None:
    """Write text in UTF-8 with `atomic`."""
    with atomic(path) as file:
        file.write(text.encode())


def write_json(path: str | Path, content: Mapping) -> None:
    """Write indented JSON with `atomic`. NaN and infinity are refused, because JSON cannot hold them."""
    try:
        text = json.dumps(content, indent=4, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"{path}: not written, it would hold a number that is NaN or infinite") from error
    write_text(path, f"{text}\n")


def read_json(path: str | Path, expected: str = "a JSON object") -> dict:
    """Read a JSON object in UTF-8, UTF-16 or UTF-32; errors name the file and the `expected` content."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=refuse_twice)
    except ValueError as error:
        raise ValueError(f"{path}: this is not JSON ({error}). It needs {expected}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected {expected}, got {type(content).__name__}")
    return content


def refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse repeated keys, as a hook for `json.loads`, which silently keeps the last one."""
    keys = [key for key, _ in pairs]
    if twice := {key for key in keys if keys.count(key) > 1}:
        raise ValueError(f"given twice: {', '.join(sorted(twice))}")
    return dict(pairs)


def is_there(path: Path) -> bool:
    """Check whether there is an optional file. A link without its file is refused, because the content would be ignored."""
    if path.is_symlink() and not path.exists():
        raise FileNotFoundError(
            f"{path}: is a link to {os.readlink(path)}, which does not exist. Fetch that file, or remove the link"
        )
    return path.exists()


def save_figure(path: str | Path, figure: Any, dpi: int = 100, **options) -> None:
    """Write a figure of matplotlib as PNG with `atomic`; `options` go to its `savefig`."""
    with atomic(path) as file:
        figure.savefig(file, format="png", dpi=dpi, **options)


def sha256(path: str | Path) -> str:
    """Compute the SHA-256 of a file as 64 hexadecimal digits. An unchanged file is read only once."""
    path = Path(path).resolve()
    return _sha256(path, *version(path)[1:])


def version(path: str | Path) -> list[str | int]:
    """Return path, size and dates of a file. A file that replaces it has others: copies may keep the mtime only."""
    stat = os.stat(path)
    return [os.path.abspath(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


@lru_cache
def code_sha256() -> str:
    """Return a hash of the code that turns files into tensors. Names of cached files depend on it, so no update is ignored."""
    files = sorted(path for room in ("shared", "data") for path in (Path(__file__).parents[1] / room).glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


@lru_cache
def _sha256(path: Path, *_: int) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


def is_whole_array(path: str | Path) -> bool:
    """Check for a complete file of `np.save`, without reading its values."""
    try:
        np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return False
    return True


def read_tensors(path: str | Path, **options) -> Any:
    """Read tensors and plain values from a file of `torch.save`, or tensors from one of safetensors; never run code from it.

    `options` are for `torch.load`.
    """
    import torch  # here, because it takes seconds, and most tools write files without it

    if _is_safetensors(Path(path)):
        return _read_safetensors(path)
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, **options)
    except PermissionError:
        raise
    except Exception as error:  # a damaged file raises OSError, IndexError, struct.error and others
        reason = _reason(Path(path), str(error) or type(error).__name__)
        raise ValueError(f"{path}: not a file of PyTorch weights, {reason}") from error
    if not options.get("mmap") and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            if damaged := file.testzip():  # PyTorch does not compare the checksums
                raise ValueError(f"{path}: {damaged} does not have its checksum. Fetch or train it again, or save it again")
    return tensors


def _is_safetensors(path: Path) -> bool:
    """Check whether a file begins with the length of a header and with JSON, as those of safetensors do."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        header = file.read(9)
    return header[8:] == b"{" and int.from_bytes(header[:8], "little") < path.stat().st_size


def _read_safetensors(path: str | Path) -> dict[str, Any]:
    """Read a file of safetensors by its package, which is optional."""
    from monai.utils import optional_import

    load_file, installed = optional_import("safetensors.torch", name="load_file")
    if not installed:
        raise ValueError(f"{path}: a file of safetensors, which needs a package: pip install safetensors")
    try:
        return load_file(path)
    except Exception as error:  # SafetensorError, OSError and others
        raise ValueError(f"{path}: a damaged file of safetensors ({error}). Fetch or save it again") from error


def _reason(path: Path, error: str) -> str:
    """Describe why PyTorch cannot read a file, and what to do, from the beginning of the file and PyTorch's message."""
    with open(path, "rb") as file:
        header = file.read(40)
    if "TorchScript" in error:
        return "but a TorchScript file, such as model.ts. Give the file of weights that it was exported from."
    if found := re.search(r"Unsupported global: GLOBAL (\S+)", error):
        return (
            f"because it holds a pickled {found[1]}, which could run code when it is read. Load it where it was made, and save "
            f"the weights alone: torch.save(network.state_dict(), FILE)."
        )
    if "Unsupported operand" in error:  # a web page, a Git LFS pointer, a compressed file
        return f"because it begins with {header!r}. Fetch or train it again."
    return f"or damaged ({error.removeprefix('Weights only load failed. ').splitlines()[0][:120]}). Fetch or train it again."


def save_weights(state: Mapping, path: str | Path) -> None:
    """Write a state dict, or a dictionary of several, with `atomic`. A tensor with NaN or infinity is refused."""
    import torch

    broken = next(non_finite(state), None)
    if broken:
        raise ValueError(f"{path}: not written, {broken} is not finite. Training has diverged: lower the learning rate.")
    with atomic(path) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # torch raises this if the disk is full
            raise OSError(None, str(error)) from error
        file.flush()
        os.fsync(file.fileno())  # the new file must be on the disk before it replaces the old one


def non_finite(state: Mapping, prefix: str = "") -> Iterator[str]:
    """Yield the name of each tensor with NaN or infinity, in a state dict or in a dictionary of several."""
    for key, value in state.items():
        if isinstance(value, Mapping):
            yield from non_finite(value, f"{prefix}{key}.")
        elif hasattr(value, "is_floating_point") and value.is_floating_point() and not value.float().isfinite().all():
            yield f"{prefix}{key}"
