"""Where to compute: CPU, one GPU, or one GPU per process."""

from __future__ import annotations

import os

import ignite.distributed as idist
import torch

__all__ = ["choose", "refuse_ranks", "start_ranks", "supports_bfloat16"]


def choose(name: str = "auto") -> torch.device:
    """`auto` takes this process's GPU (of LOCAL_RANK under torchrun), or the CPU where there is none.

    Raises:
        ValueError: a GPU that is not there.
    """
    if name == "auto" and not torch.cuda.is_available():
        name = "cpu"
    if name in ("auto", "cuda"):
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device {name!r}: PyTorch {torch.__version__} sees no CUDA GPU. Use --use_device cpu")
        if (device.index or 0) >= torch.cuda.device_count():
            raise ValueError(f"device {name!r}: there are {torch.cuda.device_count()} GPUs, counted from 0")
    # What is called float32 is float32: by default convolutions would round to TF32, and a volume depend on its batch.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return device


def supports_bfloat16(device: torch.device | str) -> bool:
    """Whether mixed precision pays: GPUs from Ampere on. Older ones only emulate it."""
    return torch.device(device).type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def start_ranks(device: torch.device | str, distributed: bool) -> None:
    """Join the processes that torchrun started, before anything else of them talks to another.

    ignite would join them at its first own message otherwise, which one rank sends while another waits elsewhere.

    Raises:
        ValueError: several processes without configs/multi_gpu.json, each of which would train alone; or the reverse.
    """
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    if world_size > 1 and not distributed:
        raise ValueError(f"{world_size} processes, but one config: add configs/multi_gpu.json to --config_file")
    if distributed and "WORLD_SIZE" not in os.environ:
        raise ValueError("configs/multi_gpu.json is for several processes: start it with torchrun --nproc_per_node N")
    if distributed and not torch.distributed.is_initialized():
        idist.initialize("nccl" if torch.device(device).type == "cuda" else "gloo")


def refuse_ranks() -> None:
    """Refuse to train in several processes what only one can train.

    Raises:
        ValueError: torchrun started more than one; each would train alone, and write the same files.
    """
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    if world_size > 1:
        raise ValueError(f"{world_size} processes, but this trains in one: start it without torchrun")
