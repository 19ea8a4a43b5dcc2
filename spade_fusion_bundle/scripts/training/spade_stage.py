"""Train the SPADE GAN of each plane, one plane after the other, or each in its own process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ignite.distributed as idist
import torch
from ignite.engine import Engine
from monai.data import DataLoader, Dataset, DistributedSampler
from monai.engines import AdversarialTrainer, SupervisedEvaluator
from monai.handlers import (
    IgniteMetricHandler,
    LrScheduleHandler,
    MLFlowHandler,
    ValidationHandler,
    from_engine,
)
from monai.metrics import PSNRMetric
from monai.transforms import Compose, Transform
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..data.planes import PLANES, RandSlicesd, axis_of, collate_slices, from_the_right
from ..data.preprocessing import map_and_scan
from ..model.networks import SpadeDiscriminator, SpadeGenerator
from ..model.plane_weights import generator_file
from ..shared.handlers import BestWeights, EpochSeed, Progress, StopAtNonFinite, ValidateStart, validation_interval
from ..shared.resume import Resume
from ..shared.ssim import SSIM
from ..shared.tensorboard_panels import Curves, Panels
from .batch_norm import ReestimateBatchNorm
from .learning_rate import linear_decay
from .start_weights import load_generator


@dataclass(kw_only=True)
class SpadeStage:
    """Train the GAN of one plane (`run`) or of all planes (`run_all`).

    Each plane has its own networks, optimisers and files, so the config passes functions that make them. A plane's files
    are models_dir/spade_<plane>.pt (the best generator) and models_dir/resume/spade_<plane>.pt.
    docs/settings.md explains the fields that are settings of train.json.
    """

    # Items {"image": intensities (1, X, Y, Z), 0 to 1, "label": classes (1, X, Y, Z)}, in RAS, sides multiples of 32.
    volumes: Dataset
    val_volumes: Dataset
    folds: Sequence[int] | None  # fold of each item of `volumes`; None without cross-validation
    mirror: Transform  # randomly flips left and right
    generator: Callable[[], SpadeGenerator]
    discriminator: Callable[[], SpadeDiscriminator]
    optimizer: Callable[[Iterable], Optimizer]
    discriminator_optimizer: Callable[[Iterable], Optimizer]
    step: Callable[[Engine, dict], list[dict]]  # function `gan_step.spade_step` with its settings
    epochs: int
    decay_epochs: int
    batch_size: int
    slices_per_volume: int
    visits: int
    empty_fraction: float
    batch_norm_batches: int
    val_interval: int
    panel_interval: int
    num_workers: int
    models_dir: str | Path
    init_dir: str | Path | None  # folder of weights to start from, see `start_weights`
    output_dir: str | Path
    device: torch.device | str
    recipe: Mapping  # label table, spacing and identities of the scans, stored with the weights; equal in a resumed run
    seed: int = 0
    distributed: bool = False
    tracking: Callable[..., MLFlowHandler] | None = None  # makes a handler from run_name and other options

    def __post_init__(self) -> None:
        if self.batch_size == 1:
            raise ValueError("spade_batch_size 1: batch norm needs several slices to estimate statistics. Use 2 or more")
        if self.batch_size % self.slices_per_volume:
            raise ValueError(
                f"spade_batch_size {self.batch_size} must be a multiple of slices_per_volume {self.slices_per_volume}, the "
                f"number of slices from each volume of a batch"
            )
        self.device = torch.device(self.device)
        self.main = idist.get_rank() == 0

    def run_all(self, plane: str | None = None, fold: int | None = None) -> None:
        """Train the three planes; with cross-validation also each plane without each fold. Refuse the choice of one."""
        if plane is not None or fold is not None:
            raise ValueError(
                f"plane is {plane!r} and fold is {fold!r}, but the run id training trains all planes. To train one, give the "
                f"run id training_spade"
            )
        folds = sorted(set(self.folds)) if self.folds else []
        for plane in PLANES:
            for fold in [None, *folds]:
                self.run(plane, fold)

    def run(self, plane: str, fold: int | None = None) -> None:
        """Train one plane's GAN, without the volumes of `fold` if one is given."""
        axis_of(plane)
        if fold is not None and fold not in (self.folds or ()):
            raise ValueError(f"--fold {fold}: there is no such fold. Set --folds K too; folds are 0 to K - 1")
        torch.manual_seed(self.seed + PLANES.index(plane))
        self.trainer(plane, fold).run()
        idist.barrier()

    def trainer(self, plane: str, fold: int | None = None) -> AdversarialTrainer:
        """Make the engine that trains one plane, with validation, logs and checkpoints."""
        name = generator_file("", plane, fold).stem
        generator, discriminator = self.generator(), self.discriminator()
        start = load_generator(generator, self.init_dir, plane, self.recipe) if self.init_dir else None
        generator.recipe = dict(self.recipe, plane=plane)
        if self.distributed and self.device.type == "cuda":  # on CPUs there is no synchronised batch norm
            generator = torch.nn.SyncBatchNorm.convert_sync_batchnorm(generator)
        generator, discriminator = generator.to(self.device), discriminator.to(self.device)
        optimizers = self.optimizer(generator.parameters()), self.discriminator_optimizer(discriminator.parameters())
        schedules = [LambdaLR(optimizer, linear_decay(self.epochs, self.decay_epochs)) for optimizer in optimizers]

        loader = self._train_loader(plane, fold)
        best = BestWeights(generator_file(self.models_dir, plane, fold), generator, metric="val_psnr", writes=self.main)

        def inferer(classes: torch.Tensor, network: SpadeGenerator) -> torch.Tensor:
            return network.volumes(classes, plane, self.batch_size)

        log_dir = str(Path(self.output_dir) / "tensorboard" / name)
        evaluator = self._evaluator(generator, inferer, loader, best, log_dir)
        parts = {
            "generator": generator,
            "discriminator": discriminator,
            "optimizer": optimizers[0],
            "discriminator_optimizer": optimizers[1],
            "schedule": schedules[0],
            "discriminator_schedule": schedules[1],
            "best": best,
        }
        resume_file = Path(self.models_dir) / "resume" / f"{name}.pt"
        handlers = [
            EpochSeed(self.seed, idist.get_rank()),
            StopAtNonFinite(),
            *(LrScheduleHandler(schedule, print_lr=False) for schedule in schedules),
            ValidationHandler(validation_interval(self.val_interval, self.epochs), evaluator),
        ]
        if self.main:
            handlers += [
                Curves(log_dir, epoch_log=False),
                Panels(log_dir, lambda: self._pictures(generator, inferer), self.panel_interval),
                Progress(f"SPADE {plane}" + ("" if fold is None else f", without fold {fold}")),
            ]
            if self.tracking:
                handlers.append(self.tracking(run_name=name, close_on_complete=True))
        if start:
            handlers.append(ValidateStart(evaluator, best, start))
        handlers.append(Resume(resume_file, parts, dict(self.recipe), writes=self.main))
        return AdversarialTrainer(
            device=self.device,
            max_epochs=self.epochs,
            train_data_loader=loader,
            g_network=self._distribute(generator),
            g_optimizer=optimizers[0],
            g_loss_function=None,
            recon_loss_function=None,
            d_network=self._distribute(discriminator),
            d_optimizer=optimizers[1],
            d_loss_function=None,
            iteration_update=self.step,
            train_handlers=handlers,
        )

    def _train_loader(self, plane: str, fold: int | None) -> DataLoader:
        kept = [i for i in range(len(self.volumes)) if fold is None or self.folds[i] != fold]
        slices = RandSlicesd(("image", "label"), "label", plane, self.slices_per_volume, self.empty_fraction)
        visits = torch.utils.data.Subset(self.volumes, kept * self.visits)
        dataset = Dataset(visits, Compose([self.mirror, slices]))
        sampler = DistributedSampler(dataset, even_divisible=True, shuffle=True) if self.distributed else None
        batch_size = min(self.batch_size // self.slices_per_volume, len(dataset) // idist.get_world_size())
        if batch_size * self.slices_per_volume == 1:
            raise ValueError(
                f"{len(kept)} scans for {idist.get_world_size()} processes with slices_per_volume 1 make batches of one slice; "
                f"batch norm needs several to estimate statistics. Raise --slices_per_volume"
            )
        return DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            shuffle=sampler is None,
            drop_last=True,
            num_workers=self.num_workers,
            collate_fn=collate_slices,
            pin_memory=self.device.type == "cuda",
        )

    def _evaluator(
        self, generator: SpadeGenerator, inferer: Callable, loader: DataLoader, best: BestWeights, log_dir: str
    ) -> SupervisedEvaluator:
        sampler = DistributedSampler(self.val_volumes, even_divisible=False, shuffle=False) if self.distributed else None
        pred_and_label = from_engine(["pred", "label"])
        handlers = [ReestimateBatchNorm(generator, loader, self.batch_norm_batches, self.device), best]
        if self.main:
            handlers.append(Curves(log_dir, iteration_log=False))
            if self.tracking:
                handlers.append(self.tracking(run_name=Path(log_dir).name, iteration_log=False))
        return SupervisedEvaluator(
            device=self.device,
            val_data_loader=DataLoader(self.val_volumes, batch_size=1, sampler=sampler, num_workers=self.num_workers),
            network=generator,
            inferer=inferer,
            prepare_batch=map_and_scan,
            decollate=False,
            key_val_metric={
                "val_psnr": IgniteMetricHandler(metric_fn=PSNRMetric(max_val=1.0), output_transform=pred_and_label)
            },
            additional_metrics={
                "val_ssim": IgniteMetricHandler(metric_fn=SSIM(spatial_dims=3), output_transform=pred_and_label)
            },
            val_handlers=handlers,
        )

    def _distribute(self, network: torch.nn.Module) -> torch.nn.Module:
        if not self.distributed:
            return network
        device_ids = [self.device] if self.device.type == "cuda" else None
        # No broadcast, because it would change the buffers between the two forward passes that precede a backward pass.
        return DistributedDataParallel(network, device_ids=device_ids, broadcast_buffers=False)

    @torch.no_grad()
    def _pictures(self, generator: SpadeGenerator, inferer: Callable) -> dict[str, torch.Tensor]:
        generator.eval()
        pictures = {}
        for number in range(min(2, len(self.val_volumes))):
            item = self.val_volumes[number]
            synthetic = inferer(item["label"][None].to(self.device), generator).cpu()
            pictures[f"scan and synthesis {number}"] = from_the_right(torch.cat([item["image"][None], synthetic]))
        return pictures
