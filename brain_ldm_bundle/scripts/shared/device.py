"""Choose the CPU or a GPU, and join the processes that torchrun started."""

from __future__ import annotations

import os

import ignite.distributed as idist
import torch


def choose(name: str = "auto") -> torch.device:
    """Choose a device by its name.

    Args:
        name: name for PyTorch, such as "cpu" or "cuda:1". "auto" is this process's GPU (LOCAL_RANK under torchrun), or the CPU
            of a machine without GPUs.

    Raises:
        ValueError: there is no such GPU.
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
    # By default, convolutions of float32 round to TF32. Then a volume would depend on the batch that it is computed in.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return device


def supports_bfloat16(device: torch.device | str) -> bool:
    """Whether mixed precision saves time: on GPUs from Ampere on. Older GPUs only emulate it."""
    return torch.device(device).type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def start_ranks(device: torch.device | str, distributed: bool) -> None:
    """Join the processes that torchrun started, before they send each other anything else.

    Otherwise ignite joins them at its own first message, which one process may send while another waits elsewhere.

    Args:
        device: device of this process.
        distributed: whether configs/multi_gpu.json is in use.

    Raises:
        ValueError: there are several processes without configs/multi_gpu.json, so that each would train alone; or the reverse.
    """
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    if world_size > 1 and not distributed:
        raise ValueError(f"{world_size} processes, but one config: add configs/multi_gpu.json to --config_file")
    if distributed and "WORLD_SIZE" not in os.environ:
        raise ValueError("configs/multi_gpu.json is for several processes: start it with torchrun --nproc_per_node N")
    if distributed and not torch.distributed.is_initialized():
        idist.initialize("nccl" if torch.device(device).type == "cuda" else "gloo")


def refuse_ranks() -> None:
    """Refuse several processes for a training that runs in one: each would train alone and write the same files."""
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    if world_size > 1:
        raise ValueError(f"{world_size} processes, but this trains in one: start it without torchrun")
