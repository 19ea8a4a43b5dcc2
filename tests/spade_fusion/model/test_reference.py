"""The networks, losses and gradients equal an independent implementation of Park et al.

The reference vectors were computed with spectral norm by forward hooks. Ours is a parametrisation, which runs the two halves of
a power iteration in the other order. Therefore the tolerance in training mode is wider.
"""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT

from spade_fusion_bundle.scripts.model.losses import discriminator_loss, feature_matching, generator_loss
from spade_fusion_bundle.scripts.model.networks import SpadeDiscriminator, SpadeGenerator, one_hot
from spade_fusion_bundle.scripts.training.gan_step import spade_step

DEFAULT = ROOT.parent / "shared" / "reference" / "spade_reference.pt"
PATH = Path(os.environ.get("SPADE_REFERENCE", DEFAULT))
PARAMETRISED = {
    "weight_orig": "parametrizations.weight.original",
    "weight_u": "parametrizations.weight.0._u",
    "weight_v": "parametrizations.weight.0._v",
}

pytestmark = pytest.mark.skipif(not PATH.is_file(), reason=f"no reference vectors at {PATH} (SPADE_REFERENCE)")


@pytest.fixture(scope="module")
def reference():
    return torch.load(PATH, weights_only=True)


def renamed(key):
    """Our name for a name of the reference."""
    key = key.replace(".conv.", ".") if key.startswith("scales.") else key
    stem, _, last = key.rpartition(".")
    return f"{stem}.{PARAMETRISED.get(last, last)}"


def loaded(network, state):
    state = {renamed(key): value for key, value in state.items()}
    recipe = {key: value.clone() for key, value in network.state_dict().items() if key == "_extra_state"}
    network.load_state_dict(state | recipe)
    return network


@pytest.fixture
def generator(reference):
    return loaded(
        SpadeGenerator(
            num_labels=reference["generator"]["stem.weight"].shape[1],
            ngf=reference["generator"]["to_image.weight"].shape[1],
            out_channels=len(reference["generator"]["to_image.weight"]),
            hidden=len(reference["generator"]["blocks.0.norm1.embed.weight"]),
        ),
        reference["generator"],
    )


@pytest.fixture
def discriminator(reference):
    first = reference["discriminator"]["scales.0.layers.0.conv.weight"]
    labels = reference["label_nc"]
    return loaded(
        SpadeDiscriminator(labels, ndf=len(first), image_channels=first.shape[1] - labels), reference["discriminator"]
    )


def test_the_generator_in_eval_mode(reference, generator):
    generator.eval()
    for pair in reference["pairs"].values():
        with torch.no_grad():
            torch.testing.assert_close(generator(pair["label"]), pair["eval_image"], atol=1e-5, rtol=0)


def test_the_generator_in_train_mode(reference, generator):
    state = {key: value.clone() for key, value in generator.state_dict().items()}
    generator.train()
    for pair in reference["pairs"].values():
        generator.load_state_dict(state)  # each pair is one forward from the given state
        with torch.no_grad():
            torch.testing.assert_close(generator(pair["label"]), pair["train_image"], atol=5e-4, rtol=0)


def test_the_features_and_scores_of_the_discriminator(reference, discriminator):
    discriminator.eval()
    for pair in reference["pairs"].values():
        with torch.no_grad():
            scales = discriminator(pair["label"], pair["image"])
        assert [len(scale) for scale in scales] == [len(scale) for scale in pair["disc_features"]]
        for scale, wanted in zip(scales, pair["disc_features"]):
            for feature, other in zip(scale, wanted):
                torch.testing.assert_close(feature, other, atol=1e-5, rtol=0)


def test_the_losses_of_the_first_iteration(reference, generator, discriminator):
    first = reference["first_iteration"]
    generator.train()
    discriminator.train()
    fake = generator(first["label"])
    torch.testing.assert_close(fake, first["fake"], atol=5e-4, rtol=0)
    labels = torch.cat([first["label"], first["label"]])
    outputs = discriminator(labels, torch.cat([first["fake"], first["image"]]))
    assert generator_loss(outputs, 3).item() == pytest.approx(first["generator_losses"]["GAN"], rel=1e-4)
    assert 10 * feature_matching(outputs, 3).item() == pytest.approx(first["generator_losses"]["GAN_Feat"], rel=1e-4)


def test_one_iteration_of_the_training_step(reference, generator, discriminator):
    """Losses and gradient norms of every parameter, generator first, then the discriminator on fresh fakes."""
    first = reference["first_iteration"]
    lr_g, lr_d = first["lr"]
    state = SimpleNamespace(
        device=torch.device("cpu"),
        g_network=generator,
        d_network=discriminator,
        g_optimizer=torch.optim.Adam(generator.parameters(), lr=lr_g, betas=first["betas"]),
        d_optimizer=torch.optim.Adam(discriminator.parameters(), lr=lr_d, betas=first["betas"]),
    )
    # The reference's images are in -1 to 1, a batch's in 0 to 1.
    batch = {"image": 0.5 * (first["image"] + 1), "label": first["label"]}
    (losses,) = spade_step(
        SimpleNamespace(state=state), batch, feature_weight=10.0, vgg_weight=10.0, l1_weight=0.0, vgg_loss=None, amp=False
    )
    generated, discriminated = first["generator_losses"], first["discriminator_losses"]
    assert losses["adversarial"] == pytest.approx(generated["GAN"], rel=1e-4)
    assert 10 * losses["features"] == pytest.approx(generated["GAN_Feat"], rel=1e-4)
    # The fakes of this half come from weights after a step of Adam, which with beta1 = 0 is about the sign of the gradient.
    assert losses["discriminator"] == pytest.approx(discriminated["D_Fake"] + discriminated["D_real"], rel=1e-2)
    for network, wanted, tolerance in (
        (generator, first["generator_grad_norm"], 1e-3),
        (discriminator, first["discriminator_grad_norm"], 2e-2),
    ):
        gradients = {name: parameter.grad.norm().item() for name, parameter in network.named_parameters()}
        assert gradients.keys() == {renamed(name) for name in wanted}
        for name, norm in wanted.items():
            assert gradients[renamed(name)] == pytest.approx(norm, rel=tolerance, abs=1e-5), name


def test_one_hot_is_one_channel_for_each_class():
    labels = torch.tensor([[[[0, 2], [1, 2]]]])
    assert one_hot(labels, 3).tolist() == [[[[1, 0], [0, 0]], [[0, 0], [1, 0]], [[0, 1], [0, 1]]]]


def test_the_hinge_stops_where_a_score_is_beyond_one():
    """Computed by hand for two scales with one score map each; fakes come first."""
    outputs = [[torch.tensor([-3.0, 0.5])], [torch.tensor([0.0, 2.0])]]
    fake = (max(0, 1 - 3) + max(0, 1 + 0)) / 2
    real = (max(0, 1 - 0.5) + max(0, 1 - 2)) / 2
    assert discriminator_loss(outputs, 1).item() == pytest.approx(fake + real)
    assert generator_loss(outputs, 1).item() == pytest.approx((3.0 - 0.0) / 2)
