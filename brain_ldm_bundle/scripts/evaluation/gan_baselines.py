"""The two baselines that Pinaya et al. 2022 compare with, VAE-GAN and LSGAN: losses, a step, weights and sampling.

Their paper gives no details of either, so the design is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events
from monai.inferers import Inferer

from ..data.covariates import CovariateSchema, Request
from ..model.networks import LSGAN, VAEGAN, VolumeGenerator
from ..shared.files import save_weights
from ..shared.weights import load_weights, read_recipe
from ..training.autoencoder import kl_divergence

__all__ = [
    "NO_COVARIATES",
    "LastWeights",
    "VectorSampler",
    "adversarial_step",
    "choose",
    "load_generator",
    "lsgan_losses",
    "parameter_groups",
    "preview",
    "rows",
    "vaegan_losses",
]

# Baselines are unconditional: their volumes have no covariates.
NO_COVARIATES = CovariateSchema(())


def choose(model: str, **parts: Any) -> Any:
    """The part of the model of this name.

    Raises:
        ValueError: no such model.
    """
    if model not in parts:
        raise ValueError(f"model must be {' or '.join(parts)}, got {model!r}")
    return parts[model]


def lsgan_losses(network: LSGAN, image: torch.Tensor) -> dict[str, torch.Tensor]:
    """Least squares (Mao et al. 2017, Eq. 9): the discriminator answers 1 for scans, 0 for others; the generator wants 1.

    Args:
        image: scans (B, 1, D, H, W) in [0, 1].

    Returns:
        The loss of each part of the network.
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
    """Algorithm 1 of Larsen et al. 2016: KL to the prior, reconstruction in a layer of the discriminator, and a GAN.

    The encoder minimises KL + reconstruction, the decoder gamma x reconstruction + GAN, the discriminator the GAN alone.
    Different from there: the decoder's part of the GAN is -log D(x), which does not saturate (Goodfellow et al. 2014), and
    the reconstruction is a mean over the layer instead of a sum, so that its weights do not depend on the image size.

    Args:
        image: scans (B, 1, D, H, W) in [0, 1].
        kl_weight: of the KL, which is summed over the vector.
        gamma: weight of the reconstruction for the decoder.
        feature_level: convolutions of the discriminator before the layer.

    Returns:
        The loss of each part of the network.
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
    """One step of all parts at once, each down the gradient of its own loss.

    Args:
        engine: MONAI's SupervisedTrainer, whose optimizer holds the parameters of all parts.
        batch: {"image": (B, 1, D, H, W) in [0, 1]}.
        losses: of (network, image), gives the loss of each part by its name.
        grad_clip: the norm of each part's gradient is clipped to this.
        amp: bfloat16 autocast.
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
    """For one optimizer of all parts: the discriminator learns at a rate of its own."""
    groups = []
    for name, part in network.named_children():
        groups.append({"params": part.parameters(), "lr": discriminator_lr if name == "discriminator" else lr})
    return groups


class LastWeights:
    """Write a network's weights after every epoch: no loss of a GAN says which epoch was best.

    Choosing by a distance of features would tune the very number that the baselines are compared by.
    """

    def __init__(self, path: str | Path, network: torch.nn.Module) -> None:
        self.path = Path(path)
        self.network = network

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        save_weights(self.network.state_dict(), self.path)


def load_generator(path: str | Path, model: str) -> VolumeGenerator:
    """The generator of a baseline's weights, on the CPU and in eval mode; its sizes come with the weights.

    Raises:
        FileNotFoundError: no such file; with the command that makes it.
        ValueError: weights of something else.
    """
    made_by = f"python -m monai.bundle run training --config_file configs/baselines.json --model {model} --dataset_dir DIR"
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such weights file. Make it with: {made_by}")
    recipe = read_recipe(path)
    if recipe.get("model") != model:
        raise ValueError(
            f"{path}: these are weights of {recipe.get('model', 'no baseline')}, not of {model}. Make them: {made_by}"
        )
    return load_weights(VolumeGenerator(**recipe["generator"]), path).eval()


def rows(volumes: int) -> list[Request]:
    """Requests of so many volumes, of nothing in particular: "sub-syn0001", ...; "sub-0001" may be a scan's."""
    if not isinstance(volumes, int) or volumes < 1:
        raise ValueError(f"volumes must be a whole number of at least 1, got {volumes!r}")
    return [Request(f"sub-syn{number:04d}", {}, ()) for number in range(1, volumes + 1)]


class VectorSampler(Inferer):
    """Draw volumes from a generator, one seed per volume.

    Args:
        amp: run the generator in bfloat16.
    """

    def __init__(self, amp: bool = False) -> None:
        super().__init__()
        self.amp = amp

    @torch.inference_mode()
    def __call__(self, inputs: torch.Tensor, network: VolumeGenerator, seeds: Sequence[int]) -> torch.Tensor:
        """Volumes (B, 1, D, H, W) in [0, 1]; of `inputs` only the device is used."""
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]  # on the CPU: the same vectors on any device
        vectors = [torch.randn((1, network.latent_size), generator=generator) for generator in generators]
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=self.amp):
            return torch.cat([network(vector.to(inputs.device)).float() for vector in vectors])


def preview(network: VolumeGenerator, sampler: VectorSampler, device: torch.device, count: int) -> dict[str, torch.Tensor]:
    """Volumes from the same vectors every time, for `scripts.shared.panels.Panels`."""
    return {"samples": sampler(torch.empty(0, device=device), network, seeds=range(count))}
