"""A network that predicts covariates from volumes, for evaluation only."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from monai.networks import nets
from monai.networks.layers.factories import Act

from ..shared.recipe import WithRecipe


class Regressor(WithRecipe, nets.Regressor):
    """Predict covariates by residual, strided convolutions on five levels and two fully connected layers.

    The network follows the age predictor of Cole et al. 2017 (NeuroImage 163:115), which Pinaya et al. 2022 used: blocks of
    two 3x3x3 convolutions that each halve the grid, then a fully connected layer. Ours differs in three points. Blocks are
    residual. Group normalisation makes a prediction independent of the other volumes in the batch. A layer of `num_features`
    features precedes the output.

    `recipe`: {"covariates": schema, "spacing_mm", "regressor": the arguments below, "seen_voxels", "seen_unknown"}.

    Each of `channels` is a level, which halves the grid, rounding up. `norm_num_groups` must divide all channels.
    """

    def __init__(
        self,
        image_size: Sequence[int],
        num_outputs: int,
        channels: Sequence[int] = (16, 32, 64, 128, 128),
        num_features: int = 64,
        norm_num_groups: int = 8,
    ) -> None:
        self.num_features = num_features
        super().__init__(
            in_shape=(1, *image_size),
            out_shape=(num_outputs,),
            channels=channels,
            strides=[2] * len(channels),
            norm=("GROUP", {"num_groups": norm_num_groups}),
        )
        self.recipe: dict = {}

    def _get_final_layer(self, in_shape: Sequence[int]) -> torch.nn.Sequential:
        activation = Act[self.act]
        return torch.nn.Sequential(
            activation(),
            torch.nn.Flatten(),
            torch.nn.Linear(math.prod(map(int, in_shape)), self.num_features),
            activation(),
            torch.nn.Linear(self.num_features, *self.out_shape),
        )

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the features (B, num_features) before the output layer, for volumes (B, 1, D, H, W) in [0, 1]."""
        return self.final[:-1](self.net(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Predict scaled covariates (B, C), in the schema's order, from volumes (B, 1, D, H, W) in [0, 1]."""
        return self.final[-1](self.features(x))
