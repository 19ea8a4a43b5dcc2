"""4-G-R-SSIM compares the positions of edges in two volumes, independent of contrast."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.metrics.regression import RegressionMetric
from monai.transforms import SobelGradients
from torch.nn.functional import pad

from ..shared.ssim import filtered

# Shares of the reference's largest gradient. Edges are above the first, smooth voxels below the second (Li and Bovik 2010).
EDGE, SMOOTH = 0.12, 0.06

# A window counts as constant if its variance is below this share of its mean square, which is rounding error of float32.
FLAT = 1e-6


class GradientSSIMMetric(RegressionMetric):
    """4-G-R-SSIM of pairs of images or volumes, -1 to 1; 1 for equal ones. Pinaya et al. 2022 use it for diversity.

    It is 4-G-r* of the family of Renieblas et al. 2017 (J. Med. Imaging 4:035501, PMC5527267). Its parts are:

    G: Sobel gradient magnitudes replace the images (Chen et al. 2006, ICIP).
    r*: the structure term of SSIM is used without stabilising constants (Rouse and Hemami 2008, SPIE 6806).
    4: the score is averaged within preserved edges, changed edges, smooth and textured regions, then over the regions that
        exist (Li and Bovik 2010, Signal Processing: Image Communication 25:517).

    For volumes, the Sobel filters and the Gaussian window are three-dimensional. The score treats all directions equally,
    whereas slices would miss the gradients across them.

    Two choices are ours. Neither sample of a pair is the reference whose largest gradient sets the thresholds, so the score is
    the mean over both choices of the reference. The window is the one of MS-SSIM, 7 voxels with sigma 1.5.
    """

    def __init__(self, kernel_size: int = 7, kernel_sigma: float = 1.5) -> None:
        super().__init__()
        window = torch.signal.windows.gaussian(kernel_size, std=kernel_sigma)
        self.window = window / window.sum()

    def _compute_metric(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Compare images (B, 1, ...) with images (B, 1, ...), none of them constant; return scores (B, 1)."""
        a, b = gradient_magnitude(y_pred.float()), gradient_magnitude(y.float())
        similarity = structure(a, b, self.window)
        scores = [pooled(similarity, [inner(mask, self.window) for mask in regions(*pair)]) for pair in ((a, b), (b, a))]
        return ((scores[0] + scores[1]) / 2)[:, None]


def gradient_magnitude(images: torch.Tensor) -> torch.Tensor:
    """Compute the length of Sobel's gradient per voxel of images (B, 1, ...), in intensity per voxel."""
    sobel, axes = SobelGradients(), range(images.ndim - 2)
    padded = pad(images, [1] * 2 * len(axes), mode="reflect")
    kernels = [[sobel.kernel_diff if along == axis else sobel.kernel_smooth for along in axes] for axis in axes]
    return sum(filtered(padded, along_axes).square() for along_axes in kernels).sqrt()


def inner(images: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
    """Return the part of images (B, 1, ...) in which the whole window fits around each voxel."""
    margin = len(window) // 2
    return images[(..., *(slice(margin, size - margin) for size in images.shape[2:]))]


def structure(a: torch.Tensor, b: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
    """Compute r*, the correlation of two images (B, 1, ...) within a window around each voxel of their `inner` part.

    It is 1 if both are constant in the window, and 0 if one of them is (Rouse and Hemami 2008).
    """
    means = filtered(torch.cat([a, b, a * a, b * b, a * b]), [window] * (a.ndim - 2))
    mean_a, mean_b, square_a, square_b, product = means.chunk(5)
    variance_a, variance_b = square_a - mean_a**2, square_b - mean_b**2
    flat_a, flat_b = variance_a <= FLAT * square_a, variance_b <= FLAT * square_b
    correlation = (product - mean_a * mean_b) / (variance_a.clamp(min=0).sqrt() * variance_b.clamp(min=0).sqrt())
    correlation = correlation.clamp(-1, 1).masked_fill(flat_a | flat_b, 0.0)
    return correlation.masked_fill(flat_a & flat_b, 1.0)


def regions(reference: torch.Tensor, other: torch.Tensor) -> list[torch.Tensor]:
    """Divide gradient images (B, 1, ...) into preserved edges, changed edges, smooth regions and textures: four masks.

    An edge is preserved if both gradients are above 0.12 of the reference's largest, and changed if one of them is. The rest
    is smooth if the reference is below 0.06 of its largest, otherwise texture (Li and Bovik 2010).
    """
    largest = reference.amax(dim=tuple(range(1, reference.ndim)), keepdim=True)
    edge, other_edge = reference > EDGE * largest, other > EDGE * largest
    neither = ~edge & ~other_edge
    smooth = neither & (reference < SMOOTH * largest)
    return [edge & other_edge, edge ^ other_edge, smooth, neither & ~smooth]


def pooled(similarity: torch.Tensor, masks: Sequence[torch.Tensor]) -> torch.Tensor:
    """Average images (B, 1, ...) within each region, then over the regions that exist; return (B,)."""
    counts = torch.stack([mask.flatten(1).sum(dim=1) for mask in masks])  # (4, B)
    sums = torch.stack([(similarity * mask).flatten(1).sum(dim=1) for mask in masks])
    return (sums / counts.clamp(min=1)).sum(dim=0) / (counts > 0).sum(dim=0)
