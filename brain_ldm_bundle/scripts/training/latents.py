"""Encode every scan once, so that stage two trains on latents without running the encoder."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.data import Dataset as MonaiDataset
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..model.networks import Autoencoder, DiffusionUNet
from ..shared.files import atomic, code_sha256, is_whole_array, sha256, version
from ..shared.weights import load_weights, read_recipe
from .own_covariates import load_start


@dataclass(eq=False)
class LatentDataset(Dataset):
    """The latent distribution (mu, sigma) of each scan, encoded once per autoencoder and stored on disk.

    An item is {"mu": (3, d, h, w), "sigma": (3, d, h, w), "covariates": (1, C)}. Each training step draws a new sample of the
    distribution, because noise that is stored once would be learnt as anatomy.

    Nothing is read before `encode` is called, so the data set may be built before its autoencoder is trained.

    A latent's file name depends on the code, the weights, the scan's path, size and date, the spacing and `amp`. Any change
    encodes the scan again.
    """

    data: Sequence[dict]  # items of `scripts.data.bids.read_dataset`
    transform: Callable  # from such an item to one with "image" (1, D, H, W) on the model's grid, without random parts
    autoencoder: Autoencoder
    weights: str | Path  # weights of the autoencoder, which `encode` loads
    cache_dir: str | Path  # folder of the latents, one `.npy` of float32 (2, 3, d, h, w) for each scan
    spacing_mm: float
    device: torch.device | str = "cpu"
    amp: bool = False  # encode in bfloat16
    num_workers: int = 0  # processes that read the scans to encode

    def __post_init__(self) -> None:
        self.device = torch.device(self.device)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        mu, sigma = torch.from_numpy(np.load(self.file(index)))
        return {"mu": mu, "sigma": sigma, "covariates": torch.tensor([self.data[index]["covariates"]])}

    def file(self, index: int) -> Path:
        """Return the file of one scan's latent."""
        scan = version(Path(self.data[index]["image"]).resolve())
        identity = f"{code_sha256()} {sha256(self.weights)} {scan} {self.spacing_mm} {self.amp}"
        return Path(self.cache_dir) / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.npy"

    @torch.inference_mode()
    def encode(self, rank: int = 0, world_size: int = 1) -> None:
        """Encode the scans whose latents are not on disk. Each of n processes encodes every n-th scan."""
        load_weights(self.autoencoder, self.weights, made_by="python -m monai.bundle run training_autoencoder ...")
        self.autoencoder.to(self.device).eval()
        scans = list({self.file(i): i for i in range(len(self))}.values())  # a datalist may name one several times
        todo = [i for i in scans[rank::world_size] if not is_whole_array(self.file(i))]
        scans = MonaiDataset([{"image": self.data[i]["image"]} for i in todo], self.transform)
        images = DataLoader(scans, batch_size=1, num_workers=self.num_workers, pin_memory=self.device.type == "cuda")
        bar = tqdm(images, desc="encoding", unit="scan", disable=not todo or rank > 0)
        for index, item in zip(todo, bar, strict=True):
            image = item["image"].to(self.device, non_blocking=True)  # (1, 1, D, H, W)
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.amp):
                mu, sigma = self.autoencoder.encode(torch.as_tensor(image))
            latent = torch.cat([mu, sigma]).float().cpu().numpy()  # (2, 3, d, h, w)
            if not np.isfinite(latent).all():
                raise ValueError(f"{self.data[index]['image']}: its latent is not finite; the autoencoder has diverged.")
            with atomic(self.file(index)) as file:
                np.save(file, latent)

    def scale_factor(self) -> float:
        """Return 1 / standard deviation of the latents over all scans, channels and voxels."""
        n, total, squares = 0, 0.0, 0.0
        for index in range(len(self)):
            mu, sigma = np.load(self.file(index)).astype(np.float64)
            n += mu.size
            total += mu.sum()
            squares += (mu**2 + sigma**2).sum()  # E[z^2] of z ~ N(mu, sigma)
        return float((squares / n - (total / n) ** 2) ** -0.5)


def prepare(network: DiffusionUNet, dataset: LatentDataset, init: str | Path | None, recipe: Mapping) -> None:
    """Set the scale factor and the recipe of the network before stage two, from an encoded data set.

    If `init` names weights to fine-tune, their scale factor is used. They may have other covariates, see `own_covariates`.

    Raises:
        ValueError: the weights of `init` have another prediction type, other scales of covariates or another autoencoder.
    """
    if init is None:
        network.scale_factor.fill_(dataset.scale_factor())
    else:
        predicts = load_start(network, init, recipe).recipe.get("prediction_type", "epsilon")
        refuse_other_autoencoder(init, dataset.weights, is_final=True)
        if predicts != recipe["prediction_type"]:
            raise ValueError(f"{init} predicts {predicts}: set --prediction_type {predicts}, not {recipe['prediction_type']}")
    network.recipe = {key: value for key, value in recipe.items() if not key.startswith("_")}
    network.recipe["autoencoder_sha256"] = sha256(dataset.weights)


def ancestors(init_autoencoder: str | Path | None) -> list[str]:
    """Return the SHA-256 of the autoencoder that a training starts from, and of those that it was itself trained from."""
    if init_autoencoder is None:
        return []
    return [*read_recipe(init_autoencoder).get("ancestors", []), sha256(init_autoencoder)]


def refuse_other_autoencoder(init_diffusion: str | Path | None, autoencoder: str | Path | None, is_final: bool = False) -> None:
    """Refuse to fine-tune a diffusion model on latents of an autoencoder that it does not know.

    The latents of two autoencoders have nothing in common, but fine-tuning an autoencoder keeps most of them.

    Args:
        init_diffusion: weights to fine-tune; None, or weights that do not name their autoencoder, are accepted.
        autoencoder: weights of the autoencoder that encodes the scans, or that its training starts from; None for random
            weights.
        is_final: True warns if the autoencoder was trained further since the diffusion model was trained.

    Raises:
        ValueError: the autoencoder is neither the one in the recipe nor was it trained further from that one.
    """
    known = read_recipe(init_diffusion).get("autoencoder_sha256") if init_diffusion else None
    if known is None or autoencoder and not Path(autoencoder).is_file():  # a missing file is refused where it is loaded
        return
    if autoencoder and sha256(autoencoder) == known:
        return
    if known not in ancestors(autoencoder):
        found = f"{autoencoder} (sha256 {sha256(autoencoder)[:16]})" if autoencoder else "a new autoencoder"
        raise ValueError(
            f"init_diffusion {init_diffusion} was trained on latents of the autoencoder with sha256 {known[:16]}, not of "
            f"{found}. Start from that autoencoder by --init_autoencoder, or leave out --init_diffusion"
        )
    if is_final and read_recipe(autoencoder).get("selection", {}).get("epoch") != 0:  # else its start was kept, unchanged
        warnings.warn(
            f"{autoencoder} was trained further since {init_diffusion} was trained with it, so the diffusion model must learn "
            f"its changed latents. Train it long enough",
            stacklevel=3,
        )
