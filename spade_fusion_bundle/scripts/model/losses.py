"""Adversarial losses of SPADE (Park et al. 2019, Sec. 4, after Wang et al. 2018, pix2pixHD).

Each takes the output of `SpadeDiscriminator` for a batch of `fakes` fake slices followed by as many real ones. For each scale,
the output is a list of feature maps, and the last map holds the scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

Outputs = Sequence[Sequence[torch.Tensor]]


def generator_loss(outputs: Outputs, fakes: int) -> torch.Tensor:
    """Compute the negative mean score of the fakes, averaged over scales."""
    return -sum(scale[-1][:fakes].mean() for scale in outputs) / len(outputs)


def discriminator_loss(outputs: Outputs, fakes: int) -> torch.Tensor:
    """Compute the hinge loss, averaged over scales. Fakes should score below -1 and reals above 1."""
    losses = [F.relu(1 + scale[-1][:fakes]).mean() + F.relu(1 - scale[-1][fakes:]).mean() for scale in outputs]
    return sum(losses) / len(losses)


def feature_matching(outputs: Outputs, fakes: int) -> torch.Tensor:
    """Compute the L1 between features of fakes and reals, summed over layers (without scores) and averaged over scales."""
    pairs = ((feature[:fakes], feature[fakes:].detach()) for scale in outputs for feature in scale[:-1])
    return sum(F.l1_loss(fake, real) for fake, real in pairs) / len(outputs)
