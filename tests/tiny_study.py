"""Small real and synthetic volumes of a head for reader studies."""

import nibabel as nib
import numpy as np

SHAPE = (20, 28, 24)  # right, anterior, superior
SPACING_MM = 8.0


def head(seed, shape=SHAPE, corner=(2, 2, 0)):
    """A block of tissue with noise, brighter to the front, with a mark at the subject's left; background 0."""
    rng = np.random.default_rng(seed)
    values = np.zeros(shape)
    inside = tuple(slice(low, low + size) for low, size in zip(corner, (16, 24, 21)))
    values[inside] = 0.5 + 0.05 * rng.random((16, 24, 21)) + np.linspace(0, 0.2, 24)[None, :, None]
    values[corner[0] : corner[0] + 3, corner[1] + 6 : corner[1] + 10, 8:12] = 0.9
    return values


def save(path, values, spacing_mm=SPACING_MM, codes="RAS", dtype=np.float32):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(values.astype(dtype), np.diag([spacing_mm] * 3 + [1.0]))
    if codes != "RAS":
        ornt = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes))
        image = image.as_reoriented(ornt)
    nib.save(image, path)
    return path


def save_cohorts(folder):
    """Folders of four real and three synthetic volumes, the synthetic ones stored with 8 bits."""
    for i in range(4):
        save(folder / "scans" / f"sub-{i}" / "anat" / f"sub-{i}_T1w.nii.gz", head(i))
    for i in range(3):
        values = np.round(255 * (head(100 + i) * 0.8 + 0.05))
        save(folder / "made" / f"sub-syn{i}" / "anat" / f"sub-syn{i}_T1w.nii.gz", values, dtype=np.uint8)
    return [folder / "scans"], [folder / "made"]
