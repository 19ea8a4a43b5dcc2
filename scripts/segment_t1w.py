"""Label the brain in T1w scans with 18 classes of FreeSurfer, in any orientation and any space, on a CPU.

    python scripts/segment_t1w.py --download
    python scripts/segment_t1w.py BIDS_DIR BIDS_DIR/derivatives/meshnet
    python scripts/segment_t1w.py scan_a.nii.gz scan_b.mgz OUT_DIR

The network is MeshNet of brainchop (96,408 parameters). `--download` fetches its weights (386 kB, MIT licence). OUT_DIR becomes
a BIDS derivative with a map sub-X_dseg.nii.gz of each scan, on the grid of the scan, and dseg.tsv with the names of the values.
The values are FreeSurfer's, so both bundles read the maps with the label table `freesurfer`, and read_volumes.py sums their
volumes. The network does not separate left and right: a plane through the deep grey matter does. There is no CSF around the
brain, and no choroid plexus. If the command is stopped, run it again: it leaves out the scans that are done. A scan takes about
100 seconds on one core, and 2 GB of memory. Accuracy: brain_ldm_bundle/docs/real_scans.md. The command is for research,
not for clinical use.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from command_line import Parser


def parse() -> argparse.Namespace:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("inputs", nargs="*", type=Path, help="a BIDS folder, or files (NIfTI, .mgz)")
    add("out_dir", nargs="?", type=Path, help="folder of the new data set")
    add("--download", action="store_true", help="fetch the weights, and do nothing else")
    add("--weights", type=Path, help="model.bin of brainchop's model18cls (default: where --download puts it)")
    add("--use_device", default="auto", help="auto (a GPU if there is one; the default), cpu, cuda or cuda:1")
    parser.add_quiet()
    arguments = parser.parse_args()
    if not arguments.out_dir and arguments.inputs:  # argparse gives all words to the first of the two
        *arguments.inputs, arguments.out_dir = arguments.inputs
    if arguments.download == bool(arguments.out_dir):
        parser.error("give scans and OUT_DIR, or --download alone")
    if not arguments.download and not arguments.inputs:
        parser.error("give scans, and OUT_DIR as the last argument")
    return arguments


if __name__ == "__main__":
    parse()  # answers --help and wrong options before the imports below, which take seconds

import nibabel as nib
import numpy as np
import torch
from measurement.tissue_contrast import refuse_other_contrast
from measurement.volume_net import from_black
from nibabel.processing import conform, resample_from_to
from scipy import ndimage
from segmentation import meshnet
from segmentation.sides import freesurfer_values
from shared import refusals
from shared.device import choose
from shared.files import read_json, refuse_unwritable, sha256, write_json, write_text
from shared.image_files import find_in_anat
from shared.nifti import grey_values, named, read_volume, refuse_noise, refuse_outliers, write_nifti
from shared.problems import count, refuse
from shared.simulated import is_simulated, made_by
from tqdm import tqdm

TOOL = "segment_t1w.py"
SIDE_VOXELS = 256  # the network knows heads on a grid of 256^3 voxels of 1 mm, with axes to the left, down and to the front
LEAST_INTENSITY = 0.2  # of the brightest voxel; only the box around brighter voxels is labelled
SPACINGS_MM = (0.1, 3.0)
LEAST_BRAIN_ML = 300
README = """Label maps of T1w scans, made by segment_t1w.py with MeshNet (brainchop, model18cls).

