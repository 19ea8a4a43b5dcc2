"""Pictures for TensorBoard: the three mid-planes of volumes, side by side."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events
from torch.utils.tensorboard import SummaryWriter

__all__ = ["Panels", "three_planes"]


def three_planes(volume: torch.Tensor) -> torch.Tensor:
    """Axial, coronal and sagittal mid-plane of a volume (D, H, W) stored from right, back and bottom, as one image (1, h, w).

    The subject's left is at the picture's right, as a radiologist looks at it; up is up and, in the sagittal plane, the
    nose points left.
    """
    x, y, z = (side // 2 for side in volume.shape)
    planes = [plane.T.flip(0) for plane in (volume[:, :, z], volume[:, y, :], volume[x].flip(0))]
    height = max(len(plane) for plane in planes)
    padded = [F.pad(plane, (1, 1, 0, height - len(plane))) for plane in planes]
    return torch.cat(padded, dim=1).clamp(0, 1)[None]


class Panels:
    """Draw named volumes every few epochs of a trainer.

    Args:
        log_dir: of TensorBoard.
        volumes: called without arguments; gives a dict of name to volumes (B, 1, D, H, W), one row of pictures each.
        every: epochs.
    """

    def __init__(self, log_dir: str, volumes: Callable[[], dict[str, torch.Tensor]], every: int) -> None:
        self.log_dir = log_dir
        self.volumes = volumes
        self.every = every

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.every), self)

    def __call__(self, engine: Engine) -> None:
        with SummaryWriter(self.log_dir) as writer:
            for name, batch in self.volumes().items():
                picture = torch.cat([three_planes(volume[0].float().cpu()) for volume in batch], dim=1)
                writer.add_image(name, picture, engine.state.epoch)
