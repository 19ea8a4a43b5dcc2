"""Give covariates to the diffusion network by hybrid conditioning (Pinaya et al. 2022, Sec. 2.2).

They enter twice: as constant maps that are concatenated with the latent, and as the only token of the cross-attention.
"""

from __future__ import annotations

import torch

from ..data.covariates import NULL


def condition(x: torch.Tensor, context: torch.Tensor | None, num_covariates: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the input of the network with its covariate maps (B, 3 + 4, d, h, w), and the token (B, 1, 4).

    Args:
        x: noisy latents (B, 3, d, h, w).
        context: scaled covariates (B, 1, 4), about 0 to 1; -1 withholds one, None withholds all.
        num_covariates: number of covariates, 4 in the published model.
    """
    if context is None:
        context = torch.full((len(x), 1, num_covariates), NULL, device=x.device)
    if context.shape[-1] != num_covariates:
        raise ValueError(
            f"{context.shape[-1]} covariates were given, but the network was trained with {num_covariates}. Give the file of "
            f"the training's covariates by --covariates_file"
        )
    maps = context[:, 0, :, None, None, None].expand(-1, -1, *x.shape[2:])  # (B, 4, d, h, w)
    return torch.cat([x, maps], dim=1), context
