"""Where to compute."""

from __future__ import annotations

import os

import torch

__all__ = ["choose"]


def choose(name: str = "auto") -> torch.device:
    """`auto` takes this process's GPU (of LOCAL_RANK under torchrun), or the CPU where there is none.

    Raises:
        ValueError: a GPU that is not there.
    """
    if name == "auto":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device {name!r}: PyTorch {torch.__version__} sees no CUDA GPU. Use --use_device cpu")
        if (device.index or 0) >= torch.cuda.device_count():
            raise ValueError(f"device {name!r}: there are {torch.cuda.device_count()} GPUs, counted from 0")
    return device
