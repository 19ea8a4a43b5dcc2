"""Train and sample the baselines of Pinaya et al. 2022, VAE-GAN and LSGAN.

The paper does not describe either of them, so the design is ours.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events
from monai.inferers import Inferer

from ..data.covariates import CovariateSchema, Request
from ..model.gan_networks import LSGAN, VAEGAN, VolumeGenerator
from ..shared.files import save_weights
from ..shared.recipe import refuse_other_settings
from ..shared.weights import load_weights, network_of, read_recipe
from ..training.autoencoder import kl_divergence

NO_COVARIATES = CovariateSchema(())
NETWORKS = {"lsgan": LSGAN, "vaegan": VAEGAN}


def make_network(model: str, **sizes) -> LSGAN:
    """Make the network of a baseline, "lsgan" or "vaegan", from the arguments of `LSGAN`."""
    if model not in NETWORKS:
        raise ValueError(f"model must be {' or '.join(NETWORKS)}, got {model!r}")
    return NETWORKS[model](**sizes)


def make_losses(model: str, **settings) -> Callable[..., dict[str, torch.Tensor]]:
    """Choose the losses of a baseline; `settings` are arguments of `vaegan_losses`, and LSGAN has none."""
    return lsgan_losses if model == "lsgan" else functools.partial(vaegan_losses, **settings)


def lsgan_losses(network: LSGAN, image: torch.Tensor) -> dict[str, torch.Tensor]:
    """Compute the least-squares loss of each part of the network for scans (B, 1, D, H, W) (Mao et al. 2017, Eq. 9).

    The discriminator learns to answer 1 for scans and 0 for other volumes; the generator wants the answer 1.
    """
    fake = network.generator(torch.randn(len(image), network.generator.latent_size, device=image.device))
    real_logits, fake_logits = network.discriminator(torch.cat([image, fake.to(image)])).float().chunk(2)  # (B, 1) each
    return {
        "generator": 0.5 * ((fake_logits - 1) ** 2).mean(),
        "discriminator": 0.5 * ((real_logits - 1) ** 2).mean() + 0.5 * (fake_logits**2).mean(),
    }


def vaegan_losses(
    network: VAEGAN, image: torch.Tensor, kl_weight: float, gamma: float, feature_level: int
) -> dict[str, torch.Tensor]:
    """Compute the losses of Algorithm 1 of Larsen et al. 2016: KL, reconstruction in a layer of the discriminator, and GAN.

    The encoder minimises KL + reconstruction, the decoder gamma x reconstruction + GAN, and the discriminator the GAN loss.
    There are two differences from the paper. The decoder's GAN loss is -log D(x), which does not saturate (Goodfellow et al.
    2014). The reconstruction loss is a mean over the layer instead of a sum, so it does not depend on the image size.

    Args:
        network: encoder, generator (the decoder) and discriminator.
        image: scans (B, 1, D, H, W) in [0, 1].
        kl_weight: weight of the KL, which is summed over the vector.
        gamma: weight of the reconstruction for the decoder.
        feature_level: number of convolutions of the discriminator before the layer.
    """
    mu, sigma = network.encoder(image)
    reconstructions = network.generator(mu + sigma * torch.randn_like(mu)).to(image)  # (B, 1, D, H, W)
    samples = network.generator(torch.randn_like(mu)).to(image)
    hidden = network.discriminator.hidden(torch.cat([image, reconstructions, samples]), feature_level)
    wanted, found, _ = hidden.float().chunk(3)
    reconstruction = 0.5 * ((found - wanted) ** 2).mean()
    real, reconstructed, sampled = network.discriminator.judge(hidden, feature_level).float().chunk(3)  # (B, 1) each
    deceived = F.softplus(-reconstructed).mean() + F.softplus(-sampled).mean()  # -log D
    return {
        "encoder": kl_weight * kl_divergence(mu, sigma) + reconstruction,
        "generator": gamma * reconstruction + deceived,
        "discriminator": (F.softplus(-real) + F.softplus(reconstructed) + F.softplus(sampled)).mean(),
    }


def adversarial_step(
    engine: Engine, batch: Mapping, losses: Callable[..., dict[str, torch.Tensor]], grad_clip: float, amp: bool
) -> list[dict[str, float]]:
    """Update all parts of the network in one step, each by the gradient of its own loss.

    Args:
        engine: MONAI's SupervisedTrainer, whose optimizer holds the parameters of all parts.
        batch: {"image": (B, 1, D, H, W) in [0, 1]}.
        losses: function of network and image that returns the loss of each part by its name.
        grad_clip: largest norm of the gradient of each part.
        amp: whether the networks run in bfloat16.
    """
    network = engine.network.train()
    image = torch.as_tensor(batch["image"]).to(engine.state.device, non_blocking=True)
    engine.optimizer.zero_grad(set_to_none=True)
    with torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=amp):
        found = losses(network, image)
    for name, loss in found.items():
        parameters = list(getattr(network, name).parameters())
        loss.backward(inputs=parameters, retain_graph=True)
        torch.nn.utils.clip_grad_norm_(parameters, grad_clip)
    engine.optimizer.step()
    return [{"loss": sum(found.values()).item()} | {name: loss.item() for name, loss in found.items()}]


def parameter_groups(network: LSGAN, lr: float, discriminator_lr: float) -> list[dict]:
    """Return the parameter groups of one optimizer for all parts; the discriminator has its own learning rate."""
    return [
        {"params": part.parameters(), "lr": discriminator_lr if name == "discriminator" else lr}
        for name, part in network.named_children()
    ]


@dataclass(eq=False)
class LastWeights:
    """Write a network's weights after every epoch, because the losses of a GAN do not show which epoch was best.

    Choosing an epoch by a distance of features would optimise the score by which the baselines are compared.
    """

    path: str | Path
    network: torch.nn.Module

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)
        engine.add_event_handler(Events.COMPLETED, lambda: Path(self.path).is_file() or self._write())  # lost, and resumed

    def _write(self) -> None:
        save_weights(self.network.state_dict(), self.path)


def load_generator(path: str | Path, model: str, settings: Mapping | None = None) -> VolumeGenerator:
    """Load the generator of a baseline, "lsgan" or "vaegan", in eval mode. Its sizes are stored with the weights.

    Sizes and spacing among `settings`, those that a user changed, must be the stored ones.
    """
    made_by = f"python -m monai.bundle run training --config_file configs/baselines.json --model {model} --dataset_dir DIR"
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such weights file. Make it with: {made_by}")
    recipe = read_recipe(path)
    if recipe.get("model") != model or not {"generator", "spacing_mm"} <= recipe.keys():
        raise ValueError(
            f"{path}: these are weights of {recipe.get('model', 'no baseline')}, not of {model}. Make them: {made_by}"
        )
    names = {"latent_size": "latent_size", "generator_channels": "channels", "groups": "norm_num_groups"}
    trained = {name: recipe["generator"].get(key) for name, key in names.items()} | {"spacing_mm": recipe["spacing_mm"]}
    refuse_other_settings(trained | (settings or {}), trained, path)
    return load_weights(network_of(VolumeGenerator, "generator", path), path).eval()


def rows(volumes: int) -> list[Request]:
    """Return requests without covariates. They are named "sub-syn0001", ..., because "sub-0001" may be a scan."""
    if not isinstance(volumes, int) or volumes < 1:
        raise ValueError(f"volumes must be a whole number of at least 1, got {volumes!r}")
    return [Request(f"sub-syn{number:04d}", {}, ()) for number in range(1, volumes + 1)]


@dataclass(eq=False)
class VectorSampler(Inferer):
    """Draw volumes from a generator, one seed per volume; in bfloat16 with `amp`."""

    amp: bool = False

    @torch.inference_mode()
    def __call__(self, inputs: torch.Tensor, network: VolumeGenerator, seeds: Sequence[int]) -> torch.Tensor:
        """Return volumes (B, 1, D, H, W) in [0, 1]; only the device of `inputs` is used."""
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]  # on the CPU: the same vectors on any device
        vectors = [torch.randn((1, network.latent_size), generator=generator) for generator in generators]
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=self.amp):
            return torch.cat([network(vector.to(inputs.device)).float() for vector in vectors])


def preview(network: VolumeGenerator, sampler: VectorSampler, device: torch.device, count: int) -> dict[str, torch.Tensor]:
    """Draw volumes from the same vectors every time, for `scripts.shared.tensorboard_panels.Panels`."""
    return {"samples": sampler(torch.empty(0, device=device), network, seeds=range(count))}
