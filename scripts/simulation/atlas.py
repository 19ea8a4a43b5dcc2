"""Divide the ICBM152 2009a template into soft tissue classes, from the T1w, GM and WM maps in the nilearn package.

The markers and boxes below were placed by hand in MNI millimetres (RAS) and checked by eye on this template only.
"""

import os
import zipfile
import zlib
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from shared.files import atomic
from shared.nifti import read_volume
from skimage.segmentation import watershed

CODE_VERSION = 1  # raise it when the atlas changes, so that no old cache is read
CLASSES = (
    "sulcal_csf",
    "cortex",
    "white_matter",
    "third_fourth_ventricle",
    "deep_grey",
    "cerebellar_cortex",
    "cerebellar_white_matter",
    "brain_stem",
)
ORIGIN_MM = np.array([-98.0, -134.0, -72.0])  # centre of the template's first voxel

# Watershed markers: (x, y, z, radius); x is mirrored to the other side.
CEREBRUM = [(22, -90, 5, 9), (50, -35, -8, 9), (32, -30, -14, 5), (28, -55, -5, 5), (40, -75, 2, 8)]
CEREBRUM += [(45, -50, -14, 4), (25, -30, 40, 9), (10, -15, 8, 6), (0, 20, 50, 8)]
CEREBELLUM = [(25, -62, -40, 9), (12, -62, -20, 5), (0, -65, -35, 6)]
BRAIN_STEM = [(0, -28, -32, 7), (0, -34, -48, 4), (0, -26, -18, 5)]
LATERAL_VENTRICLE_SEEDS = [(12, -10, 22), (10, 20, 10), (24, -44, 8)]


@dataclass
class Atlas:
    """Maps of the template, averaged to `spacing_mm`, in RAS order."""

    spacing_mm: int
    icv_ml: float  # intracranial volume
    classes: torch.Tensor  # (8, X, Y, Z) soft memberships of CLASSES, without the lateral ventricles
    ventricle_distance: torch.Tensor  # (X, Y, Z) mm to the lateral ventricles, negative inside
    skull_distance: torch.Tensor  # (X, Y, Z) mm to the inner skull surface, negative inside
    ventricle_normal: torch.Tensor  # (3, X, Y, Z) smoothed gradient of ventricle_distance
    t1w: torch.Tensor  # (X, Y, Z) intensity in [0, 1]

    def sample(self, points_mm: torch.Tensor, *names: str) -> list[torch.Tensor]:
        """Interpolate the named maps linearly at `points_mm` (3, ...), MNI space, RAS."""
        first_mm, sampled = ORIGIN_MM + (self.spacing_mm - 1) / 2, []
        for name in names:
            values = getattr(self, name)
            channels = sample_grid(values.reshape(-1, *values.shape[-3:]), points_mm, first_mm, self.spacing_mm)
            sampled.append(channels if values.ndim == 4 else channels[0])
        return sampled


def sample_grid(channels: torch.Tensor, points_mm: torch.Tensor, first_mm, spacing_mm: float) -> torch.Tensor:
    """Interpolate `channels` (C, X, Y, Z) linearly at `points_mm` (3, ...). `first_mm` is the centre of the first voxel."""
    size = channels.shape[1:]
    unit = [2 * (points_mm[a] - float(first_mm[a])) / (spacing_mm * (size[a] - 1)) - 1 for a in (2, 1, 0)]
    grid = torch.stack(unit, -1)[None]
    return F.grid_sample(channels[None], grid, align_corners=True, padding_mode="border")[0]


