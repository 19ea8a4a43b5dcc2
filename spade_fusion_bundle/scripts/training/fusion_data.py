"""What the fusion CNN learns from: volumes that the frozen generators make of subjects they did not see, made once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from ignite.engine import Engine, Events
from torch.utils.data import Dataset
from tqdm import tqdm

from ..data.planes import PLANES, from_the_right
from ..model.networks import SpadeFusion, SpadeGenerator
from ..model.plane_weights import generator_file, load_generators
from ..shared.files import atomic, sha256

__all__ = [
    "FinalGenerators",
    "FusionDataset",
    "fusion_items",
    "pictures",
    "prepare",
    "validation_step",
    "volumes_per_batch",
    "with_contrast_of",
]


def fusion_items(data: Mapping[str, Sequence[dict]], folds: int) -> list[dict]:
    """The subjects that the fusion CNN trains on: those kept apart for it, or with cross-validation all training ones."""
    return list(data["training" if folds else "fusion"])


class FusionDataset(Dataset):
    """The three planes' volumes of each subject beside the scan, synthesised once and kept on disk.

    An item is {"volumes": (3, X, Y, Z), "image": (1, X, Y, Z), "label": (1, X, Y, Z), 1 inside the label map}, all float32.
    A subject with a "fold" is synthesised by the generators that were trained without that fold.

    Nothing is read before `synthesise` is called, so a data set may be built before its generators have been trained.

    Args:
        data: {"image", "label"} paths of all subjects that training may use. MONAI Label puts its own list here.
        items: those of them whose volumes are made, "fold" where there is cross-validation; None for all.
        preprocessing: an item to its volumes.
        network: called, it makes a SpadeFusion; only its generators are used.
        generator: called, it makes one to load weights into.
        models_dir: where the generators lie.
        recipe: label table and spacing that they must have been trained with.
        cache_dir: where the volumes go, some 10 bytes a voxel.
        random_transform: of the item, such as a choice of patches; None for whole volumes.
        visits: how often an epoch comes to each subject.
        match_contrast: give the scan the contrast of the synthetic volumes, see `with_contrast_of`.
        device, amp: for the synthesis.
    """

    def __init__(
        self,
        data: Sequence[dict],
        preprocessing: Callable[[dict], dict],
        network: Callable[[], SpadeFusion],
        generator: Callable[[], SpadeGenerator],
        models_dir: str | Path,
        recipe: Mapping,
        cache_dir: str | Path,
        items: Sequence[dict] | None = None,
        random_transform: Callable | None = None,
        visits: int = 1,
        match_contrast: bool = False,
        device: torch.device | str = "cpu",
        amp: bool = False,
    ) -> None:
        self.items = list(data if items is None else items)
        self.preprocessing = preprocessing
        self.network = network
        self.generator = generator
        self.models_dir = Path(models_dir)
        self.recipe = recipe
        self.cache_dir = Path(cache_dir)
        self.transform = random_transform
        self.visits = visits
        self.match_contrast = match_contrast
        self.device = torch.device(device)
        self.amp = amp

    def __len__(self) -> int:
        return len(self.items) * self.visits

    def __getitem__(self, index: int) -> dict[str, torch.Tensor] | list[dict[str, torch.Tensor]]:
        stored = np.load(self.file(self.items[index % len(self.items)]))
        arrays = torch.from_numpy(stored.astype(np.float32))  # (5, X, Y, Z)
        item = {"volumes": arrays[:3], "image": arrays[3:4], "label": arrays[4:5]}
        return self.transform(item) if self.transform else item

    def file(self, item: Mapping) -> Path:
        """Where an item's volumes lie: another name for other generators, changed files, another spacing or precision."""
        stats = [os.stat(item[key]) for key in ("image", "label")]
        parts = [sha256(generator_file(self.models_dir, plane, item.get("fold"))) for plane in PLANES]
        parts += [f"{Path(item[key]).resolve()} {s.st_mtime_ns} {s.st_size}" for key, s in zip(("image", "label"), stats)]
        parts += [str(self.recipe["spacing_mm"]), str(self.amp), str(self.match_contrast)]
        return self.cache_dir / f"{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:32]}.npy"

    @torch.inference_mode()
    def synthesise(self, rank: int = 0, world_size: int = 1) -> None:
        """Make the volumes that are not there yet; each rank makes its share of them.

        Raises:
            FileNotFoundError, ValueError: a plane's generator is missing or of another run; says which command makes it.
        """
        for fold in sorted({item.get("fold") for item in self.items}, key=str):
            network = load_generators(self.network(), self.generator, self.models_dir, self.recipe, fold)
            network = network.to(self.device).eval()
            items = [item for item in self.items if item.get("fold") == fold]
            # Shared out before looking: other ranks are writing already.
            missing = [item for item in items[rank::world_size] if not self.file(item).exists()]
            for item in tqdm(missing, desc="synthesising for the fusion", disable=rank > 0, unit="subject"):
                pair = self.preprocessing(item)
                labels = torch.as_tensor(pair["label"])[None].to(self.device)
                with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.amp):
                    volumes = network.slice_volumes(labels)[0].float().cpu()
                image, classes = torch.as_tensor(pair["image"]), labels[0].cpu()
                if self.match_contrast:
                    image = with_contrast_of(volumes.mean(dim=0, keepdim=True), image, classes)
                stored = torch.cat([volumes, image, classes > 0]).half()
                self.cache_dir.mkdir(parents=True, exist_ok=True)
                with atomic(self.file(item)) as file:
                    np.save(file, stored.numpy())


