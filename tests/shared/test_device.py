import pytest
import torch

from brain_ldm_bundle.scripts.shared import device


def test_auto_is_the_cpu_where_there_is_no_gpu():
    assert device.choose("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_cuda_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match="sees no CUDA GPU. Use --use_device cpu"):
        device.choose("cuda")


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has a GPU of Apple")
def test_mps_without_a_gpu_of_apple_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match="sees no GPU of Apple. Use --use_device cpu"):
        device.choose("mps")


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "", "meta", "CPU"])
def test_what_is_no_device_is_refused_with_those_that_are(name):
    with pytest.raises(ValueError, match=f"device '{name}': no such device. Use --use_device auto, cpu, cuda, cuda:1 or mps"):
        device.choose(name)


def test_several_processes_without_the_overlay_would_train_apart_and_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes would each train alone: add configs/multi_gpu.json"):
        device.start_ranks(torch.device("cpu"), distributed=False)


def test_the_overlay_without_torchrun_is_refused(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ValueError, match="start it with torchrun"):
        device.start_ranks(torch.device("cpu"), distributed=True)


@pytest.mark.parametrize(("rank", "world_size"), [("3", None), ("5", "2"), ("0", "0"), ("-1", "2"), ("first", "2")])
def test_a_rank_that_does_not_exist_is_refused_because_it_would_make_no_volumes(monkeypatch, rank, world_size):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if world_size:
        monkeypatch.setenv("WORLD_SIZE", world_size)
    with pytest.raises(ValueError, match=f"RANK={rank} and WORLD_SIZE={world_size or 1}, .* Unset both"):
        device.ranks()


def test_the_ranks_are_those_of_torchrun_or_one_process(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert device.ranks() == (0, 1)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert device.ranks() == (1, 2)