def load_atlas(spacing_mm: int) -> Atlas:
    """Load the atlas at `spacing_mm`. The first call builds it in half a minute and stores it in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "brain-mri-demo"
    path = cache / f"icbm152_v{CODE_VERSION}_nilearn{version('nilearn')}_{spacing_mm}mm.npz"
    try:
        return _read(path, spacing_mm)
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error):  # missing, or damaged
        with atomic(path) as file:
            np.savez_compressed(file, **_resample(_build(), spacing_mm))
    return _read(path, spacing_mm)


def _read(path: Path, spacing_mm: int) -> Atlas:
    with np.load(path) as stored:
        maps = {name: torch.from_numpy(stored[name].astype(np.float32)) for name in stored.files if name != "icv_ml"}
        return Atlas(spacing_mm=spacing_mm, icv_ml=float(stored["icv_ml"]), **maps)


def _resample(template: dict, spacing_mm: int) -> dict:
    """Average the 1 mm maps over cubes of `spacing_mm`."""

    def pool(values):  # (X, Y, Z) or (C, X, Y, Z)
        pad = [side for size in values.shape[:-4:-1] for side in (0, -size % spacing_mm)]
        return F.avg_pool3d(F.pad(torch.from_numpy(values)[None], pad, mode="replicate"), spacing_mm)[0]

    maps = {name: pool(template[name]) for name in ("classes", "ventricle_distance", "skull_distance", "t1w")}
    normal = torch.stack(torch.gradient(maps["ventricle_distance"], spacing=float(spacing_mm)))
    maps["ventricle_normal"] = F.avg_pool3d(F.pad(normal[None], (1,) * 6, mode="replicate"), 3, 1)[0]
    return {"icv_ml": template["icv_ml"]} | {name: value.numpy().astype(np.float16) for name, value in maps.items()}


def _signed_distance(mask: np.ndarray) -> np.ndarray:
    outside, inside = ndimage.distance_transform_edt(~mask), ndimage.distance_transform_edt(mask)
    return (outside - inside).astype(np.float32)


def _build() -> dict:
    """Compute soft classes and distances on the template's 1 mm grid (197, 233, 189)."""
    folder = Path(find_spec("nilearn").origin).parent / "datasets" / "data"
    t1w, gm, wm = (
        np.asarray(read_volume(folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz").dataobj, np.float32) / 255
        for name in ("t1", "gm", "wm")
    )
    x, y, z = np.ogrid[tuple(slice(int(o), int(o) + n) for o, n in zip(ORIGIN_MM, t1w.shape, strict=True))]
    side = abs(x)

    closed = ndimage.binary_closing(np.pad(t1w > 0, 12), iterations=10)
    skull = ndimage.binary_fill_holes(closed)[12:-12, 12:-12, 12:-12]  # everything inside the inner skull surface
    skull_distance = _signed_distance(skull)
    total = np.maximum(gm + wm, 1)
    gm, wm = gm / total * skull, wm / total * skull
    csf = np.clip(1 - gm - wm, 0, 1) * skull

    lateral, third_fourth, box = _ventricles(csf, x, y, z)
    cerebellum, brain_stem = _infratentorial(csf, t1w, skull, x, y, z)

    # Deep grey matter is all grey voxels well below the surface, in an ellipsoid around striatum and thalamus.
    ellipsoid = ((side - 20) / 14.5) ** 2 + ((y + 4) / 33) ** 2 + ((z - 6) / 17) ** 2 < 1
    deep = (gm > 0.35) & ellipsoid & (skull_distance < -22)
    deep = ndimage.binary_opening(deep & ~lateral & ~third_fourth & ~cerebellum & ~brain_stem)

    near_lateral = ndimage.binary_dilation(lateral, iterations=2) & box
    near_third_fourth = ndimage.binary_dilation(third_fourth) & ~near_lateral
    cerebrum = skull & ~cerebellum & ~brain_stem & ~deep
    classes = [
        csf * ~near_lateral * ~near_third_fourth,
        gm * cerebrum,
        wm * cerebrum,
        csf * near_third_fourth,
        (gm + wm) * deep,
        gm * cerebellum,
        wm * cerebellum,
        (gm + wm) * brain_stem,
    ]
    return {
        "classes": np.stack(classes),
        "ventricle_distance": ndimage.gaussian_filter(_signed_distance(csf * near_lateral > 0.5), 1.0),
        "skull_distance": skull_distance,
        "t1w": t1w,
        "icv_ml": skull.sum() / 1000,
    }


def _ventricles(csf, x, y, z):
    """Return masks of the lateral ventricles and of the third and fourth, and the box that may hold the lateral ones."""
    side = abs(x)
    box = (side < 42) & (y > -58) & (y < 42) & (z > -4) & (z < 36)
    box &= ~((side < 5) & ((y < -18) | (z < 0)))  # third ventricle, cistern of the great vein
    box &= ~((side < 16) & (y < -34) & (z < 12))  # quadrigeminal cistern
    box &= ~((side > 26) & (y > -20) & (z < 12))  # insula
    components, _ = ndimage.label((csf > 0.4) & box)
    seeds = [(s * i, j, k) for i, j, k in LATERAL_VENTRICLE_SEEDS for s in (-1, 1)]
    found = {components[tuple((np.array(seed) - ORIGIN_MM).astype(int))] for seed in seeds} - {0}
    lateral = np.isin(components, list(found))
    third = (csf > 0.3) & (side < 5) & (y > -32) & (y < 8) & (z > -14) & (z < 5) & ~lateral
    fourth = (csf > 0.4) & (side < 14) & (y > -50) & (y < -32) & (z > -46) & (z < -20)
    return lateral, third | fourth, box


def _infratentorial(csf, t1w, skull, x, y, z):
    """Return masks of cerebellum and brain stem, by a watershed on CSF from the markers above."""
    markers = np.zeros(csf.shape, np.int32)
    for label, balls in enumerate((CEREBRUM, CEREBELLUM, BRAIN_STEM), start=1):
        for i, j, k, radius in balls:
            for sign in (-1, 1):
                markers[(x - sign * i) ** 2 + (y - j) ** 2 + (z - k) ** 2 < radius**2] = label
    barrier = 10 * ndimage.gaussian_filter(csf, 0.7) + 0.15 * ndimage.gaussian_gradient_magnitude(t1w, 1)
    region = watershed(barrier, markers, mask=skull)
    above = np.broadcast_to((z > 6) | (y > -8), region.shape)
    cerebellum = (region == 2) & ~above
    brain_stem = (region == 3) & ~above & (z <= -8)
    return cerebellum, brain_stem