def with_contrast_of(reference: torch.Tensor, image: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """`image` with each class but background moved to the mean intensity that it has in `reference`; all (1, X, Y, Z).

    How bright a class is differs from scan to scan, and no label map tells it. From few subjects the fusion would learn
    theirs, which is wrong for others; from this it learns structure alone. It changes nothing else within a class.
    """
    classes = classes.long().flatten()
    sums = torch.bincount(classes, weights=(reference - image).flatten().double())
    shift = sums / torch.bincount(classes).clamp(min=1)
    shift[0] = 0
    return image + shift[classes].to(image).reshape(image.shape)


def volumes_per_batch(batch_size: int, patches_per_volume: int) -> int:
    """How many volumes give a batch of patches.

    Raises:
        ValueError: that does not come out even.
    """
    if batch_size % patches_per_volume:
        raise ValueError(
            f"fusion_batch_size {batch_size} is no multiple of patches_per_volume {patches_per_volume}: each volume of a batch "
            f"gives so many patches"
        )
    return batch_size // patches_per_volume


def prepare(
    network: SpadeFusion, generator: Callable[[], SpadeGenerator], models_dir: str | Path, recipe: Mapping
) -> SpadeFusion:
    """Put the final generators into `network`, frozen, and note with which the fusion belongs together."""
    load_generators(network, generator, models_dir, recipe)
    network.generators.requires_grad_(False)
    network.recipe = dict(recipe) | {
        "generators_sha256": {plane: sha256(generator_file(models_dir, plane)) for plane in PLANES}
    }
    return network


class FinalGenerators:
    """`prepare` when an engine starts: of what a handler before it loaded into the network, only the fusion CNN stays."""

    def __init__(
        self, network: SpadeFusion, generator: Callable[[], SpadeGenerator], models_dir: str | Path, recipe: Mapping
    ) -> None:
        self.prepare = partial(prepare, network, generator, models_dir, recipe)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.prepare)


def validation_step(engine: Engine, batch: dict) -> dict[str, torch.Tensor]:
    """The fused volume, the planes' mean and the scan of whole held-out volumes, all (B, 1, X, Y, Z) from 0 to 1."""
    volumes, image, label = (batch[key].to(engine.state.device) for key in ("volumes", "image", "label"))
    network = engine.network.eval()
    with torch.no_grad():
        fused = network.fuse(volumes, label)
    return {"pred": fused, "mean": volumes.mean(dim=1, keepdim=True), "label": image}


@torch.no_grad()
def pictures(dataset: FusionDataset, network: SpadeFusion, device: torch.device, count: int = 2) -> dict[str, torch.Tensor]:
    """Scan, mean of the planes and fusion, one below the other, of the first held-out subjects."""
    network.eval()
    rows = {}
    for number in range(min(count, len(dataset))):
        item = {key: value[None].to(device) for key, value in dataset[number].items()}
        fused = network.fuse(item["volumes"], item["label"])
        volumes = torch.cat([item["image"], item["volumes"].mean(1, keepdim=True), fused])
        rows[f"scan, mean, fusion {number}"] = from_the_right(volumes)
    return rows
