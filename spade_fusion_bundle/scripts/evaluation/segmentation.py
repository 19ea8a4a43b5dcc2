"""Train the same segmentation network on synthetic volumes, on real scans, and on both, and score it on held-out scans."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader
from monai.engines import SupervisedTrainer
from monai.handlers import LrScheduleHandler
from monai.inferers import SimpleInferer
from monai.metrics import DiceMetric
from monai.utils import convert_to_tensor, set_determinism
from torch.utils.data import Dataset, RandomSampler

from ..data.image_checks import AFFINE_TOLERANCE
from ..shared.files import sha256
from ..shared.handlers import Progress, StopAtNonFinite
from ..shared.image_files import find_in_anat
from ..shared.label_table import LabelTable
from ..shared.nifti import check_files, read_volume
from ..shared.problems import refuse
from ..training.supervised_step import supervised_step


def choose_scans(data: Mapping[str, Sequence[dict]], split: str, synthetic_dir: str | Path | None) -> dict[str, list[dict]]:
    """Choose items for training, "real" (splits training and fusion) and "synthetic", and for testing, "test"."""
    if split not in ("test", "validation"):
        raise ValueError(f"split {split!r}: the networks are trained on the other splits. Test on test or validation")
    counts = ", ".join(f"{name}: {len(items)}" for name, items in data.items())
    real, test = [*data["training"], *data["fusion"]], list(data[split])
    for wanted, items in ((split, test), ("training", real)):
        if not items:
            raise ValueError(f"no scans in the split {wanted!r} ({counts}). Mark some in the column split of participants.tsv")
    return {"real": real, "synthetic": synthetic_pairs(synthetic_dir, test), "test": test}


def synthetic_pairs(synthetic_dir: str | Path | None, test: Sequence[Mapping]) -> list[dict]:
    """Find synthetic volumes from `configs/inference.json` with their label maps, and refuse those made from test maps.

    A test map is recognised by its content and by its participant, because another segmentation shows the same head.

    Returns:
        {"image", "label": paths, "participant_id", "source": participant of the map}, sorted by path.
    """
    if synthetic_dir is None:
        raise ValueError("no synthetic volumes were given. Make some of the training split's maps, then add --synthetic_dir")
    root = Path(synthetic_dir)
    found = find_in_anat(root, "T1w")
    if not found:
        raise FileNotFoundError(
            f"synthetic_dir {root}: no synthetic volumes sub-X/anat/*_T1w.nii.gz there. Make them with: python -m monai.bundle "
            f"run --config_file configs/inference.json --label_maps DIR --split train --variants 4 --output_dir {root}"
        )
    hashes = {sha256(item["label"]): item["participant_id"] for item in test}
    participants = {item["participant_id"] for item in test}
    items, problems, leaked, weights = [], [], [], {}
    for image in found:
        label = image.with_name(image.name.replace("_T1w.nii.gz", "_dseg.nii.gz"))
        try:
            sidecar = json.loads(image.with_name(image.name.replace(".nii.gz", ".json")).read_text(encoding="utf-8"))
            map_hash, source = sidecar["LabelMapSHA256"], sidecar["SourceParticipant"]
        except (OSError, ValueError, TypeError, KeyError):
            problems.append(f"{image}: its sidecar does not say from which map it was made. Run inference again")
            continue
        if map_hash in hashes:
            leaked.append(f"{image}: made from the label map of {hashes[map_hash]}")
        elif source in participants:
            leaked.append(f"{image}: made from a map of {source}. If this is another person, rename the maps")
        elif not label.is_file():
            problems.append(f"{image}: no label map {label.name} next to it. Run inference again")
            continue
        folder = image.relative_to(root).parts[0]
        items.append({"image": str(image), "label": str(label), "participant_id": folder, "source": source})
        weights.setdefault(str(sidecar.get("WeightsSHA256"))[:12], image)
    count = f"{len(leaked)} of {len(found)} synthetic volumes in {root}"
    refuse(leaked, f"{count} come from maps of the test scans, which would be trained on. Make others (--split train):")
    if len(weights) > 1:
        kinds = ", ".join(f"{image} with the weights {name}" for name, image in weights.items())
        raise ValueError(f"synthetic_dir {root}: several models made its volumes: {kinds}. Put each kind into its own folder")
    problems += check_files([(item["image"], item["label"]) for item in items], _one_grid)[0]
    refuse(problems, f"{len(problems)} of {len(found)} synthetic volumes in {root} cannot be used:")
    return items


def _one_grid(image: str, label: str) -> list:
    scan, label_map = read_volume(image), read_volume(label)
    if scan.shape != label_map.shape:
        raise ValueError(f"{image}: shape {scan.shape}, its label map {label_map.shape}. Run inference again")
    if not np.allclose(scan.affine, label_map.affine, rtol=0, atol=AFFINE_TOLERANCE):
        raise ValueError(f"{image}: its label map {label} has another affine, so it shows another place. Run inference again")
    return []


def refuse_sizes(patch_size: Sequence[int], strides: Sequence[int]) -> None:
    """Refuse a patch size that is not a multiple of the product of the U-Net's strides."""
    factor = math.prod(strides)
    if len(patch_size) != 3 or any(side % factor or side < factor for side in patch_size):
        raise ValueError(f"patch_size {list(patch_size)}: three multiples of {factor} are needed for strides {list(strides)}")


