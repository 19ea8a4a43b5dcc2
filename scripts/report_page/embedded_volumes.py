"""Embed volumes in the report page for its viewer, as base64 text of compressed 8-bit NIfTI."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from cohorts.cohort import Cohort
from cohorts.three_planes import read_canonical, white_level
from nibabel.processing import resample_to_output
from scipy.ndimage import gaussian_filter
from shared.simulated import is_simulated

from report_page.label_names import LabelNames

VIEWER_BYTES = 11e6  # chosen: with it, the whole page stays below 20 MB
SPACINGS_MM = (None, 1, 1.5, 2, 2.5, 3, 4)


def fitting_spacing(volumes: Sequence[tuple[Cohort, Sequence[str], LabelNames]]) -> float | None:
    """Return the finest spacing at which all volumes fit into VIEWER_BYTES, or None if they fit with all of their voxels.

    The first volume of each cohort stands for the others.
    """
    for spacing_mm in SPACINGS_MM:
        sizes = [
            len(some) * sum(map(len, viewer_entry(cohort, some[0], names, spacing_mm)[1].values()))
            for cohort, some, names in volumes
        ]
        if sum(sizes) <= VIEWER_BYTES:
            break
    return spacing_mm


def viewer_entry(
    cohort: Cohort, volume: str, names: LabelNames, spacing_mm: float | None = None, synthetic: bool = True
) -> tuple[dict, dict[str, str]]:
    """Prepare a volume for the viewer.

    Args:
        cohort: cohort of the volume.
        volume: name of the volume.
        names: names and colours of label values.
        spacing_mm: voxel size to resample to if voxels are smaller. None keeps all voxels.
        synthetic: True marks the volume as synthetic in its header. False is for scans.

    Returns:
        A dict for JSON, and the base64 text of "image" and, with a label map, of "labels". In the first dict, "white" is the
        intensity that is drawn white, as in the gallery. "bounds_mm" has the centres of the first and the last voxel along
        right, front and top. "point_mm" is the first position of the crosshair. "labels" has the names and colours of the label
        map's values, or is None.
    """
    array, affine = _read(cohort.images[volume], spacing_mm, labels=False)
    simulated = not synthetic and is_simulated(cohort.images[volume])
    mark = "Synthetic, not for clinical use" if synthetic else "Simulated, not a scan of a person" if simulated else ""
    corners = nib.affines.apply_affine(affine, [[0, 0, 0], np.array(array.shape) - 1])
    entry = {
        "white": white_level(array),
        "bounds_mm": np.sort(corners, axis=0).T.tolist(),
        "point_mm": [float(mm) for mm in cohort.point_mm(volume)],
        "labels": None,
    }
    low, high = float(array.min()), float(array.max())
    slope = (high - low) / 255 or 1.0
    data = {"image": _encode(np.rint((array - low) / slope), affine, slope, low, mark)}
    if (label_map := cohort.label_map(volume)) is not None:
        labels, label_affine = _read(label_map, spacing_mm, labels=True)
        values, index = np.unique(np.rint(labels).astype(int), return_inverse=True)
        if values[0] != 0:  # index 0 is transparent in the viewer
            values, index = np.concatenate([[0], values]), index + 1
        if len(values) > 256:
            raise ValueError(f"{label_map}: {len(values)} labels, but the viewer can show 255. Use --viewer 0")
        colours = names.colours(values.tolist()).T.tolist()
        entry["labels"] = {"names": [names.name(value) for value in values.tolist()], "colours": colours}
        data["labels"] = _encode(index.reshape(labels.shape), label_affine, 1, 0, mark)
    return entry, data


def _read(path: Path, spacing_mm: float | None, labels: bool) -> tuple[np.ndarray, np.ndarray]:
    array, affine = read_canonical(path)
    sizes_mm = nib.affines.voxel_sizes(affine)
    if spacing_mm is None or spacing_mm <= sizes_mm.min() * 1.001:
        return array, affine
    if not labels:  # avoids aliasing, with the width of skimage.transform.resize
        array = gaussian_filter(array, [max(0, (spacing_mm / size - 1) / 2) for size in sizes_mm])
    image = resample_to_output(nib.Nifti1Image(array, affine), [spacing_mm] * 3, order=0 if labels else 1)
    return np.asarray(image.dataobj, dtype=np.float32), image.affine


def _encode(array: np.ndarray, affine: np.ndarray, slope: float, inter: float, mark: str) -> str:
    image = nib.Nifti1Image(array.astype(np.uint8), affine)
    image.header.set_slope_inter(slope, inter)
    image.header["descrip"] = mark
    return base64.b64encode(gzip.compress(image.to_bytes(), 6, mtime=0)).decode()
