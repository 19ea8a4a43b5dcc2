"""Choose the CPU or a GPU, and join the processes that torchrun started."""

from __future__ import annotations

import os

import ignite.distributed as idist
import torch


def choose(name: str = "auto") -> torch.device:
    """Choose a device and switch off TF32; raise ValueError if there is no such GPU.

    Args:
        name: PyTorch's name of a device, such as "cpu" or "cuda:1". "auto" chooses the GPU of this process (LOCAL_RANK under
            torchrun), or the CPU if the machine has no GPU.
    """
    if name == "auto" and not torch.cuda.is_available():
        name = "cpu"
    if name in ("auto", "cuda"):
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device {name!r}: no such device. Use --use_device auto, cpu, cuda, cuda:1 or mps")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device 'mps': PyTorch {torch.__version__} sees no GPU of Apple. Use --use_device cpu")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device {name!r}: PyTorch {torch.__version__} sees no CUDA GPU. Use --use_device cpu")
        if (device.index or 0) >= torch.cuda.device_count():
            raise ValueError(f"device {name!r}: there are {torch.cuda.device_count()} GPUs, counted from 0")
    # By default, float32 convolutions round to TF32, and a volume would depend on the other volumes in its batch.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return device


def supports_bfloat16(device: torch.device | str) -> bool:
    """Check whether bfloat16 saves time. GPUs older than Ampere only emulate it."""
    return torch.device(device).type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def ranks() -> tuple[int, int]:
    """Read the rank of this process and the number of processes from the environment; (0, 1) without torchrun.

    Raises:
        ValueError: they contradict each other. A process whose rank does not exist would make none of its volumes.
    """
    rank, world_size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not (rank.isdecimal() and world_size.isdecimal() and int(rank) < int(world_size)):
        raise ValueError(
            f"the environment has RANK={rank} and WORLD_SIZE={world_size}, but ranks count from 0 to WORLD_SIZE - 1. Unset "
            f"both, or start with torchrun"
        )
    return int(rank), int(world_size)


def start_ranks(device: torch.device | str, distributed: bool) -> None:
    """Join the processes that torchrun started.

    Call it before any other communication. Otherwise ignite joins them at its first message, and a process that waits for
    something else blocks all. `distributed` is true if configs/multi_gpu.json is in use.

    Raises:
        ValueError: several processes run without configs/multi_gpu.json, or the config is in use without torchrun.
    """
    _, world_size = ranks()
    if world_size > 1 and not distributed:
        raise ValueError(f"{world_size} processes would each train alone: add configs/multi_gpu.json to --config_file")
    if distributed and "WORLD_SIZE" not in os.environ:
        raise ValueError("configs/multi_gpu.json is for several processes: start it with torchrun --nproc_per_node N")
    if distributed and not torch.distributed.is_initialized():
        idist.initialize("nccl" if torch.device(device).type == "cuda" else "gloo")


def refuse_ranks() -> None:
    """Refuse several processes if training supports only one: each would train alone and write the same files."""
    _, world_size = ranks()
    if world_size > 1:
        raise ValueError(f"{world_size} processes, but this training runs in one: start it without torchrun")
