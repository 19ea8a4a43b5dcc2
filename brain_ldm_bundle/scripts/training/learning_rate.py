"""Schedule of the learning rate."""

from __future__ import annotations

from collections.abc import Callable


def warmup(steps: int, total: int) -> Callable[[int], float]:
    """Return a factor for LambdaLR that rises linearly from 0.01 to 1 within `steps`, at most a tenth of all steps."""
    steps = max(1, min(steps, total // 10))
    return lambda step: min(1.0, 0.01 + 0.99 * step / steps)
