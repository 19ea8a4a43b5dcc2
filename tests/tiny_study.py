"""Small real and synthetic volumes of a head for reader studies, and keys and results of such studies."""

import json
import re

import nibabel as nib
import numpy as np
import pandas as pd
from reader_studies.make import KEY_COLUMNS

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


def read_page(page):
    """What the page's script reads."""
    return json.loads(re.search(r'<script type="application/json" id="study">(.*?)</script>', page.read_text(), re.DOTALL)[1])


def read_study(page, key):
    """(items of the page, key) with the key in the page's order."""
    items = read_page(page)["items"]
    return items, pd.read_csv(key, sep="\t", keep_default_na=False).set_index("item").loc[[item["id"] for item in items]]


def key_of(kinds, files=None, repeats=()):
    """A key of axial items i0, i1, ... with repeats (item number) behind them."""
    rows = [
        ["s", n + 1, f"i{n}", kind, "axial", files[n] if files else f"{kind}{n}.nii.gz", 5, ""] for n, kind in enumerate(kinds)
    ]
    rows += [["s", len(rows) + 1 + n, f"r{i}", kinds[i], "axial", rows[i][5], 5, f"i{i}"] for n, i in enumerate(repeats)]
    return pd.DataFrame(rows, columns=KEY_COLUMNS[:-1]).assign(simulated="no").set_index("item")


def results_of(key, ratings, told=None, reader="Anna"):
    told = told or ["real"] * len(ratings)
    return pd.DataFrame({"item": key.index[: len(ratings)], "rating": ratings, "guess": told, "seconds": 2.5, "reader": reader})


def save_results(tmp_path, rows, header="study\treader\titem\trating\tguess\tseconds", name="anna.tsv"):
    path = tmp_path / name
    path.write_text("\n".join([header, *("\t".join(row.split()) for row in rows)]) + "\n")
    return path
