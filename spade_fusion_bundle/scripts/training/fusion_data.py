"""Training data of the fusion CNN: volumes that the frozen generators make for subjects that they were not trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from ignite.engine import Engine
from torch.utils.data import Dataset
from tqdm import tqdm

from ..data.planes import PLANES, from_the_right
from ..data.prepared_pairs import pair_key
from ..model.networks import SpadeFusion, SpadeGenerator
from ..model.plane_weights import generator_file, load_generators
from ..shared.files import atomic, is_whole_array, sha256
from ..shared.handlers import ValidateStart


@dataclass(eq=False)
class FusionDataset(Dataset):
    """The volumes of the three planes and the scan of each subject, synthesised once and stored on disk.

    An item is {"volumes": (3, X, Y, Z), "image": (1, X, Y, Z), "label": (1, X, Y, Z), 1 inside the label map}, all float32.
    A subject with a "fold" is synthesised by the generators that were trained without that fold. `synthesise` reads the
    generators, so the data set may be built before they are trained.
    """

    data: Sequence[dict]  # items {"image", "label"} of all subjects that training may use; MONAI Label sets its own list here
    preprocessing: Callable[[dict], dict]  # loads an item's scan and label map, such as `scan_and_map`
    network: Callable[[], SpadeFusion]  # only its generators are used
    generator: Callable[[], SpadeGenerator]  # makes a generator to load weights into
    models_dir: str | Path
    recipe: Mapping  # holds the label table and the spacing that the generators must have been trained with
    cache_dir: str | Path  # folder of the volumes, about 10 bytes for each voxel
    items: Sequence[dict] | None = None  # items of `data` to synthesise, with "fold" for cross-validation; None for all
    random_transform: Callable | None = None  # such as a choice of patches; None for whole volumes
    visits: int = 1  # number of visits of each subject in an epoch
    match_contrast: bool = False  # whether to match the scan's contrast to the synthetic volumes, see `with_contrast_of`
    device: torch.device | str = "cpu"
    amp: bool = False

    def __post_init__(self) -> None:
        self.items = list(self.data if self.items is None else self.items)
        self.cache_dir, self.device = Path(self.cache_dir), torch.device(self.device)

    def __len__(self) -> int:
        return len(self.items) * self.visits

    def __getitem__(self, index: int) -> dict[str, torch.Tensor] | list[dict[str, torch.Tensor]]:
        stored = np.load(self.file(self.items[index % len(self.items)]))
        arrays = torch.from_numpy(stored.astype(np.float32))  # (5, X, Y, Z)
        item = {"volumes": arrays[:3], "image": arrays[3:4], "label": arrays[4:5]}
        return self.random_transform(item) if self.random_transform else item

    def file(self, item: Mapping) -> Path:
        """Return the file of an item's volumes. Its name depends on generators, files, spacing, precision and contrast."""
        generators = [sha256(generator_file(self.models_dir, plane, item.get("fold"))) for plane in PLANES]
        settings = [*generators, self.recipe["spacing_mm"], self.amp, self.match_contrast]
        return self.cache_dir / f"{pair_key(item, settings).decode()}.npy"

    @torch.inference_mode()
    def synthesise(self, rank: int = 0, world_size: int = 1) -> None:
        """Make the volumes that do not exist yet. Each of n processes makes every n-th volume."""
        for fold in sorted({item.get("fold") for item in self.items}, key=str):
            network = load_generators(self.network(), self.generator, self.models_dir, self.recipe, fold)
            network = network.to(self.device).eval()
            items = [item for item in self.items if item.get("fold") == fold]
            # Choose this process's part before looking for files, because other processes may already be writing.
            missing = [item for item in items[rank::world_size] if not is_whole_array(self.file(item))]
            for item in tqdm(missing, desc="synthesising for the fusion", disable=rank > 0, unit="subject"):
                pair = self.preprocessing(item)
                labels = torch.as_tensor(pair["label"])[None].to(self.device)
                with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.amp):
                    volumes = network.slice_volumes(labels)[0].float().cpu()
                image, classes = torch.as_tensor(pair["image"]), labels[0].cpu()
                if self.match_contrast:
                    image = with_contrast_of(volumes.mean(dim=0, keepdim=True), image, classes)
                stored = torch.cat([volumes, image, classes > 0]).half()
                with atomic(self.file(item)) as file:
                    np.save(file, stored.numpy())


def with_contrast_of(reference: torch.Tensor, image: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Shift each class of `image` except the background to its mean intensity in `reference`; all are (1, X, Y, Z).

    The brightness of a class differs between scans, and a label map does not determine it. From few subjects, the fusion would
    learn their brightness, which is wrong for others. After the shift it can learn only structure.
    """
    classes = classes.long().flatten().cpu()
    sums = torch.bincount(classes, weights=(reference - image).flatten().cpu().double())  # Apple's GPUs have no float64
    shift = sums / torch.bincount(classes).clamp(min=1)
    shift[0] = 0
    return image + shift[classes].to(image).reshape(image.shape)


def volumes_per_batch(batch_size: int, patches_per_volume: int) -> int:
    """Return the number of volumes whose patches form a batch. The batch size must be a multiple of the patches per volume."""
    if batch_size % patches_per_volume:
        raise ValueError(
            f"fusion_batch_size {batch_size} must be a multiple of patches_per_volume {patches_per_volume}, the number of "
            f"patches from each volume of a batch"
        )
    return batch_size // patches_per_volume


def prepare(
    network: SpadeFusion, generator: Callable[[], SpadeGenerator], models_dir: str | Path, recipe: Mapping
) -> SpadeFusion:
    """Load the final generators into `network`, freeze them, and record their hashes in its recipe."""
    load_generators(network, generator, models_dir, recipe)
    network.generators.requires_grad_(False)
    network.recipe = dict(recipe) | {
        "generators_sha256": {plane: sha256(generator_file(models_dir, plane)) for plane in PLANES}
    }
    return network


@dataclass(eq=False)
class FusionStart(ValidateStart):
    """Load the final generators into the network and validate it, before the first step and after all other start handlers.

    It runs last, because MONAI Label loads the weights that it serves, with other generators. The validation prevents a CNN
    that is worse than the mean of the planes, or than the CNN that is fine-tuned, from being saved.
    """

    prepare: Callable[[], SpadeFusion] = field(kw_only=True)  # function `prepare` with its arguments

    def __call__(self, engine: Engine) -> None:
        self.prepare()
        super().__call__(engine)


def validation_step(engine: Engine, batch: dict) -> dict[str, torch.Tensor]:
    """Return fused volume, mean of the planes and scan of held-out subjects, each (B, 1, X, Y, Z), intensities 0 to 1."""
    volumes, image, label = (batch[key].to(engine.state.device) for key in ("volumes", "image", "label"))
    network = engine.network.eval()
    with torch.no_grad():
        fused = network.fuse(volumes, label)
    return {"pred": fused, "mean": volumes.mean(dim=1, keepdim=True), "label": image}


@torch.no_grad()
def pictures(dataset: FusionDataset, network: SpadeFusion, device: torch.device, count: int = 2) -> dict[str, torch.Tensor]:
    """Return scan, mean of the planes and fusion of the first held-out subjects, for TensorBoard."""
    network.eval()
    rows = {}
    for number in range(min(count, len(dataset))):
        item = {key: value[None].to(device) for key, value in dataset[number].items()}
        fused = network.fuse(item["volumes"], item["label"])
        volumes = torch.cat([item["image"], item["volumes"].mean(1, keepdim=True), fused])
        rows[f"scan, mean, fusion {number}"] = from_the_right(volumes)
    return rows
