"""Measure the noise and the bias field that scans have and synthetic volumes lack, and add them to synthetic volumes.

A network cannot predict noise, so its volumes are too smooth. What it lacks is measured on pairs of a scan and a synthetic
volume of the same head: the difference of their fine variations, and the slow part of the logarithm of their ratio. The
measurement is stored in the recipe of the weights. For each volume, `draw` draws values from it, which its sidecar records.

Noise is Gaussian, with one level in tissue and one in the background, where a magnitude image has less of it. Neighbouring
voxels may be correlated, because scans are resampled. The logarithm of the bias field is a polynomial of degree 3.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.polynomial import legendre
from scipy import ndimage, optimize

MOST_SCANS = 32  # chosen: the mean and the spread of the level are then known to about a tenth
DEGREE = 3  # chosen: of the polynomial, as slow as the field of a receive coil
POWERS = [powers for powers in product(range(DEGREE + 1), repeat=3) if 1 <= sum(powers) <= DEGREE]  # without the constant
LARGEST_LOG_BIAS, LARGEST_NOISE = 0.5, 0.2
# Noise in air has .655 of its standard deviation in tissue (Gudbjartsson and Patz 1995). With large voxels no tissue is flat,
# and its anatomy would count as noise; so the level is at most one and a half times (chosen) what air implies.
MOST_OVER_AIR = 1.5 / 0.655
LEAST_VARIANCE = 1e-6  # of noise in air: a quarter of a grey level of 8 bits
SIGMAS = (0.25, 0.75)  # voxels: smoothing of the noise; beyond, too little of it is left at the finest scale to measure
FLAT_SHARE = 0.05  # chosen: share of the bright voxels in which noise is measured
RIDGE = 1e-4  # chosen: weight of the squared coefficients relative to the mean squared error
POINTS = 20_000  # voxels in the fit of a bias field
SCALARS = ("noise", "noise_spread", "background_ratio", "background_intensity")  # numbers of a measurement


def measure(pairs: Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]) -> dict[str, Any]:
    """Measure what synthetic volumes lack, for the entry "acquisition" of a recipe.

    Args:
        pairs: a scan and a synthetic volume of the same head, both (X, Y, Z), intensities 0 to 1, and a mask (X, Y, Z) of the
            voxels that show the head. None instead of the mask means the whole volume.

    Returns:
        "scans": number of pairs. "noise" and "noise_spread": mean and standard deviation over the scans of the noise's standard
        deviation in tissue. "background_ratio": the background's share of it. "background_intensity": mean of synthetic
        volumes there. "neighbour_correlation": of the noise, along each axis; 0 if there is no noise in air. "bias_mean" and
        "bias_factor": mean of the polynomial's coefficients, and a matrix R for which R^T R is their covariance.
    """
    found = [_compare(*(None if part is None else part.cpu().numpy() for part in pair)) for pair in pairs]
    tissue, background, intensities, fields = (np.array(part) for part in zip(*found))
    deviations = (fields - fields.mean(axis=0)) / math.sqrt(max(len(fields) - 1, 1))
    # The correlation is measured in air, because anatomy would look like correlated noise.
    air = background.mean(axis=0)
    known = air[0] > LEAST_VARIANCE
    sigmas = [_sigma(_fine_correlation, share) for share in air[1:] / air[0]] if known else [SIGMAS[0]] * 3
    most = (MOST_OVER_AIR**2 * background[:, 0]).clip(0) if known else 1.0
    levels = np.sqrt(tissue[:, 0].clip(0, most) / math.prod(map(_fine_variance, sigmas))).clip(0, LARGEST_NOISE)
    measured = {
        "scans": len(found),
        "noise": levels.mean(),
        "noise_spread": levels.std(ddof=1) if len(found) > 1 else 0.0,
        "background_ratio": _ratio(background[:, 0], tissue[:, 0].clip(0, most)) if known else 0.0,
        "background_intensity": intensities.mean(),
        "neighbour_correlation": [_autocovariance(sigma)[1] for sigma in sigmas],
        "bias_mean": fields.mean(axis=0),
        "bias_factor": np.linalg.qr(deviations, mode="r"),
    }
    return {name: value if name == "scans" else _rounded(value) for name, value in measured.items()}


def _ratio(background: np.ndarray, tissue: np.ndarray) -> float:
    """Return the ratio of two standard deviations, at most 1, from their variances in each scan."""
    return math.sqrt(min(background.mean() / max(tissue.mean(), LEAST_VARIANCE), 1.0))


def measured_in(recipe: Mapping, wanted: bool, model_file: object) -> Mapping | None:
    """Return the measurement in the recipe of a model, or None if it is not `wanted`. A missing one is refused."""
    if wanted and "acquisition" not in recipe:
        raise ValueError(
            f"acquisition is True, but {model_file} holds no measured noise and bias field. Leave the setting out, or measure "
            f"them: python -m monai.bundle run measuring_acquisition --config_file configs/train.json --dataset_dir DIR"
        )
    return recipe["acquisition"] if wanted else None


def is_measurement(value: Any) -> bool:
    """Check the entry "acquisition" of a recipe, which anybody may have written."""
    if not isinstance(value, Mapping) or not {*SCALARS, "neighbour_correlation", "bias_mean", "bias_factor"} <= value.keys():
        return False
    rows, numbers = value["bias_factor"], [value[name] for name in SCALARS]
    lists = [(value["neighbour_correlation"], 3), (value["bias_mean"], len(POWERS))]
    lists += [(row, len(POWERS)) for row in rows] if isinstance(rows, list) else [(rows, 0)]
    if not all(isinstance(one, list) and len(one) == length for one, length in lists):
        return False
    within = all(type(one) in (int, float) and 0 <= one <= 1 for one in [*numbers, *lists[0][0]])
    return within and all(type(one) in (int, float) and abs(one) <= 100 for row, _ in lists[1:] for one in row)


def draw(measured: Mapping | None, seed: int) -> dict[str, Any] | None:
    """Draw the noise level and the bias field of one volume, as its sidecar records them. None stays None.

    The values depend on the measurement and the seed only. They differ from the noise that a sampler draws from this seed.
    """
    if measured is None:
        return None
    generator = _generator(seed, "values")
    level, *normal = torch.randn(1 + len(measured["bias_factor"]), generator=generator, dtype=torch.float64).tolist()
    noise = max(measured["noise"] + measured["noise_spread"] * level, 0.0)
    factor = np.array(measured["bias_factor"]).reshape(-1, len(POWERS))
    return {
        "Seed": seed,
        "NoiseStandardDeviation": _rounded(noise),
        "NoiseStandardDeviationInBackground": _rounded(noise * measured["background_ratio"]),
        "BackgroundIntensity": measured["background_intensity"],
        "NoiseCorrelationOfNeighbours": list(measured["neighbour_correlation"]),
        "LogBiasFieldCoefficients": _rounded(np.array(measured["bias_mean"]) + np.array(normal) @ factor),
    }


def add(volume: torch.Tensor, drawn: Mapping | None, inside: torch.Tensor | None = None) -> torch.Tensor:
    """Add the noise and the bias field that `draw` drew to a volume (X, Y, Z). None changes nothing.

    The result has intensities of 0 to 1. `inside` is the mask that `measure` had for such volumes.
    """
    if drawn is None:
        return volume
    clean = volume.clamp(0, 1)
    tissue, background = drawn["NoiseStandardDeviation"], drawn["NoiseStandardDeviationInBackground"]
    # A magnitude image has the full noise where its signal is above three times the noise (Gudbjartsson and Patz 1995).
    share = ((clean - drawn["BackgroundIntensity"]) / max(3 * tissue, 1e-6)).clamp(0, 1)
    noise = _correlated_noise(volume.shape, drawn["Seed"], drawn["NoiseCorrelationOfNeighbours"]).to(clean)
    mask = None if inside is None else inside.cpu().numpy()
    bias = _log_field(drawn["LogBiasFieldCoefficients"], volume.shape, mask).to(clean).exp()
    return (clean * bias + (background + (tissue - background) * share) * noise).clamp(0, 1)


def _compare(scan: np.ndarray, volume: np.ndarray, inside: np.ndarray | None) -> tuple:
    """Return what a volume lacks: moments of the noise in tissue and in the background, intensity there, coefficients."""
    scan, volume, both = scan.astype(np.float32), volume.astype(np.float32), (scan + volume).astype(np.float32) / 2
    bright = np.quantile(both if inside is None else both[inside], 0.99)
    variation = ndimage.gaussian_filter((both - ndimage.gaussian_filter(both, 2.0)) ** 2, 2.0)
    head = (both > bright / 2) if inside is None else (both > bright / 2) & inside
    tissue, background = _flattest(head, variation, FLAT_SHARE), _flattest(both < bright / 10, variation, 0.5)
    fine = [_finest_scale(image) for image in (scan, volume)]
    moments = [_moments(fine[0], mask) - _moments(fine[1], mask) for mask in (tissue, background)]
    intensity = volume[background].clip(0, 1).mean() if background.any() else 0.0
    fit = _flattest(head & (np.minimum(scan, volume) > bright / 4), variation, 0.5)
    return *moments, intensity, _fit_log_field(scan, volume, fit, inside)


def _flattest(mask: np.ndarray, variation: np.ndarray, share: float) -> np.ndarray:
    """Keep the share of a mask around which intensities vary least: inside of white matter, or in air."""
    return mask & (variation <= np.quantile(variation[mask], share)) if mask.any() else mask


def _finest_scale(image: np.ndarray) -> np.ndarray:
    """Keep the finest variations, with the variance of white noise: second differences along all axes (Immerkaer 1996 in 3-D).

    They are 0 at a straight edge along any axis.
    """
    for axis in range(3):
        image = ndimage.correlate1d(image, np.array([-1, 2, -1]) / math.sqrt(6), axis)
    return image


def _moments(fine: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the variance in a mask, and the covariance of neighbours along each axis.

    Values above 4 standard deviations, estimated by the median absolute deviation, are clipped, because they are edges.
    """
    if not mask.any():
        return np.zeros(4)
    largest = 4 * 1.4826 * np.median(np.abs(fine[mask]))
    fine = fine.clip(-largest, largest).astype(np.float64)
    covariances = []
    for axis in range(3):
        first, second = (np.moveaxis(part, axis, 0) for part in (fine, mask))
        pairs = second[1:] & second[:-1]
        covariances.append((first[1:] * first[:-1])[pairs].sum() / max(pairs.sum(), 1))
    return np.array([np.square(fine[mask]).mean(), *covariances])


