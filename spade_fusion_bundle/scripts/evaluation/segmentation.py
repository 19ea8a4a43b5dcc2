"""What labelled synthetic volumes are for: the same segmentation network, trained on them, on real scans, or on both."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import nibabel as nib
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader
from monai.engines import SupervisedTrainer
from monai.handlers import LrScheduleHandler
from monai.inferers import SimpleInferer
from monai.metrics import DiceMetric
from monai.utils import convert_to_tensor, set_determinism
from torch.utils.data import Dataset, RandomSampler

from ..data.labels import LabelTable
from ..shared.files import sha256
from ..shared.handlers import Progress, StopAtNonFinite
from ..shared.problems import refuse

__all__ = ["ArmTrainer", "DiceScores", "compare", "refuse_sizes", "segmentation_step", "share_out", "sided", "synthetic_pairs"]


def sided(table: LabelTable) -> LabelTable:
    """The table with a class for each side of what it lists by sides; midline values of such a class become a third one."""
    entries = []
    for entry in table.to_dict()["classes"]:
        sides = [side for side in ("left", "right", "midline") if side in entry]
        for side in sides:
            apart = len(sides) > 1 and side == "midline"
            name = f"midline {entry['name']}" if apart else entry["name"]
            entries.append({"class": len(entries), "name": name, side: entry[side], "brain": entry["brain"]})
    return LabelTable(table.name, entries)


def share_out(data: Mapping[str, Sequence[dict]], split: str, synthetic_dir: str | Path | None) -> dict[str, list[dict]]:
    """Who trains and who is tested on: {"real": training and fusion split, "synthetic": a folder's, "test": `split`}.

    Raises:
        ValueError: nobody to train or to test on, or synthetic volumes of test maps.
    """
    if split not in ("test", "validation"):
        raise ValueError(f"split {split!r}: the networks are trained on the other splits. Test on test or validation")
    counts = ", ".join(f"{name}: {len(items)}" for name, items in data.items())
    real, test = [*data["training"], *data["fusion"]], list(data[split])
    for wanted, items in ((split, test), ("training", real)):
        if not items:
            raise ValueError(f"no scans in the split {wanted!r} ({counts}). Mark some in the column split of participants.tsv")
    return {"real": real, "synthetic": synthetic_pairs(synthetic_dir, test), "test": test}


def synthetic_pairs(synthetic_dir: str | Path | None, test: Sequence[Mapping]) -> list[dict]:
    """The volumes that `configs/inference.json` wrote into a folder, with their label maps; none may come from a test map.

    A map is known again by its content, and by its participant: the same head segmented or resampled again is no other.

    Args:
        synthetic_dir: of `--output_dir`.
        test: items {"label": path, "participant_id": "sub-X"} that the networks will be tested on.

    Returns:
        {"image", "label": paths, "participant_id", "source": participant of the map}, sorted by path.

    Raises:
        FileNotFoundError: no synthetic volumes there.
        ValueError: volumes from test maps, volumes that do not say from which map they are, or without their own; up to 20.
    """
    if synthetic_dir is None:
        raise ValueError("no synthetic volumes were given. Make some of the training split's maps, then add --synthetic_dir")
    root = Path(synthetic_dir)
    found = sorted(path for folder in ("sub-*/anat", "sub-*/ses-*/anat") for path in root.glob(f"{folder}/sub-*_T1w.nii.gz"))
    if not found:
        raise FileNotFoundError(
            f"synthetic_dir {root}: no synthetic volumes sub-X/anat/*_T1w.nii.gz there. Make them with: python -m monai.bundle "
            f"run --config_file configs/inference.json --label_maps DIR --split train --variants 4 --output_dir {root}"
        )
    hashes = {sha256(item["label"]): item["participant_id"] for item in test}
    participants = {item["participant_id"] for item in test}
    items, problems, leaked = [], [], []
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
            leaked.append(f"{image}: made from a map of {source}. If that is somebody else, rename the maps")
        elif not label.is_file():
            problems.append(f"{image}: no label map {label.name} beside it. Run inference again")
        elif nib.load(image).shape != nib.load(label).shape:
            problems.append(
                f"{image}: shape {nib.load(image).shape}, its label map {nib.load(label).shape}. Run inference again"
            )
        folder = image.relative_to(root).parts[0]
        items.append({"image": str(image), "label": str(label), "participant_id": folder, "source": source})
    refuse(leaked, f"{len(leaked)} of {len(found)} synthetic volumes in {root} come from maps of the test scans, which "
                    f"would be trained on. Make others (--split train):")  # fmt: skip
    refuse(problems, f"{len(problems)} of {len(found)} synthetic volumes in {root} cannot be used:")
    return items


def refuse_sizes(patch_size: Sequence[int], strides: Sequence[int]) -> None:
    """Refuse patches that the U-Net cannot halve as often as it does.

    Raises:
        ValueError: says which sides, and of which number they must be multiples.
    """
    factor = 1
    for stride in strides:
        factor *= stride
    if len(patch_size) != 3 or any(side % factor or side < factor for side in patch_size):
        raise ValueError(f"patch_size {list(patch_size)}: three multiples of {factor} are needed for strides {list(strides)}")


def segmentation_step(engine: Engine, batch: dict, amp: bool) -> list[dict[str, float]]:
    """One step of an arm.

    Args:
        engine: MONAI's SupervisedTrainer.
        batch: {"image": (N, 1, D, H, W), "label": (N, 1, D, H, W), classes}.
        amp: bfloat16 autocast.
    """
    image, label = (
        convert_to_tensor(batch[key], track_meta=False).to(engine.state.device, non_blocking=True) for key in ("image", "label")
    )
    engine.optimizer.zero_grad(set_to_none=True)
    with torch.autocast(engine.state.device.type, dtype=torch.bfloat16, enabled=amp):
        logits = engine.network.train()(image.float())  # (N, classes, D, H, W)
    loss = engine.loss_function(logits.float(), label)
    loss.backward()
    engine.optimizer.step()
    return [{"loss": loss.item()}]


class ArmTrainer:
    """Train the same network in the same way on one data set or another: first weights, steps, rates and augmentation.

    Args:
        network: called, it makes a new one, (N, 1, D, H, W) to logits (N, classes, D, H, W).
        loss: of logits and classes (N, 1, D, H, W).
        optimizer: called with the parameters.
        lr_scheduler: called with the optimizer; a step of it per iteration.
        steps: iterations, whatever the size of the data set.
        batch_size: volumes or patches per step.
        num_workers: of the loader.
        device, amp: where, and whether in bfloat16.
        seed: of first weights, order and augmentation.
    """

    def __init__(
        self,
        network: Callable[[], torch.nn.Module],
        loss: Callable,
        optimizer: Callable,
        lr_scheduler: Callable,
        steps: int,
        batch_size: int,
        num_workers: int,
        device: torch.device,
        amp: bool,
        seed: int,
    ) -> None:
        self.network = network
        self.loss = loss
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.steps = steps
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.device = device
        self.amp = amp
        self.seed = seed

    def __call__(self, arm: str, dataset: Dataset) -> torch.nn.Module:
        """The network after training on `dataset`, in eval mode."""
        set_determinism(self.seed)
        network = self.network().to(self.device)
        optimizer = self.optimizer(network.parameters())
        # As many draws as the steps need: every volume once before any comes again.
        sampler = RandomSampler(dataset, num_samples=self.steps * self.batch_size)
        SupervisedTrainer(
            device=self.device,
            max_epochs=1,
            train_data_loader=DataLoader(dataset, batch_size=self.batch_size, sampler=sampler, num_workers=self.num_workers),
            network=network,
            optimizer=optimizer,
            loss_function=self.loss,
            iteration_update=partial(segmentation_step, amp=self.amp),
            decollate=False,
            train_handlers=[
                StopAtNonFinite(),
                LrScheduleHandler(self.lr_scheduler(optimizer), print_lr=False, epoch_level=False),
                Progress(f"segmentation, {arm}"),
            ],
        ).run()
        return network.eval()


class DiceScores:
    """Dice of every structure on each scan that an evaluator runs, and the segmentation of the first one.

    The evaluator's predictions are logits (1, classes, D, H, W) or classes (1, 1, D, H, W). A structure that a scan's map
    does not have gets no score there.

    Args:
        arm: name in the rows.
        items: in the evaluator's order, {"image", "participant_id"}.
        table: of the classes.

    Attributes:
        rows: {"arm", "participant_id", "file", "structure", "brain", "voxels": of the reference, "dice": None without one}.
        first: {"image", "label", "pred"} of the first scan, arrays (D, H, W).

    Raises:
        ValueError: a prediction on another grid than the map's, or that is not finite; an empty map.
    """

    def __init__(self, arm: str, items: Sequence[Mapping], table: LabelTable) -> None:
        self.arm = arm
        self.items = items
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
        item = self.items[engine.state.iteration - 1]
        where = f"{item['participant_id']} ({item['image']}), {self.arm}"
        if prediction.shape[2:] != label.shape[2:] or label.shape[:2] != (1, 1):
            raise ValueError(
                f"{where}: prediction {tuple(prediction.shape)} and label map {tuple(label.shape)} are not on one grid"
            )
        if not torch.isfinite(prediction).all():
            raise ValueError(f"{where}: the prediction is not finite. Has training diverged? Lower --lr")
        if not label.any():
            raise ValueError(f"{where}: the label map {item['label']} is empty at this spacing")
        classes = prediction.argmax(dim=1, keepdim=True) if prediction.shape[1] > 1 else prediction.long()
        dice = self.metric(classes, label.long())[0]  # (classes - 1,), NaN where the map has none
        voxels = torch.bincount(label.long().flatten(), minlength=self.table.num_classes)
        for number in range(1, self.table.num_classes):
            self.rows.append(
                {
                    "arm": self.arm,
                    "participant_id": item["participant_id"],
                    "file": Path(item["image"]).name,
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
    items: Sequence[Mapping],
    table: LabelTable,
) -> list[DiceScores]:
    """Scores of the network trained on each arm, and of the trivial answer, on the same scans.

    Args:
        arms: data set by name.
        trainer: of the networks.
        evaluator: MONAI's, called with a network and handlers.
        trivial: name and "network" that needs no training, see `baseline.most_frequent`.
        items: of the evaluator's loader.
        table: of the classes.
    """
    compared = []
    for arm, dataset in [*arms.items(), (trivial[0], None)]:
        scores = DiceScores(arm, items, table)
        if dataset is None:  # in one pass: the places are those of the whole grid
            evaluator(network=trivial[1].to(trainer.device), inferer=SimpleInferer(), val_handlers=[scores]).run()
        else:
            evaluator(network=trainer(arm, dataset), val_handlers=[scores]).run()
        compared.append(scores)
    return compared
