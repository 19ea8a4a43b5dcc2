"""Work of brain_ldm_bundle: steps, decoding, volumes and training."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from ldm.model.dpm_solver import make_sampler
from ldm.model.exact_rewrites import rewrite
from ldm.model.networks import Autoencoder, DiffusionUNet, Discriminator
from ldm.model.noise_schedule import training_schedule
from ldm.model.sampler import LatentSampler
from ldm.training.autoencoder import autoencoder_step
from ldm.training.diffusion import diffusion_step
from monai.inferers import LatentDiffusionInferer
from monai.losses import PatchAdversarialLoss
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler

from .measuring import Case

SIZES = {  # channels of both networks, shape of the latent
    "published": ((64, 128, 128, 128), (256, 512, 768), (20, 28, 20)),
    "middle": ((32, 64, 64), (64, 128, 192), (12, 16, 12)),
    "tiny": ((8, 16, 16), (16, 32, 48), (8, 12, 8)),
}
NOISE = {"num_train_timesteps": 1000, "schedule": "scaled_linear_beta", "beta_start": 0.0015, "beta_end": 0.0205}


def networks(size: str, device: torch.device) -> tuple[Autoencoder, DiffusionUNet, tuple[int, ...]]:
    """Make an autoencoder and a U-Net with random weights, and the shape of their latent."""
    autoencoder_channels, channels, latent = SIZES[size]
    groups = min(32, autoencoder_channels[0])
    torch.manual_seed(0)
    autoencoder = Autoencoder(autoencoder_channels, norm_num_groups=groups)
    unet = DiffusionUNet(
        channels=channels,
        num_head_channels=(0, *channels[1:]),
        norm_num_groups=min(32, channels[0]) if size == "published" else 16,
    )
    with torch.no_grad():
        for parameter in unet.parameters():
            if parameter.ndim > 1 and not parameter.any():  # MONAI starts some layers at zero
                parameter.normal_(0, 0.5 / parameter[0].numel() ** 0.5)
    return autoencoder.to(device).eval(), unet.to(device).eval(), latent


class ZooSampler:
    """Sample and decode with MONAI's modules under autocast, as the zoo's latent diffusion bundles do."""

    def __init__(self, autoencoder: Autoencoder, unet: DiffusionUNet, amp: bool) -> None:
        self.autoencoder, self.unet, self.amp = autoencoder, unet, amp
        self.scheduler = DDIMScheduler(**NOISE, clip_sample=False)
        self.scheduler.set_timesteps(50)
        self.inferer = LatentDiffusionInferer(self.scheduler)

    @torch.no_grad()
    def __call__(self, noise: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        with torch.autocast(noise.device.type, dtype=torch.bfloat16, enabled=self.amp):
            return self.inferer.sample(noise, self.autoencoder, self.unet, self.scheduler, conditioning=context, verbose=False)


def cases(size: str, device: torch.device, amp: bool) -> Iterator[Case]:
    """Make the cases one after the other, because each needs memory."""
    autoencoder, unet, shape = networks(size, device)
    image_size = tuple(side * autoencoder.factor for side in shape)
    fast_autoencoder = rewrite(copy.deepcopy(autoencoder), bfloat16=amp)
    fast_unet = rewrite(copy.deepcopy(unet), bfloat16=amp)
    noise, context = torch.randn(1, 3, *shape, device=device), torch.rand(1, 1, 4, device=device)
    time, image = torch.tensor([500], device=device), torch.rand(1, 1, *image_size, device=device)

    def plain(function, *inputs):
        with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=amp):
            return function(*inputs)

    def fast(function, *inputs):
        with torch.inference_mode():
            return function(*inputs)

    yield Case("U-Net step", lambda: plain(unet, noise, time, context), lambda: fast(fast_unet, noise, time, context))
    yield Case("decode", lambda: plain(autoencoder.decode, noise), lambda: fast(fast_autoencoder.decode, noise))
    yield Case(
        "encode", lambda: plain(autoencoder.encode, image)[0], lambda: fast(fast_autoencoder.encode, image)[0], "same modules"
    )
    theirs = ZooSampler(autoencoder, unet, amp)
    for name, steps in (("ddim", 50), ("dpm++", 15)):
        ours = LatentSampler(fast_autoencoder, make_sampler(name, steps), image_size)
        yield Case(
            f"volume, {steps} steps",
            lambda: theirs(noise, context),
            lambda ours=ours: ours(context, fast_unet, [0]),
            f"against MONAI's DDIM with 50 steps; ours is {name}",
            same=False,
        )
    yield _stage_one(autoencoder, image, amp, size)
    yield _stage_two(autoencoder, unet, image, context, amp)


def _stage_one(autoencoder: Autoencoder, image: torch.Tensor, amp: bool, size: str) -> Case:
    device = image.device
    ours, theirs = copy.deepcopy(autoencoder), autoencoder
    judges = [Discriminator(channels=96 if size == "published" else 16).to(device) for _ in range(2)]
    optimizers = [
        [torch.optim.Adam(network.parameters(), 1e-5) for network in pair] for pair in zip((ours, theirs), judges, strict=True)
    ]
    state = SimpleNamespace(
        device=device, epoch=1, g_network=ours, d_network=judges[0], g_optimizer=optimizers[0][0], d_optimizer=optimizers[0][1]
    )
    weights = {"kl_weight": 1e-7, "perceptual_weight": 0, "adversarial_weight": 0.01, "gradient_weight": 0}

    def our_step():
        autoencoder_step(
            SimpleNamespace(state=state), {"image": image}, **weights, adversarial_from_epoch=1, grad_clip=1.0, amp=amp
        )

    adversarial = PatchAdversarialLoss(criterion="least_squares")

    def their_step():
        for optimizer in optimizers[1]:
            optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=amp):
            found, mu, sigma = theirs(image)
            kl = 0.5 * (mu**2 + sigma**2 - torch.log(sigma**2) - 1).flatten(1).sum(1).mean()
            judged = judges[1](found.contiguous())
            loss = F.l1_loss(found, image) + 1e-7 * kl + 0.01 * adversarial(judged, True, False)
        loss.backward()
        optimizers[1][0].step()
        optimizers[1][1].zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=amp):
            fake = adversarial(judges[1](found.detach()), False, True)
            loss = 0.5 * (fake + adversarial(judges[1](image), True, True))
        loss.backward()
        optimizers[1][1].step()

    return Case("training step, autoencoder", their_step, our_step, "ours clips gradients", same=False)


def _stage_two(autoencoder: Autoencoder, unet: DiffusionUNet, image: torch.Tensor, context: torch.Tensor, amp: bool) -> Case:
    device = image.device
    with torch.no_grad():
        mu, sigma = autoencoder.encode(image)
    ours = copy.deepcopy(unet)
    engine = SimpleNamespace(
        state=SimpleNamespace(device=device), network=ours, optimizer=torch.optim.Adam(ours.parameters(), 1e-5)
    )
    batch = {"mu": mu, "sigma": sigma, "covariates": context}
    schedule, optimizer = training_schedule("epsilon"), torch.optim.Adam(unet.parameters(), 1e-5)
    inferer = LatentDiffusionInferer(DDPMScheduler(**NOISE))

    def their_step():
        optimizer.zero_grad(set_to_none=True)
        noise, time = torch.randn_like(mu), torch.randint(0, 1000, (1,), device=device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=amp):
            found = inferer(image, autoencoder, unet, noise, time, condition=context)
            loss = F.mse_loss(found.float(), noise)
        loss.backward()
        optimizer.step()

    return Case(
        "training step, diffusion",
        their_step,
        lambda: diffusion_step(engine, batch, schedule, condition_dropout=0.0, grad_clip=1.0, amp=amp),
        "theirs encodes the scan at each step, ours reads its latent from the cache",
        same=False,
    )