For research, not for clinical use. The values are FreeSurfer's (dseg.tsv). Left and right were split by a plane through the
deep grey matter.
"""


def segment(path: Path, network: torch.nn.Module, device: str = "cpu") -> nib.Nifti1Image:
    """Return the label map of a scan, on its own grid and with FreeSurfer's values.

    Raises:
        ValueError: the scan cannot be labelled. The message names it.
    """
    image = read_volume(path)
    with named(path):
        spacing_mm = nib.affines.voxel_sizes(image.affine)
        low, high = SPACINGS_MM
        if not ((low <= spacing_mm) & (spacing_mm <= high)).all():
            raise ValueError(
                f"has voxels of {np.round(spacing_mm, 2).tolist()} mm; each side must be {low:g} to {high:g} mm long"
            )
        values = from_black(grey_values(image).astype(np.float32))
        refuse_noise(values)
        refuse_outliers(values)
        scan = nib.Nifti1Image(values, image.affine)
        head = conform(scan, (SIDE_VOXELS,) * 3, (1, 1, 1), order=1, orientation="LIA")
        intensities = eight_bits(np.asarray(head.dataobj))
        box = ndimage.find_objects((intensities > LEAST_INTENSITY).astype(np.uint8))[0]
        inside = intensities[box]
        classes = largest_part(meshnet.classify(network, torch.from_numpy(inside).to(device)).cpu().numpy())
        brain_ml = np.count_nonzero(classes) / 1000
        if brain_ml < LEAST_BRAIN_ML:
            raise ValueError(f"only {brain_ml:.0f} mL of brain found. Is it a T1w of a whole head?")
        tissues = [[1, 5], [2, 6], [3]]  # white and grey matter of cerebrum and cerebellum, and the lateral ventricles
        refuse_other_contrast(*(inside[np.isin(classes, tissue)] for tissue in tissues))
        labels = np.zeros(intensities.shape, np.uint8)
        labels[box] = freesurfer_values(classes, head.affine @ nib.affines.from_matvec(np.eye(3), [axis.start for axis in box]))
    own = resample_from_to(nib.Nifti1Image(labels, head.affine), (image.shape, image.affine), order=0)
    result = nib.Nifti1Image(np.asarray(own.dataobj).astype(np.uint8), image.affine, image.header)
    result.set_data_dtype(np.uint8)
    result.header.set_slope_inter(1, 0)
    return result


def eight_bits(values: np.ndarray) -> np.ndarray:
    """Scale intensities from the lowest to the highest to [0, 1] in 256 steps, as float32."""
    low, high = values.min(), values.max()
    return np.rint((values - low) * (255 / (high - low))).astype(np.float32) / np.float32(255)


def largest_part(classes: np.ndarray) -> np.ndarray:
    """Set all but the largest connected part to 0: islands in the scalp or neck are errors of the network."""
    parts, number = ndimage.label(classes > 0)
    sizes = np.bincount(parts.ravel())[1:]
    return np.where(parts == 1 + sizes.argmax(), classes, 0) if number else classes


def find_scans(inputs: Iterable[Path]) -> dict[str, Path]:
    """Return the scans by the place of their maps in the new data set, such as sub-1/anat/sub-1_dseg."""
    inputs = list(inputs)
    scans, problems = {}, []
    if len(inputs) == 1 and inputs[0].is_dir():
        found = [(path.relative_to(inputs[0]).parent, path) for path in find_in_anat(inputs[0], "T1w")]
        if not found:
            raise FileNotFoundError(f"{inputs[0]}: no T1w scans sub-X/[ses-Y/]anat/*_T1w.nii[.gz]. Give files by name")
    else:
        found = [(None, path) for path in inputs]
    for folder, path in found:
        if path.is_dir():
            raise ValueError(f"{path}: give one BIDS folder, or only files")
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        name = name_of(path)
        place = str((folder or Path(name.split("_")[0]) / "anat") / f"{name}_dseg")
        if other := scans.get(place):
            problems.append(f"{path} and {other} would have one map, {place}.nii.gz. Rename one, or name one alone")
        scans[place] = path
    refuse(problems)
    return scans


def name_of(path: Path) -> str:
    """Return the name of a scan's map without its end: sub-1_ses-2 for sub-1_ses-2_T1w.nii.gz, sub-bert for bert/mri/T1.mgz."""
    name = re.sub(r"(_T1w)?(\.nii(\.gz)?|\.mg[zh])$", "", path.name)
    if re.fullmatch(r"sub-[a-zA-Z0-9+]+(_[a-zA-Z0-9]+-[a-zA-Z0-9+]+)*", name):
        return name
    if path.absolute().parent.name == "mri":  # FreeSurfer's SUBJECT/mri/T1.mgz
        name = path.absolute().parents[1].name
    label = re.sub(r"[^a-zA-Z0-9]", "", name.removeprefix("sub-"))
    if not label:
        raise ValueError(f"{path}: its participant cannot be named after {name!r}. Rename it to sub- and letters a-z or digits")
    return f"sub-{label}"


