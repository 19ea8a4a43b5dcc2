"""The adversarial losses of SPADE (Park et al. 2019, Sec. 4, after Wang et al. 2018, pix2pixHD).

All take what `SpadeDiscriminator` gives for a batch of fakes followed by as many reals: per scale a list of feature maps, the
last of them the scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

__all__ = ["discriminator_loss", "feature_matching", "generator_loss"]

Outputs = Sequence[Sequence[torch.Tensor]]


def generator_loss(outputs: Outputs, fakes: int) -> torch.Tensor:
    """How little the discriminator takes the first `fakes` rows for real: minus their mean score, averaged over scales."""
    return -sum(scale[-1][:fakes].mean() for scale in outputs) / len(outputs)


def discriminator_loss(outputs: Outputs, fakes: int) -> torch.Tensor:
    """Hinge loss: scores of fakes above -1 and of reals below 1 count, averaged over scales."""
    losses = [F.relu(1 + scale[-1][:fakes]).mean() + F.relu(1 - scale[-1][fakes:]).mean() for scale in outputs]
    return sum(losses) / len(losses)


def feature_matching(outputs: Outputs, fakes: int) -> torch.Tensor:
    """L1 between the features of fakes and reals, summed over the layers but the scores, averaged over scales."""
    pairs = ((feature[:fakes], feature[fakes:].detach()) for scale in outputs for feature in scale[:-1])
    return sum(F.l1_loss(fake, real) for fake, real in pairs) / len(outputs)
