"""Measure lateral ventricles, brain and intracranial volume in T1w volumes that lie in MNI space.

A small U-Net labels each volume at 2 mm; volumes are sums of its probabilities, nothing is calibrated. How well it
measures is printed beside every result (volume_net.json), and `--accuracy COHORT_DIR` measures it on any BIDS cohort
whose participants.tsv holds the true volumes. Research tool, not for clinical use.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import nibabel
import numpy as np
import pandas
import torch
from cohorts.agreement import agreement
from measurement.output_table import NORMALISED, VOLUMES, normalised_ml, participant_of, quality_flags, write_table
from monai.data import MetaTensor
from monai.networks.nets import UNet
from monai.transforms import SpatialResample
from scipy import ndimage
from tqdm import tqdm

WEIGHTS = Path(__file__).with_name("measurement").joinpath("volume_net.pt")
TOOL = "measure_volumes.py"

# The project's box in MNI space, at the 2 mm at which the network works.
CORNER_MM = (-79.019, -125.977, -61.054)  # lower corner of the first voxel, RAS
SPACING_MM = 2
SHAPE = (80, 112, 80)

CLASSES = ("other", "csf", "grey", "white", "ventricles")  # CSF without the lateral ventricles
BRAIN_EXTENT_MM = ((-65, 65), (-98, 66), (-45, 74))  # MNI space; a volume must hold nearly all of it


def build_network() -> UNet:
    """Return the untrained network: (B, 1, 80, 112, 80) scaled intensities -> (B, 5, 80, 112, 80) logits of CLASSES."""
    return UNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=len(CLASSES),
        channels=(12, 24, 48, 96),
        strides=(2, 2, 2),
        num_res_units=1,
        norm=("instance", {"affine": True}),
    )


def scale_intensity(image: torch.Tensor) -> torch.Tensor:
    """Scale a volume to [0, 1]: 0 stays 0, the 99.5th percentile becomes 1."""
    # Every third voxel is enough. NumPy's quantile sorts no more than it needs.
    high = float(np.quantile(image.flatten()[::3].numpy(), 0.995))
    return (image / max(high, 1e-6)).clamp(0, 1)


def read_on_grid(path: Path) -> torch.Tensor:
    """Read a T1w volume of any orientation, 1 to 4 mm, in MNI space, as (80, 112, 80) at 2 mm in RAS order.

    Raises ValueError for what cannot be measured, naming the file.
    """
    try:
        image = nibabel.squeeze_image(nibabel.load(path))
        values = np.asarray(image.dataobj, dtype=np.float32)
    except (nibabel.filebasedimages.ImageFileError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error
    if values.ndim != 3:
        raise ValueError(f"{path}: expected one 3-D volume, got shape {values.shape}; split it first")
    if not np.isfinite(values).all():
        raise ValueError(f"{path}: {np.count_nonzero(~np.isfinite(values))} voxels are NaN or infinite")
    if values.min() == values.max():
        raise ValueError(f"{path}: every voxel is {values.flat[0]:g}")
    header = image.header
    if isinstance(image, nibabel.Nifti1Image) and header["sform_code"] == 0 and header["qform_code"] == 0:
        raise ValueError(f"{path}: the header holds no affine (sform_code and qform_code are 0)")
    spacing_mm = nibabel.affines.voxel_sizes(image.affine)
    if not ((0.45 < spacing_mm) & (spacing_mm < 4.5)).all():
        raise ValueError(f"{path}: voxels of {np.round(spacing_mm, 2).tolist()} mm; 1 to 4 mm can be measured")
    covered = _share_of_brain_covered(image.affine, values.shape)
    if covered < 0.95:
        raise ValueError(
            f"{path}: its affine places {covered:.0%} of the brain of MNI space inside the volume; "
            "register it to MNI space first (rigid, 6 degrees of freedom)"
        )

    # Finer volumes are interpolated at several points of each 2 mm voxel and averaged, so that none are skipped.
    points = int(np.ceil(SPACING_MM / spacing_mm.min() - 0.01))
    fine_mm = SPACING_MM / points
    affine = np.diag([fine_mm] * 3 + [1.0])
    affine[:3, 3] = np.array(CORNER_MM) + fine_mm / 2
    volume = MetaTensor(torch.from_numpy(values)[None], affine=torch.from_numpy(image.affine))
    resample = SpatialResample(mode="bilinear", padding_mode="zeros", dtype=torch.float32)
    on_grid = resample(volume, dst_affine=affine, spatial_size=[n * points for n in SHAPE]).as_tensor()
    on_grid = torch.nn.functional.avg_pool3d(on_grid, points)[0]
    return scale_intensity(on_grid)


def _share_of_brain_covered(affine: np.ndarray, shape: tuple[int, ...]) -> float:
    """Return which share of the MNI brain's bounding box lies inside a volume."""
    points_mm = np.stack(np.meshgrid(*[np.linspace(low, high, 12) for low, high in BRAIN_EXTENT_MM])).reshape(3, -1)
    voxels = nibabel.affines.apply_affine(np.linalg.inv(affine), points_mm.T)
    return float(((voxels > -0.5) & (voxels < np.array(shape) - 0.5)).all(1).mean())