def is_done(out_dir: Path, place: str, scan: Path) -> bool:
    """Return whether the map of a scan is complete, was made from this file, and was not changed since."""
    try:
        sidecar = read_json(out_dir / f"{place}.json")
        made = [sidecar["SourcesSHA256"], sidecar["CodeSHA256"], sidecar["ImageSHA256"]]
        return made == [[sha256(scan)], code(), sha256(out_dir / f"{place}.nii.gz")]
    except (OSError, ValueError, KeyError):
        return False


def code() -> list[str]:
    return [sha256(file) for file in (meshnet.__file__, sys.modules[freesurfer_values.__module__].__file__, __file__)]


def write(out_dir: Path, place: str, scan: Path, labels: nib.Nifti1Image) -> None:
    """Write a map and its sidecar. The sidecar comes last: it marks the scan as done."""
    image_path, sidecar_path = out_dir / f"{place}.nii.gz", out_dir / f"{place}.json"
    sidecar_path.unlink(missing_ok=True)
    write_nifti(image_path, labels)
    content = {
        "Description": "Label map of a T1w scan, not checked by a person",
        "Simulated": is_simulated(scan),
        "SegmentedBy": "MeshNet",
        "Sources": [scan.name],
        "SourcesSHA256": [sha256(scan)],
        "WeightsMD5": meshnet.MD5,
        "LabelTable": "freesurfer",
        "CodeSHA256": code(),
        "ImageSHA256": sha256(image_path),
    }
    write_json(sidecar_path, content)


def describe(out_dir: Path) -> None:
    """Write dataset_description.json, README, and dseg.tsv with the names of the values."""
    description = {
        "Name": "Label maps of T1w scans by MeshNet",
        "BIDSVersion": "1.9.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": TOOL}],
    }
    names = {0: "Unknown"}
    for name, left, right in meshnet.CLASSES:
        names |= {left: name} if left == right else {left: f"Left-{name}", right: f"Right-{name}"}
    rows = ["index\tname", *(f"{value}\t{names[value]}" for value in sorted(names))]
    write_json(out_dir / "dataset_description.json", description)
    write_text(out_dir / "dseg.tsv", "\n".join(rows) + "\n")
    write_text(out_dir / "README", README)


def main() -> int:
    arguments = parse()
    weights = arguments.weights or meshnet.WEIGHTS
    if arguments.download:
        refuse_unwritable(weights)
        meshnet.download(weights)
        print(f"{weights}: fetched. Licence of the weights: MIT, github.com/neuroneural/brainchop")
        return 0
    out_dir = arguments.out_dir
    if out_dir.is_file() or out_dir.name.endswith((".nii", ".nii.gz", ".mgz", ".mgh")):
        raise ValueError(f"{out_dir}: OUT_DIR, the last argument, must be a folder")
    if any(out_dir.glob("*")) and not made_by(out_dir, TOOL):
        raise ValueError(f"{out_dir}: OUT_DIR holds files that {TOOL} did not make. Name another folder")
    refuse_unwritable(out_dir / "dseg.tsv")
    scans = find_scans(arguments.inputs)
    network, device = meshnet.load_network(weights), choose(arguments.use_device)
    network = network.to(device)
    left = {place: scan for place, scan in scans.items() if not is_done(out_dir, place, scan)}
    refused = []
    for place, scan in tqdm(left.items(), total=len(scans), initial=len(scans) - len(left), unit="scan"):
        try:
            labels = segment(scan, network, device)
        except ValueError as error:
            refused.append(str(error))
            continue
        if not made_by(out_dir, TOOL):
            describe(out_dir)
        write(out_dir, place, scan, labels)
    made = len(scans) - len(refused)
    if not made:
        refuse(refused, f"none of {count(scans, 'scan')} can be labelled:")
    print(f"{out_dir}: {made} of {count(scans, 'scan')} labelled, {len(scans) - len(left)} of them before.")
    for error in refused:
        print("refused:", error, file=sys.stderr)
    return 1 if refused else 0


if __name__ == "__main__":
    refusals.run(main)
