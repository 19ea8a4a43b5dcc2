"""Schedule of the learning rate of both stages."""

from __future__ import annotations

from collections.abc import Callable


def linear_decay(epochs: int, decay_epochs: int) -> Callable[[int], float]:
    """Return the factor of the learning rate at an epoch: 1, then a linear decay to 0 over the last `decay_epochs`."""
    decay_epochs = min(decay_epochs, epochs)

    def factor(epoch: int) -> float:
        return min(1.0, (epochs - epoch) / decay_epochs) if decay_epochs else 1.0

    return factor