def volumes_ml(probabilities: torch.Tensor) -> dict[str, float]:
    """Sum the probabilities (5, 80, 112, 80) of CLASSES to volumes in mL.

    Counted is what lies in the largest connected part of the intracranial space, and for the lateral ventricles in
    (or 4 mm around) the two largest parts of that class: islands elsewhere are mistakes of the network.
    """
    labels = probabilities.max(0).indices.numpy()  # as argmax, which takes 15 times as long along this axis
    inside = _near_largest(labels > 0, 1)
    ventricles = _near_largest((labels == CLASSES.index("ventricles")), 2)
    share = {name: probabilities[k] for k, name in enumerate(CLASSES)}
    voxel_ml = SPACING_MM**3 / 1000
    return {
        "ventricles_ml": float(share["ventricles"][ventricles].sum()) * voxel_ml,
        "brain_ml": float((share["grey"] + share["white"])[inside].sum()) * voxel_ml,
        "icv_ml": float((1 - share["other"])[inside].sum()) * voxel_ml,
    }


def _near_largest(mask: np.ndarray, parts: int) -> torch.Tensor:
    """Keep the `parts` largest connected parts of a mask, and the voxels within 2 of them."""
    labels, n = ndimage.label(mask)
    largest = np.argsort(np.bincount(labels.ravel(), minlength=n + 1)[1:])[::-1][:parts] + 1
    return torch.from_numpy(ndimage.binary_dilation(np.isin(labels, largest), iterations=2))


def load_network(weights: Path = WEIGHTS) -> UNet:
    """Return the trained network, ready to measure."""
    if not weights.exists():
        raise FileNotFoundError(f"{weights}. Train it first: python scripts/train_volume_net.py --help")
    network = build_network()
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return network.eval().to(memory_format=torch.channels_last_3d)  # a third less time on a CPU


def measure(images: Iterable[Path], weights: Path = WEIGHTS, batch_size: int = 2) -> Iterator[dict]:
    """Measure volumes one batch at a time, in order; at most `batch_size` are in memory.

    Yields for each image participant_id, file, ventricles_ml (lateral, with choroid plexus), brain_ml (grey and white
    matter, cerebellum and brain stem, down to z = -61 mm), icv_ml (brain and all CSF), brain_normalised_ml (brain_ml
    scaled to the head size of the MNI template, as SIENAX and UK Biobank's field 25009), flags, tool and error: the reason
    why an image was refused, with volumes NaN, or "".
    """
    network = load_network(weights)
    rows, tensors = [], []
    for path in images:
        path = Path(path)
        row = {"participant_id": participant_of(path.name), "file": str(path)}
        row |= dict.fromkeys((*VOLUMES, NORMALISED), float("nan")) | {"flags": "", "tool": TOOL, "error": ""}
        rows.append(row)
        try:
            tensors.append(read_on_grid(path))
        except ValueError as error:
            row["error"] = str(error)
        if len(tensors) == batch_size:
            yield from _measure_batch(network, rows, tensors)
            rows, tensors = [], []
    yield from _measure_batch(network, rows, tensors)


@torch.inference_mode()
def _measure_batch(network: UNet, rows: list[dict], tensors: list[torch.Tensor]) -> list[dict]:
    """Fill in the rows that have a volume."""
    if not tensors:
        return rows
    probabilities = torch.softmax(network(torch.stack(tensors)[:, None]), 1)
    for row, subject in zip([row for row in rows if not row["error"]], probabilities, strict=True):
        volumes = volumes_ml(subject)
        if volumes["brain_ml"] < 300:
            row["error"] = f"{row['file']}: only {volumes['brain_ml']:.0f} mL of brain found; is it a T1w in MNI space?"
            continue
        row |= volumes
        row[NORMALISED] = normalised_ml(volumes["brain_ml"], volumes["icv_ml"])
        row["flags"] = quality_flags(volumes)
    return rows


