"""The defects of MONAI that docs/upstream.md describes. Each test states what should hold, and fails today.

A test that passes means that MONAI has mended the defect: take out our remedy, its section in docs/upstream.md, and the test.
"""

import importlib.util
import re
from pathlib import Path

import monai.bundle
import pytest
import torch
from conftest import ROOT
from monai.handlers import CheckpointSaver
from monai.networks.blocks import SPADE, SABlock
from monai.networks.nets import SPADENet
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler, RFlowScheduler

PAGE = ROOT / "brain_ldm_bundle" / "docs" / "upstream.md"
BETAS = {"schedule": "scaled_linear_beta", "beta_start": 0.0015, "beta_end": 0.0205}
defect = pytest.mark.xfail(strict=True, raises=AssertionError, reason="a defect of MONAI 1.6.1, see docs/upstream.md")


@defect
def test_each_ddim_step_ends_where_the_next_one_begins():
    """With the true noise as prediction, each step must land on the noisy image of the next time step."""
    scheduler = DDIMScheduler(**BETAS, clip_sample=False)
    scheduler.set_timesteps(10)
    image, noise = torch.ones(1, 1, 4), torch.tensor([[[-1.5, -0.5, 0.5, 1.5]]])
    x = scheduler.add_noise(image, noise, scheduler.timesteps[:1])
    for time, later in zip(scheduler.timesteps, scheduler.timesteps[1:]):
        x, _ = scheduler.step(noise, time, x)
        assert torch.allclose(x, scheduler.add_noise(image, noise, later[None]), atol=1e-4)


@defect
def test_ddpm_with_fewer_steps_ends_where_the_next_step_begins():
    """The mean of a step from the true noise lies between image and noise as far as the next time step says."""
    scheduler = DDPMScheduler(**BETAS, clip_sample=False)
    scheduler.set_timesteps(10)
    time, later = scheduler.timesteps[4:6]
    image, noise = torch.ones(1, 1, 100_000), torch.randn(1, 1, 100_000, generator=torch.Generator().manual_seed(0))
    x, _ = scheduler.step(noise, time, scheduler.add_noise(image, noise, time[None]))
    assert x.mean().item() == pytest.approx(scheduler.alphas_cumprod[later].sqrt().item(), abs=0.02)


@defect
def test_the_first_time_step_of_sampling_by_flow_occurs_in_training():
    scheduler = RFlowScheduler(num_train_timesteps=1000, use_discrete_timesteps=True)
    scheduler.set_timesteps(10)
    torch.manual_seed(0)
    assert scheduler.sample_timesteps(torch.zeros(200_000, 1)).max() >= scheduler.timesteps.max()


@defect
def test_larger_weights_of_spade_scale_its_normalised_features_more():
    torch.manual_seed(0)
    norm, x = SPADE(label_nc=3, norm_nc=4, hidden_channels=8), torch.randn(1, 4, 8, 8)
    labels = torch.nn.functional.one_hot(torch.randint(3, (1, 8, 8)), 3).movedim(3, 1).float()
    with torch.no_grad():
        before = norm(x, labels)
        norm.mlp_gamma.conv.weight *= 10
        assert not torch.allclose(norm(x, labels), before, atol=1e-2)


@defect
def test_spadenet_leaves_the_callers_channels_alone():
    channels = [16, 32, 64]
    SPADENet(2, 1, 1, 3, [32, 32], channels, 8, False)
    assert channels == [16, 32, 64]


@defect
def test_an_interrupted_save_leaves_the_earlier_checkpoint_readable(tmp_path):
    class Interrupted:
        def __reduce__(self):
            raise KeyboardInterrupt

    network = torch.nn.Linear(2, 2)
    saver = CheckpointSaver(str(tmp_path), {"network": network}, save_final=True, final_filename="last.pt")
    write = saver._final_checkpoint.save_handler
    write({"network": network.state_dict()}, "last.pt")
    with pytest.raises(KeyboardInterrupt):
        write({"network": network.state_dict(), "more": Interrupted()}, "last.pt")
    try:
        readable = torch.load(tmp_path / "last.pt", weights_only=True).keys() == {"network"}
    except Exception:
        readable = False
    assert readable


@defect
def test_attention_in_float32_runs_in_a_network_of_bfloat16():
    block = SABlock(16, 2, attention_dtype=torch.float32).bfloat16()
    try:
        found = block(torch.zeros(1, 4, 16, dtype=torch.bfloat16)).dtype
    except RuntimeError as error:
        found = error
    assert found == torch.bfloat16


@defect
def test_load_refuses_weights_of_another_network(tmp_path):
    (tmp_path / "any" / "models").mkdir(parents=True)
    torch.save({"other.weight": torch.zeros(3)}, tmp_path / "any" / "models" / "model.pt")
    try:
        loaded = monai.bundle.load("any", bundle_dir=str(tmp_path), model=torch.nn.Linear(2, 2))
    except (KeyError, RuntimeError, ValueError):
        loaded = None
    assert loaded is None


@defect
def test_a_hash_in_a_path_stays():
    assert monai.bundle.ConfigParser({"a": "/data/study#2"}).get_parsed_content("a") == "/data/study#2"


@defect
def test_a_run_refuses_a_setting_that_the_config_lacks(tmp_path):
    config = tmp_path / "config.json"
    config.write_text('{"epochs": 1, "run": "$None"}')
    try:
        monai.bundle.run(config_file=str(config), epoch=5)
        refused = False
    except (KeyError, ValueError):
        refused = True
    assert refused


@defect
def test_the_file_of_large_files_can_be_named(tmp_path):
    (tmp_path / "large_files.yml").write_text("large_files: []")
    try:
        monai.bundle.download_large_files(str(tmp_path), "large_files.yml")
        done = True
    except UnboundLocalError:
        done = False
    assert done


@defect
def test_the_documented_command_that_pushes_to_a_hub_exists():
    main = importlib.util.find_spec("monai.bundle.__main__").origin
    assert "push_to_hf_hub" in Path(main).read_text(encoding="utf-8")


def test_the_page_names_each_of_these_tests_and_no_other():
    named = re.findall(r"`(test_\w+)`", PAGE.read_text(encoding="utf-8"))
    here = [name for name, value in globals().items() if name.startswith("test_") and getattr(value, "pytestmark", None)]
    assert sorted(named) == sorted(here)
