"""A step of the GAN trains the generator."""

from types import SimpleNamespace

import numpy as np
import pytest
import tiny_spade
import torch

from spade_fusion_bundle.scripts.model.networks import SpadeDiscriminator, SpadeGenerator
from spade_fusion_bundle.scripts.training.gan_step import spade_step


@pytest.mark.parametrize("amp", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["float32", "bfloat16"])
def test_a_fresh_generator_learns_to_match_features(amp):
    """The generator trains for twenty steps on the slices of one head."""
    torch.manual_seed(0)
    labels = torch.from_numpy(tiny_spade.label_map(mark=1)).long()
    labels = torch.tensor([0, 1, 2, 2, 3, 3, 4, 4, 5, 6, 6, 7, 7, 8, 8, 9, 10, 11])[labels]  # the table "demo"
    labels = torch.nn.functional.pad(labels[4:36, :, 4:68], (0, 0, 4, 4))[:, :, 24:40].movedim(2, 0)[:, None]  # (16, 1, 32, 64)
    image = torch.linspace(0, 1, 12)[torch.randperm(12)][labels]
    generator, discriminator = SpadeGenerator(12, ngf=4, hidden=8), SpadeDiscriminator(12, ndf=8)
    state = SimpleNamespace(
        device=torch.device("cpu"),
        g_network=generator,
        d_network=discriminator,
        g_optimizer=torch.optim.Adam(generator.parameters(), lr=5e-4, betas=(0.0, 0.9)),
        d_optimizer=torch.optim.SGD(discriminator.parameters(), lr=0.0),  # it does not learn
    )
    before = {name: parameter.clone() for name, parameter in generator.named_parameters()}
    losses = []
    for step in range(20):
        rows = torch.arange(4 * step, 4 * step + 4) % 16
        batch = {"image": image[rows], "label": labels[rows]}
        (found,) = spade_step(SimpleNamespace(state=state), batch, 10.0, 10.0, 0.0, vgg_loss=None, amp=amp)
        assert all(np.isfinite(value) for value in found.values())
        losses.append(found["features"])
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])
    assert all(not torch.equal(parameter, before[name]) for name, parameter in generator.named_parameters()), "a part rests"
    assert {parameter.dtype for parameter in (*generator.parameters(), *discriminator.parameters())} == {torch.float32}