def find_images(paths: Iterable[Path]) -> list[Path]:
    """List the volumes to measure: files as given; of a folder its *_T1w.nii[.gz] below, or else its own *.nii[.gz]."""
    images = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(path.rglob("*_T1w.nii*")) or sorted(path.glob("*.nii*"))
            if not inside:
                raise FileNotFoundError(f"{path}: no *_T1w.nii.gz below it and no *.nii.gz in it")
            images += inside
        elif path.exists():
            images.append(path)
        else:
            raise FileNotFoundError(f"{path}: no such file or folder")
    return images


def accuracy(cohort: Path, weights: Path = WEIGHTS) -> list[dict]:
    """Compare measured volumes with those of a BIDS cohort's participants.tsv: one row per volume, see agreement()."""
    table_path = cohort / "participants.tsv"
    if not table_path.exists():
        raise FileNotFoundError(f"{table_path}: a cohort needs this table of true volumes")
    table = pandas.read_csv(table_path, sep="\t", dtype={"participant_id": str}).set_index("participant_id")
    if missing := set(VOLUMES) - set(table.columns):
        raise ValueError(f"{table_path}: no column {sorted(missing)}")
    images = find_images([cohort])
    measured = [row for row in tqdm(measure(images, weights), total=len(images), unit="scan") if not row["error"]]
    unknown = {row["participant_id"] for row in measured} - set(table.index)
    if unknown:
        raise ValueError(f"{table_path}: no row for {sorted(unknown)}")
    spacing_mm = float(nibabel.affines.voxel_sizes(nibabel.load(images[0]).affine).max())
    return [
        accuracy_row(
            cohort.name,
            spacing_mm,
            name,
            [table.loc[row["participant_id"], name] for row in measured],
            [row[name] for row in measured],
        )
        for name in VOLUMES
    ]


def accuracy_row(images: str, spacing_mm: float, volume: str, true: list[float], measured: list[float]) -> dict:
    """Return one row of the accuracy table, rounded as it is printed and stored."""
    numbers = agreement(true, measured)
    row = {"images": images, "spacing_mm": round(spacing_mm, 2), "volume": volume, "n": numbers.pop("n")}
    return row | {key: round(value, 3 if key[:1] in "rs" else 1) for key, value in numbers.items()}


def describe_accuracy(weights: Path) -> str:
    """Return the accuracy table stored beside the weights, as text."""
    sidecar = weights.with_suffix(".json")
    if not sidecar.exists():
        return f"Accuracy of {weights.name}: unknown, {sidecar.name} is missing."
    facts = json.loads(sidecar.read_text())
    if facts["sha256"] != hashlib.sha256(weights.read_bytes()).hexdigest():
        return f"Accuracy of {weights.name}: unknown, {sidecar.name} describes other weights."
    table = format_table(facts["accuracy"])
    return f"Accuracy of these measurements on images it was not trained on (bias and mae in mL):\n{table}\n{facts['limits']}"


def format_table(rows: list[dict]) -> str:
    return pandas.DataFrame(rows).to_string(index=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", type=Path, help="T1w volumes in MNI space, or folders (BIDS or flat)")
    parser.add_argument("--output", type=Path, help="TSV to write, one row per volume")
    parser.add_argument("--accuracy", type=Path, metavar="COHORT_DIR", help="compare with a cohort's participants.tsv")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    arguments = parser.parse_args()
    if arguments.accuracy:
        print(format_table(accuracy(arguments.accuracy, arguments.weights)))
        return 0
    if not arguments.images or not arguments.output:
        parser.error("give images and --output, or --accuracy")
    if not arguments.output.parent.is_dir():
        raise FileNotFoundError(f"{arguments.output.parent}: no such folder for --output")

    images = find_images(arguments.images)
    rows = list(tqdm(measure(images, arguments.weights), total=len(images), unit="scan"))
    measured, refused = [row for row in rows if not row["error"]], [row for row in rows if row["error"]]
    write_table(measured, arguments.output)
    print(f"{arguments.output}: {len(measured)} volumes measured.")
    print(describe_accuracy(arguments.weights))
    for row in refused:
        print("refused:", row["error"], file=sys.stderr)
    return 1 if refused else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
