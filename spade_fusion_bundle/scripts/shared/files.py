"""Files that are whole or not there: NIfTI, JSON, weights."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import uuid
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
import torch
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

__all__ = ["atomic", "read_tensors", "read_whole", "save_weights", "sha256", "write_json"]


def read_whole(path: str | Path) -> nib.Nifti1Image:
    """Read a NIfTI file to its end into memory; nibabel alone stops at the last voxel, before the checksum.

    Raises:
        ValueError: truncated, corrupt or no NIfTI.
    """
    try:
        image_class = type(nib.load(path))
        content = Path(path).read_bytes()
        image = image_class.from_bytes(gzip.decompress(content) if str(path).endswith(".gz") else content)
        np.asanyarray(image.dataobj)
    except (OSError, EOFError, ValueError, AttributeError, zlib.error, ImageFileError, HeaderDataError) as error:
        raise ValueError(f"cannot be read to its end ({error})") from error
    return image


@contextmanager
def atomic(path: str | Path) -> Iterator[BinaryIO]:
    """A file that appears under its name when it is complete, or not at all.

    Raises:
        OSError: of the same kind, saying which file could not be written.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(beside, "xb") as file:
            yield file
        os.replace(beside, path)
    except OSError as error:
        raise type(error)(
            error.errno, f"{error.strerror} while writing {path}. Make room or choose another folder, then run again"
        ) from error
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: str | Path, content: dict) -> None:
    """Indented UTF-8, by `atomic`.

    Raises:
        ValueError: a number that is NaN or infinite, for which JSON has no word.
    """
    try:
        text = json.dumps(content, indent=4, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"{path}: not written, it would hold a number that is NaN or infinite") from error
    with atomic(path) as file:
        file.write(f"{text}\n".encode())


def sha256(path: str | Path) -> str:
    """Hash of a file's content, 64 hexadecimal digits; read again only when the file has changed."""
    path = Path(path).resolve()
    stat = path.stat()
    return _sha256(path, stat.st_mtime_ns, stat.st_size)


@lru_cache
def _sha256(path: Path, mtime_ns: int, size: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


def read_tensors(path: str | Path, **options) -> Any:
    """What a file of `torch.save` holds; tensors and plain values alone, never code.

    Raises:
        ValueError: no such file, or a damaged one.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, **options)
    except PermissionError:
        raise
    except Exception as error:  # damage shows as OSError, IndexError, struct.error, ...: whatever the bytes happen to mean
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: not a file of PyTorch weights, or damaged ({reason}). Fetch or train it again.") from error


def save_weights(state: Mapping, path: str | Path) -> None:
    """Write `state` to `path`: whole or not at all.

    Raises:
        ValueError: a tensor holds NaN or infinity; an older file at `path` stays as it was.
    """
    broken = next(_non_finite(state), None)
    if broken:
        raise ValueError(f"{path}: not written, {broken} is not finite. Training has diverged: lower the learning rate.")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.partial")
    try:
        with open(beside, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except (OSError, RuntimeError) as error:  # torch wraps a full disk in a RuntimeError
        raise OSError(f"{path}: could not be written ({error}). Is there room? An older file stays as it was.") from error
    finally:
        beside.unlink(missing_ok=True)


def _non_finite(state: Mapping, prefix: str = ""):
    for key, value in state.items():
        if isinstance(value, Mapping):
            yield from _non_finite(value, f"{prefix}{key}.")
        elif isinstance(value, torch.Tensor) and value.is_floating_point() and not torch.isfinite(value).all():
            yield f"{prefix}{key}"
