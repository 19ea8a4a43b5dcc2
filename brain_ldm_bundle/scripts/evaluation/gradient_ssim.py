"""4-G-R-SSIM: where the edges of two volumes are, and how their gradients go together, whatever their contrast."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.metrics.regression import RegressionMetric
from monai.transforms import SobelGradients
from monai.utils import MetricReduction
from torch.nn.functional import pad

from ..shared.ssim import filtered

__all__ = ["GradientSSIMMetric", "gradient_magnitude", "inner", "pooled", "regions", "structure"]

# Shares of the reference's largest gradient: above the first is an edge, below the second is smooth (Li and Bovik 2010).
EDGE, SMOOTH = 0.12, 0.06

# A window's variance below this share of its mean square is rounding error of float32: the window is constant.
FLAT = 1e-6


class GradientSSIMMetric(RegressionMetric):
    """4-G-R-SSIM of pairs of images or volumes, -1 to 1; 1 for equal ones. Pinaya et al. 2022 use it for diversity.

    It is 4-G-r* of the family of Renieblas et al. 2017 (J. Med. Imaging 4:035501, PMC5527267), in these parts:

    G: gradient magnitudes by Sobel take the images' place (Chen et al. 2006, ICIP).
    r*: of SSIM's three terms only the structure, and without stabilising constants (Rouse and Hemami 2008, SPIE 6806).
    4: averaged within preserved edges, changed edges, smooth and textured regions, then over those of the four that exist,
        with equal weights (Li and Bovik 2010, Signal Processing: Image Communication 25:517).

    In three dimensions: Sobel's filters and the Gaussian window have three axes, and regions are of voxels. A volume has no
    slices that are special; planes of one direction would not see the gradients across them.

    Ours: of two samples neither is the reference whose largest gradient sets the thresholds. Each takes its turn, and the two
    results are averaged. The window is that of MS-SSIM on volumes, 7 voxels with sigma 1.5, not the 11 of two dimensions.

    Args:
        kernel_size, kernel_sigma: Gaussian window, in voxels.
        reduction, get_not_nans: as of all MONAI metrics.

    Raises:
        ValueError: an image that is constant or not finite, or smaller than the window: there is no structure to compare.
    """

    def __init__(
        self,
        kernel_size: int = 7,
        kernel_sigma: float = 1.5,
        reduction: MetricReduction | str = MetricReduction.MEAN,
        get_not_nans: bool = False,
    ) -> None:
        super().__init__(reduction=reduction, get_not_nans=get_not_nans)
        window = torch.signal.windows.gaussian(kernel_size, std=kernel_sigma)
        self.window = window / window.sum()

    def _compute_metric(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """(B, 1, ...) twice, to (B, 1)."""
        for images in (y_pred, y):
            self._refuse_degenerate(images)
        a, b = gradient_magnitude(y_pred.float()), gradient_magnitude(y.float())
        similarity = structure(a, b, self.window)
        scores = [pooled(similarity, [inner(mask, self.window) for mask in regions(*pair)]) for pair in ((a, b), (b, a))]
        return ((scores[0] + scores[1]) / 2)[:, None]

    def _refuse_degenerate(self, images: torch.Tensor) -> None:
        if min(images.shape[2:]) < len(self.window):
            raise ValueError(f"images of {tuple(images.shape[2:])} are smaller than the window of {len(self.window)} voxels")
        for number, image in enumerate(images):
            if not torch.isfinite(image).all():
                raise ValueError(f"image {number} of the batch has voxels that are NaN or infinite")
            if image.min() == image.max():
                raise ValueError(f"image {number} of the batch is constant ({image.min():g}): it has no structure to compare")


def gradient_magnitude(images: torch.Tensor) -> torch.Tensor:
    """Length of Sobel's gradient per voxel, in intensity per voxel: (B, 1, ...) to (B, 1, ...)."""
    sobel, axes = SobelGradients(), range(images.ndim - 2)
    padded = pad(images, [1] * 2 * len(axes), mode="reflect")
    kernels = [[sobel.kernel_diff if along == axis else sobel.kernel_smooth for along in axes] for axis in axes]
    return sum(filtered(padded, along_axes).square() for along_axes in kernels).sqrt()


def inner(images: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
    """The part of images (B, 1, ...) around whose voxels the whole window fits."""
    margin = len(window) // 2
    return images[(..., *(slice(margin, size - margin) for size in images.shape[2:]))]


def structure(a: torch.Tensor, b: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
    """r*: correlation of two images within a window around each voxel, only where the whole window fits: (B, 1, ...).

    Where both are constant in the window it is 1, where one of them is it is 0 (Rouse and Hemami 2008).
    """

    means = filtered(torch.cat([a, b, a * a, b * b, a * b]), [window] * (a.ndim - 2))
    mean_a, mean_b, square_a, square_b, product = means.chunk(5)
    variance_a, variance_b = square_a - mean_a**2, square_b - mean_b**2
    flat_a, flat_b = variance_a <= FLAT * square_a, variance_b <= FLAT * square_b
    correlation = (product - mean_a * mean_b) / (variance_a.clamp(min=0).sqrt() * variance_b.clamp(min=0).sqrt())
    correlation = correlation.clamp(-1, 1).masked_fill(flat_a | flat_b, 0.0)
    return correlation.masked_fill(flat_a & flat_b, 1.0)


def regions(reference: torch.Tensor, other: torch.Tensor) -> list[torch.Tensor]:
    """Preserved edges, changed edges, smooth regions, textures of gradient images (B, 1, ...): four masks that share out all.

    An edge is preserved where both gradients are above 0.12 of the reference's largest, changed where one of them is. The
    rest is smooth where the reference is below 0.06 of its largest, else texture (Li and Bovik 2010).
    """
    largest = reference.amax(dim=tuple(range(1, reference.ndim)), keepdim=True)
    edge, other_edge = reference > EDGE * largest, other > EDGE * largest
    neither = ~edge & ~other_edge
    smooth = neither & (reference < SMOOTH * largest)
    return [edge & other_edge, edge ^ other_edge, smooth, neither & ~smooth]


def pooled(similarity: torch.Tensor, masks: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean within each region, then over the regions that exist: (B, 1, ...) to (B,)."""
    counts = torch.stack([mask.flatten(1).sum(dim=1) for mask in masks])  # (4, B)
    sums = torch.stack([(similarity * mask).flatten(1).sum(dim=1) for mask in masks])
    return (sums / counts.clamp(min=1)).sum(dim=0) / (counts > 0).sum(dim=0)
