"""Show curves in TensorBoard, and volumes as their three mid-planes, next to each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events
from monai.handlers import TensorBoardStatsHandler
from torch.utils.tensorboard import SummaryWriter


def three_planes(volume: torch.Tensor) -> torch.Tensor:
    """Join the axial, coronal and sagittal mid-planes of a volume into one image (1, h, w).

    The subject's left is on the right of the picture (radiological convention). In the sagittal plane the nose points left.

    Args:
        volume: intensities (D, H, W) in LAS order: from right to left, back to front and bottom to top.
    """
    x, y, z = (side // 2 for side in volume.shape)
    planes = [plane.T.flip(0) for plane in (volume[:, :, z], volume[:, y, :], volume[x].flip(0))]
    height = max(len(plane) for plane in planes)
    padded = [F.pad(plane, (1, 1, 0, height - len(plane))) for plane in planes]
    return torch.cat(padded, dim=1).clamp(0, 1)[None]


@dataclass(eq=False)
class Panels:
    """Draw volumes in TensorBoard every few epochs of a trainer."""

    log_dir: str  # folder that TensorBoard reads
    volumes: Callable[[], dict[str, torch.Tensor]]  # returns volumes (B, 1, D, H, W) by the name of their row of pictures
    every: int  # number of epochs between two drawings

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.every), self)

    def __call__(self, engine: Engine) -> None:
        with SummaryWriter(self.log_dir) as writer:
            for name, batch in self.volumes().items():
                picture = torch.cat([three_planes(volume[0].float().cpu()) for volume in batch], dim=1)
                writer.add_image(name, picture, engine.state.epoch)


class Curves(TensorBoardStatsHandler):
    """MONAI's handler, which opens its file at the first value, so that a run that is refused leaves none."""

    def __init__(self, log_dir: str, **options) -> None:
        super().__init__(LateWriter(log_dir), **options)


class LateWriter(SummaryWriter):
    """A writer whose file is created with its first value."""

    def __init__(self, log_dir: str) -> None:
        self._is_new = True
        super().__init__(log_dir)
        self._is_new = False

    def _get_file_writer(self):
        return None if self._is_new else super()._get_file_writer()
