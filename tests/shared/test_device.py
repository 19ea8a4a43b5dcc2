import pytest
import torch

from brain_ldm_bundle.scripts.shared import device


def test_auto_is_the_cpu_where_there_is_no_gpu():
    assert device.choose("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_cuda_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match="sees no CUDA GPU. Use --use_device cpu"):
        device.choose("cuda")


def test_several_processes_without_the_overlay_would_train_apart_and_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes would each train alone: add configs/multi_gpu.json"):
        device.start_ranks(torch.device("cpu"), distributed=False)


def test_the_overlay_without_torchrun_is_refused(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ValueError, match="start it with torchrun"):
        device.start_ranks(torch.device("cpu"), distributed=True)