def _fit_log_field(scan: np.ndarray, volume: np.ndarray, mask: np.ndarray, inside: np.ndarray | None) -> np.ndarray:
    """Fit the polynomial to log(scan / volume) in a mask, and return its coefficients without the constant."""
    places = np.argwhere(mask)
    places = places[:: max(len(places) // POINTS, 1)]
    if len(places) < 10 * len(POWERS):  # too few to tell a field from noise
        return np.zeros(len(POWERS))
    ratio = np.log(scan[tuple(places.T)] / volume[tuple(places.T)])
    ratio = (ratio - np.median(ratio)).clip(-LARGEST_LOG_BIAS, LARGEST_LOG_BIAS)  # what is beyond differs in anatomy
    low, high = _box(mask.shape, inside)
    values = [legendre.legvander(_in_box(places[:, axis], low[axis], high[axis]), DEGREE) for axis in range(3)]
    terms = [values[0][:, i] * values[1][:, j] * values[2][:, k] for i, j, k in POWERS]
    basis = np.stack([np.ones(len(places)), *terms], axis=1)
    # The ridge keeps the field small where the mask has no voxels.
    return np.linalg.solve(basis.T @ basis + RIDGE * len(places) * np.eye(basis.shape[1]), basis.T @ ratio)[1:]


def _box(shape: Sequence[int], inside: np.ndarray | None) -> tuple[list[int], list[int]]:
    """Return the first and the last voxel of a mask along each axis, or of the whole volume."""
    if inside is None or not inside.any():
        return [0, 0, 0], [side - 1 for side in shape]
    lines = [np.flatnonzero(inside.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    return [int(line[0]) for line in lines], [int(line[-1]) for line in lines]


def _in_box(places: np.ndarray, low: int, high: int) -> np.ndarray:
    """Scale indices of voxels along one axis, so that the box is -1 to 1. Indices outside get its nearest face."""
    return (2 * (places - low) / max(high - low, 1) - 1).clip(-1, 1)


def _log_field(coefficients: Sequence[float], shape: Sequence[int], inside: np.ndarray | None) -> torch.Tensor:
    low, high = _box(shape, inside)
    polynomial = np.zeros([DEGREE + 1] * 3)
    polynomial[tuple(zip(*POWERS))] = coefficients
    axes = [_in_box(np.arange(shape[axis]), low[axis], high[axis]) for axis in range(3)]
    return torch.from_numpy(legendre.leggrid3d(*axes, polynomial).clip(-LARGEST_LOG_BIAS, LARGEST_LOG_BIAS))


def _correlated_noise(shape: Sequence[int], seed: int, correlations: Sequence[float]) -> torch.Tensor:
    """Draw noise (X, Y, Z) of standard deviation 1 whose neighbours along each axis have these correlations."""
    sigmas = [_sigma(lambda sigma: _autocovariance(sigma)[1], correlation) for correlation in correlations]
    kernels = [torch.from_numpy(_gaussian(sigma)).float() for sigma in sigmas]
    wide = [side + len(kernel) - 1 for side, kernel in zip(shape, kernels)]
    noise = torch.randn((1, 1, *wide), generator=_generator(seed, "noise"))  # on the CPU: the same noise on any device
    for axis, kernel in enumerate(kernels):
        noise = torch.nn.functional.conv3d(noise, kernel.reshape([-1 if a == axis + 2 else 1 for a in range(5)]))
    return noise[0, 0]


def _gaussian(sigma: float) -> np.ndarray:
    """Return a kernel with a sum of squares of 1."""
    kernel = np.exp(-(np.arange(-4, 5) ** 2) / (2 * sigma**2))
    return kernel / math.sqrt(np.square(kernel).sum())


def _autocovariance(sigma: float) -> np.ndarray:
    """Return the covariance at distances of 0 to 3 voxels of white noise that a Gaussian kernel has smoothed."""
    kernel = _gaussian(sigma)
    return np.array([kernel[distance:] @ kernel[: len(kernel) - distance] for distance in range(4)])


def _fine_variance(sigma: float) -> float:
    """Return the variance of such noise that `_finest_scale` leaves along one axis."""
    return float(np.array([6, -8, 2, 0]) @ _autocovariance(sigma)) / 6


def _fine_correlation(sigma: float) -> float:
    """Return the correlation of neighbours that `_finest_scale` leaves of such noise: -2 / 3 for white noise."""
    return float(np.array([-4, 7, -4, 1]) @ _autocovariance(sigma)) / 6 / _fine_variance(sigma)


def _sigma(function: Callable[[float], float], value: float) -> float:
    """Find the smoothing at which an increasing function has a value, within `SIGMAS`."""
    if not function(SIGMAS[0]) < value < function(SIGMAS[1]):
        return SIGMAS[int(value >= function(SIGMAS[1]))]
    return optimize.brentq(lambda sigma: function(sigma) - value, *SIGMAS, xtol=1e-4)


def _generator(seed: int, purpose: str) -> torch.Generator:
    own = hashlib.sha256(f"acquisition {purpose} {seed}".encode()).digest()[:7]
    return torch.Generator().manual_seed(int.from_bytes(own, "big"))


def _rounded(value: Any) -> Any:
    """Round to 5 significant digits, in nested lists."""
    value = np.asarray(value, dtype=float)
    return float(f"{value:.5g}") if value.ndim == 0 else [_rounded(part) for part in value]