@dataclass
class ArmTrainer:
    """Train a network on one arm, a data set. All arms have the same first weights, steps, learning rates and augmentation."""

    network: Callable[[], torch.nn.Module]  # makes a new network from (N, 1, D, H, W) to logits (N, classes, D, H, W)
    loss: Callable  # takes logits and classes (N, 1, D, H, W)
    optimizer: Callable  # makes an optimiser from the parameters
    lr_scheduler: Callable  # makes a schedule from the optimiser, with one step for each iteration
    steps: int  # number of iterations, independent of the size of the data set
    batch_size: int
    num_workers: int
    device: torch.device
    amp: bool
    seed: int

    def __call__(self, arm: str, dataset: Dataset) -> torch.nn.Module:
        """Train a new network on `dataset`, and return it in eval mode."""
        set_determinism(self.seed)
        network = self.network().to(self.device)
        optimizer = self.optimizer(network.parameters())
        # The sampler draws every volume once before it draws any again.
        sampler = RandomSampler(dataset, num_samples=self.steps * self.batch_size)
        SupervisedTrainer(
            device=self.device,
            max_epochs=1,
            train_data_loader=DataLoader(dataset, batch_size=self.batch_size, sampler=sampler, num_workers=self.num_workers),
            network=network,
            optimizer=optimizer,
            loss_function=self.loss,
            iteration_update=partial(supervised_step, amp=self.amp),
            decollate=False,
            train_handlers=[
                StopAtNonFinite(),
                LrScheduleHandler(self.lr_scheduler(optimizer), print_lr=False, epoch_level=False),
                Progress(f"segmentation, {arm}"),
            ],
        ).run()
        return network.eval()


class DiceScores:
    """Compute the Dice of every structure on each scan of an evaluator, and store the segmentation of the first scan.

    The evaluator's predictions are logits (1, classes, D, H, W) or classes (1, 1, D, H, W). The batch has the keys
    "participant_id", "scan_file" and "map_file". A structure that is not in a scan's map has no score.

    Args:
        arm: name of the data set that the network was trained on.
        table: label table with the classes.

    Attributes:
        rows: one dictionary for each structure and scan. "voxels" is the number in the scan's map, and "dice" may be None.
        first: arrays (D, H, W) of the first scan, {"image", "label", "pred"}.
    """

    def __init__(self, arm: str, table: LabelTable) -> None:
        self.arm = arm
        self.table = table
        self.metric = DiceMetric(include_background=False, reduction="none", num_classes=table.num_classes)
        self.rows: list[dict] = []
        self.first: dict = {}

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        image, label, prediction = (
            convert_to_tensor(engine.state.output[key], track_meta=False).cpu() for key in ("image", "label", "pred")
        )
        participant, scan, map_file = (engine.state.batch[key][0] for key in ("participant_id", "scan_file", "map_file"))
        where = f"{participant} ({scan}), {self.arm}"
        if not torch.isfinite(prediction).all():
            raise ValueError(f"{where}: the prediction is not finite. Has training diverged? Lower --lr")
        if not label.any():
            raise ValueError(f"{where}: the label map {map_file} is empty at this spacing")
        classes = prediction.argmax(dim=1, keepdim=True) if prediction.shape[1] > 1 else prediction.long()
        dice = self.metric(classes, label.long())[0]  # (classes - 1,)
        voxels = torch.bincount(label.long().flatten(), minlength=self.table.num_classes)
        for number in range(1, self.table.num_classes):
            self.rows.append(
                {
                    "arm": self.arm,
                    "participant_id": participant,
                    "file": Path(scan).name,
                    "structure": self.table.names[number],
                    "brain": number in self.table.brain,
                    "voxels": int(voxels[number]),
                    "dice": float(dice[number - 1]) if voxels[number] else None,
                }
            )
        if not self.first:
            volumes = {"image": image, "label": label, "pred": classes}
            self.first = {name: volume[0, 0].numpy() for name, volume in volumes.items()}


def compare(
    arms: Mapping[str, Dataset],
    trainer: ArmTrainer,
    evaluator: Callable,
    trivial: tuple[str, torch.nn.Module],
    table: LabelTable,
) -> list[DiceScores]:
    """Train the network on each arm, and score all arms and the trivial answer on the same scans.

    `evaluator` makes MONAI's evaluator from a network and handlers; `trivial` comes from `trivial_answers.most_frequent`.
    """
    scores = [DiceScores(arm, table) for arm in (*arms, trivial[0])]
    for one in scores[:-1]:
        evaluator(network=trainer(one.arm, arms[one.arm]), val_handlers=[one]).run()
    # Without a sliding window, because the trivial answer depends on positions in the whole grid.
    evaluator(network=trivial[1].to(trainer.device), inferer=SimpleInferer(), val_handlers=scores[-1:]).run()
    return scores
