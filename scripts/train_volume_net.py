"""Train the network of measure_volumes.py on images drawn from label maps (domain randomisation, as SynthSeg does).

Every step draws a new subject: a label map is warped, scaled, its lateral ventricles grown or shrunk, and painted with
random tissue intensities (Billot et al. 2023, Med. Image Anal. 86:102789, for the idea). No real scan is needed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import torch
import torch.nn.functional as F
from measure_volumes import accuracy
from measurement.accuracy import accuracy_row, format_table
from measurement.output_table import VOLUMES
from measurement.volume_net import (
    CLASSES,
    SHAPE,
    SPACING_MM,
    WEIGHTS,
    build_network,
    load_network,
    scale_intensity,
    volumes_ml,
)
from monai.losses import DiceCELoss
from monai.networks.layers import GaussianFilter
from scipy import ndimage
from shared.mni_box import LOWER_CORNER_MM as CORNER_MM
from tqdm import tqdm

# Tissue: class in CLASSES, T1w intensity (white matter = 1), its spread between scans, texture inside a scan.
# Chosen after typical MPRAGE contrasts.
TISSUES = {
    "background": ("other", 0.03, 0.02, 0.02),
    "csf": ("csf", 0.24, 0.08, 0.08),
    "ventricles": ("ventricles", 0.22, 0.07, 0.05),
    "choroid plexus": ("ventricles", 0.36, 0.08, 0.08),
    "cortex": ("grey", 0.60, 0.07, 0.07),
    "deep grey": ("grey", 0.70, 0.07, 0.06),
    "thalamus": ("grey", 0.80, 0.07, 0.06),
    "cerebellar cortex": ("grey", 0.57, 0.08, 0.07),
    "white": ("white", 1.00, 0.05, 0.06),
    "pallidum": ("white", 0.92, 0.06, 0.06),
    "lesion": ("white", 0.70, 0.08, 0.08),
    "cerebellar white": ("white", 0.88, 0.07, 0.07),
    "brain stem": ("white", 0.82, 0.08, 0.07),
    "skull": ("other", 0.18, 0.10, 0.12),
    "dura": ("other", 0.32, 0.12, 0.12),
    "eyes": ("other", 0.15, 0.08, 0.10),
    "scalp": ("other", 0.75, 0.28, 0.22),
    "muscle": ("other", 0.58, 0.15, 0.15),
    "marrow": ("other", 0.60, 0.20, 0.20),
    "other soft tissue": ("other", 0.70, 0.25, 0.15),
}

# FreeSurfer values, and the values above 499 that SynthSeg's public label maps use outside the brain.
FREESURFER = {
    "csf": (14, 15, 24, 72),
    "ventricles": (4, 5, 43, 44),
    "choroid plexus": (31, 63, 136, 137, 163, 164),
    "cortex": (3, 42),
    "deep grey": (11, 12, 17, 18, 26, 50, 51, 53, 54, 58),
    "thalamus": (10, 49),
    "cerebellar cortex": (8, 47),
    "white": (2, 41, 85),
    "pallidum": (13, 28, 52, 60),
    "lesion": (25, 30, 57, 62, 77),
    "cerebellar white": (7, 46),
    "brain stem": (16,),
    "skull": (515,),
    "dura": (514,),
    "eyes": (506,),
    "scalp": (511,),
    "muscle": (507,),
    "marrow": (516,),
    "other soft tissue": (502, 508, 509, 512, 530),
}
# The label table of make_demo_data.py.
DEMO = {
    "csf": (1, 8),
    "cortex": (2, 3),
    "white": (4, 5),
    "ventricles": (6, 7),
    "deep grey": (9, 10),
    "cerebellar cortex": (11, 12),
    "cerebellar white": (13, 14),
    "brain stem": (15,),
    "skull": (16,),
    "scalp": (17,),
}

# Centres of deep structures in MNI space (mm, rounded, left): good to 2 mm or so, enough to place a map.
LEFT_CENTRES_MM = {
    (10, 49): (-11, -19, 7),
    (11, 50): (-13, 9, 10),
    (12, 51): (-26, 2, 1),
    (13, 52): (-20, -4, -1),
    (17, 53): (-26, -22, -13),
    (18, 54): (-24, -4, -19),
    (26, 58): (-9, 11, -7),
}

FINE_SHAPE = tuple(2 * n for n in SHAPE)  # label maps are kept at 1 mm
CLASS_OF_TISSUE = torch.tensor([CLASSES.index(row[0]) for row in TISSUES.values()])
GROWTH_REACH_MM = 40.0  # tissue farther than this from the ventricles does not move when they grow


@dataclass
class Anatomy:
    """One label map on the project's box."""

    name: str
    tissue: torch.Tensor  # (160, 224, 160) uint8, index into TISSUES, 1 mm
    distance_mm: torch.Tensor  # (80, 112, 80) signed distance to the lateral ventricles, negative inside


def rigid_to_mni(labels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return the rigid 4x4 matrix, scanner mm -> MNI mm, that fits a FreeSurfer map's deep structures."""
    found, wanted = [], []
    for pair, centre in LEFT_CENTRES_MM.items():
        for value, side in zip(pair, (1, -1), strict=True):
            voxels = np.argwhere(labels == value)
            if len(voxels) >= 50:
                found.append(affine[:3, :3] @ voxels.mean(0) + affine[:3, 3])
                wanted.append(np.array(centre) * (side, 1, 1))
    if len(found) < 6:
        raise ValueError(f"only {len(found)} deep grey structures found; 6 are needed to place the map in MNI space")
    found, wanted = np.array(found), np.array(wanted)
    # Kabsch: rotation from the SVD of the covariance, kept proper (no reflection)
    u, _, vt = np.linalg.svd((found - found.mean(0)).T @ (wanted - wanted.mean(0)))
    rotation = vt.T @ np.diag([1, 1, np.sign(np.linalg.det(vt.T @ u.T))]) @ u.T
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = wanted.mean(0) - rotation @ found.mean(0)
    return matrix


def read_anatomy(path: Path) -> Anatomy:
    """Read a label map with FreeSurfer / SynthSeg values (any space) or demo values (already in MNI space)."""
    image = nibabel.load(path)
    labels = np.rint(np.asarray(image.dataobj)).astype(np.int32)
    affine = image.affine
    table = FREESURFER if labels.max() > 17 else DEMO
    known = {value for values in table.values() for value in values} | {0}
    if unknown := set(np.unique(labels).tolist()) - known:
        raise ValueError(f"{path}: label values {sorted(unknown)} are not in the label table of train_volume_net.py")
    to_mni = rigid_to_mni(labels, affine) if table is FREESURFER else np.eye(4)
    lookup = np.zeros(max(known) + 1, np.uint8)
    for index, tissue in enumerate(TISSUES):
        lookup[list(table.get(tissue, ()))] = index

    box_to_voxel = np.linalg.inv(to_mni @ affine)
    axes_mm = [np.arange(n, dtype=np.float32) + 0.5 + low for n, low in zip(FINE_SHAPE, CORNER_MM, strict=True)]
    centres_mm = np.meshgrid(*axes_mm, indexing="ij", sparse=True)
    voxels = []
    for row, n in zip(box_to_voxel, labels.shape, strict=False):
        position = sum(np.float32(factor) * axis for factor, axis in zip(row, centres_mm, strict=False)) + row[3]
        voxels.append(np.rint(position).astype(np.int32).clip(0, n - 1))
    tissue = torch.from_numpy(lookup[labels[tuple(voxels)]])

    inside = (CLASS_OF_TISSUE[tissue.long()] == CLASSES.index("ventricles"))[::2, ::2, ::2].numpy()
    if inside.sum() < 100:
        raise ValueError(f"{path}: no lateral ventricles found in the box")
    outside_mm, inside_mm = (ndimage.distance_transform_edt(mask) * SPACING_MM for mask in (~inside, inside))
    # the surface lies half a voxel before the first voxel on the other side
    distance = np.where(inside, SPACING_MM / 2 - inside_mm, outside_mm - SPACING_MM / 2)
    distance = ndimage.gaussian_filter(distance, 0.5).astype(np.float32)
    return Anatomy(path.name, tissue, torch.from_numpy(distance))


def smooth_field(rng: np.random.Generator, channels: int, width_mm: float, shape=SHAPE) -> torch.Tensor:
    """Return a random field (channels, *shape) of unit variance whose bumps are about `width_mm` wide (2 mm voxels)."""
    coarse = [max(4, int(np.ceil(n * SPACING_MM / (0.75 * width_mm))) + 3) for n in shape]
    noise = torch.from_numpy(rng.standard_normal((1, channels, *coarse), dtype=np.float32))
    field = F.interpolate(noise, size=shape, mode="trilinear", align_corners=True)[0]
    return field / field.std()


def sample(volume: torch.Tensor, position_mm: torch.Tensor) -> torch.Tensor:
    """Interpolate (C, 80, 112, 80) at positions (3, ...) in mm from the box's corner."""
    size_mm = torch.tensor(SHAPE)[:, None, None, None] * SPACING_MM
    grid = (2 * position_mm / size_mm - 1).flip(0).movedim(0, -1)[None]
    return F.grid_sample(volume[None], grid, padding_mode="border", align_corners=False)[0]


def grow_ventricles(anatomy: Anatomy, position_mm: torch.Tensor, target_ml: float) -> torch.Tensor:
    """Move sampling positions so that the lateral ventricles get `target_ml`; tissue around is pushed, not erased."""
    distance = sample(anatomy.distance_mm[None], position_mm)[0]
    voxels = max(1, int(target_ml * 1000 / SPACING_MM**3))
    level = float(distance.flatten().kthvalue(voxels).values)
    level = min(max(level, -5.0), 15.0)  # beyond this the map's own anatomy is no longer recognisable
    squeezed = (distance - level) * GROWTH_REACH_MM / (GROWTH_REACH_MM - level)
    source = torch.where(distance < level, distance - level, squeezed)
    source = torch.where(distance > GROWTH_REACH_MM, distance, source)
    direction = torch.stack(torch.gradient(anatomy.distance_mm, spacing=SPACING_MM))
    return position_mm + sample(direction, position_mm) * (source - distance)


def draw_tissue(anatomy: Anatomy, rng: np.random.Generator) -> torch.Tensor:
    """Draw a subject from a map: (4, 80, 112, 80) tissue indices at four points inside each 2 mm voxel.

    Four of the voxel's eight 1 mm parts (a tetrahedron) give partial volume in the image and in the target alike,
    at half the price of all eight.
    """
    centre_mm = torch.stack(torch.meshgrid(*[torch.arange(n) * 2.0 + 1 for n in SHAPE], indexing="ij"))
    middle_mm = torch.tensor([80.0, 108.0, 70.0])[:, None, None, None]
    scale = np.exp(rng.normal(0, 0.04) + rng.normal(0, 0.02, 3))
    angles = np.deg2rad(rng.normal(0, 5, 3))
    rotation = np.eye(3)
    for (i, j), angle in zip(((1, 2), (0, 2), (0, 1)), angles, strict=True):
        plane = np.eye(3)
        plane[[i, j], [i, j]] = np.cos(angle)
        plane[i, j], plane[j, i] = -np.sin(angle), np.sin(angle)
        rotation = rotation @ plane
    matrix = torch.tensor(rotation / scale, dtype=torch.float32)
    shift_mm = torch.from_numpy(rng.normal(0, 3, 3).astype(np.float32))[:, None, None, None]
    position = torch.einsum("ij,jabc->iabc", matrix, centre_mm - middle_mm) + middle_mm + shift_mm
    position += 2.0 * smooth_field(rng, 3, 50) + 0.8 * smooth_field(rng, 3, 25)
    if rng.random() < 0.7:
        position = grow_ventricles(anatomy, position, float(np.exp(rng.uniform(np.log(5), np.log(170)))))

    points = []
    for corner in ((1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)):
        offset_mm = (matrix @ torch.tensor(corner, dtype=torch.float32) * 0.5)[:, None, None, None]
        i, j, k = ((axis.floor().long().clamp(0, n - 1)) for axis, n in zip(position + offset_mm, FINE_SHAPE, strict=True))
        points.append(anatomy.tissue.view(-1)[(i * FINE_SHAPE[1] + j) * FINE_SHAPE[2] + k])
    tissue = torch.stack(points)
    return tissue.flip(1) if rng.random() < 0.5 else tissue


def class_fractions(tissue: torch.Tensor) -> torch.Tensor:
    """Return the share of each class in each voxel: (5, 80, 112, 80), summing to 1."""
    classes = CLASS_OF_TISSUE[tissue.long()]
    return torch.stack([(classes == k).float().mean(0) for k in range(len(CLASSES))])


def draw_image(
    tissue: torch.Tensor, rng: np.random.Generator, t1w: bool | None = None, native_mm: int | None = None
) -> torch.Tensor:
    """Paint tissue indices (4, 80, 112, 80) as an MR image in [0, 1]: (80, 112, 80).

    `t1w` None: 80 % T1w contrast, 20 % arbitrary. `native_mm` 2 or 4 is the voxel size before resampling to 2 mm;
    None draws it. With `t1w=True` the image is a whole head of ordinary quality (used to test).
    """
    ordinary = t1w is True
    t1w = rng.random() < 0.8 if t1w is None else t1w
    native_mm = (4 if rng.random() < 0.45 else 2) if native_mm is None else native_mm

    _, mean, spread, texture = zip(*TISSUES.values(), strict=True)
    if t1w:
        mean = rng.normal(mean, np.array(spread) * (1.0 if ordinary else 1.4)).clip(0)
        if rng.random() < 0.5:
            mean[2] = mean[1]  # ventricles as dark as the other CSF
    else:
        mean = rng.uniform(0, 1, len(TISSUES))
        mean[0] = rng.uniform(0, 0.05)
    texture = np.array(texture) * rng.uniform(0.2, 1.0)
    if not ordinary and rng.random() < 0.25:  # skull stripped
        outside = CLASS_OF_TISSUE.numpy() == 0
        mean[outside], texture[outside] = 0, 0

    mean, texture = (torch.tensor(values, dtype=torch.float32) for values in (mean, texture))
    image = mean[tissue.long()].mean(0)
    grain = torch.from_numpy(rng.standard_normal(SHAPE, dtype=np.float32))
    grain = 0.5 * grain + 0.5 * smooth_field(rng, 1, 6)[0] + 0.4 * smooth_field(rng, 1, 16)[0]
    image = image + texture[tissue[0].long()] * grain

    # in voxels of 2 mm; generative models give smoother images than scanners
    blur = rng.uniform(0.5, 1.1) if not ordinary and rng.random() < 0.25 else rng.uniform(0.05, 0.55)
    image = GaussianFilter(3, float(blur))(image[None, None])
    image = image * torch.exp(float(rng.uniform(0, 0.15)) * smooth_field(rng, 1, 90))
    if native_mm == 4:
        image = F.avg_pool3d(image, 2)
    noise = torch.from_numpy(rng.standard_normal((2, *image.shape), dtype=np.float32)) * rng.uniform(0, 0.035)
    image = torch.sqrt((image + noise[0]).square() + noise[1].square())  # Rician
    if native_mm == 4:
        image = F.interpolate(image, scale_factor=2, mode="trilinear")
    return scale_intensity(image[0, 0]) ** float(np.exp(rng.normal(0, 0.15)))


def find_label_maps(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return (training, held out) label maps below a folder: every fourth, in order of name, is held out."""
    paths = sorted(folder.rglob("*seg*.nii*"))
    if len(paths) < 4:
        raise FileNotFoundError(f"{folder}: found {len(paths)} label maps (*seg*.nii.gz), at least 4 are needed")
    return [path for i, path in enumerate(paths) if i % 4 != 3], paths[3::4]


def save_weights(network: torch.nn.Module, path: Path) -> None:
    """Save the state dict; an interrupted save leaves the earlier file as it was."""
    beside = path.with_name(path.name + ".part")
    torch.save(network.state_dict(), beside)
    os.replace(beside, path)


def volume_loss(probabilities: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the mean |log ratio| of measured to true ventricles, brain and ICV; both (1, 5, 80, 112, 80), sum 1."""
    errors = []
    for names in (("ventricles",), ("grey", "white"), ("csf", "grey", "white", "ventricles")):
        classes = [CLASSES.index(name) for name in names]
        measured_ml, true_ml = (share[:, classes].sum() * SPACING_MM**3 / 1000 for share in (probabilities, target))
        errors.append(((measured_ml + 1) / (true_ml + 1)).log().abs())
    return torch.stack(errors).mean()


def train(
    network: torch.nn.Module, sources: list[list[Anatomy]], steps: int, seed: int, output: Path, peak_rate: float
) -> None:
    """Train for `steps` subjects, one a step, drawn from every source (a list of maps) in equal shares."""
    rng = np.random.default_rng(seed)
    network.train().to(memory_format=torch.channels_last_3d)
    optimizer = torch.optim.AdamW(network.parameters(), peak_rate, weight_decay=1e-5)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak_rate, total_steps=steps, pct_start=0.1)
    # Dice alone widens what is uncertain, and so the small ventricles: cross entropy and the volumes weigh more.
    shape_loss = DiceCELoss(softmax=True, include_background=False, lambda_dice=0.25, lambda_ce=2)
    running = None
    progress = tqdm(range(steps), unit="step", mininterval=5)
    for step in progress:
        maps = sources[rng.integers(len(sources))]
        tissue = draw_tissue(maps[rng.integers(len(maps))], rng)
        image, target = draw_image(tissue, rng)[None, None], class_fractions(tissue)[None]
        logits = network(image.contiguous(memory_format=torch.channels_last_3d))
        loss = shape_loss(logits, target) + 3 * volume_loss(torch.softmax(logits, 1), target)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        progress.set_postfix(loss=f"{running:.3f}")
        if step % 100 == 99:
            save_weights(network, output)
    save_weights(network, output)


@torch.inference_mode()
def held_out_accuracy(network: torch.nn.Module, name: str, maps: list[Anatomy], native_mm: int, n: int = 30) -> list[dict]:
    """Measure `n` simulated T1w volumes of maps that were not trained on, against the volumes they were drawn from."""
    rng = np.random.default_rng(1000 + native_mm)
    true, measured = [], []
    for i in tqdm(range(n), unit="scan"):
        tissue = draw_tissue(maps[i % len(maps)], rng)
        image = draw_image(tissue, rng, t1w=True, native_mm=native_mm)
        measured.append(volumes_ml(torch.softmax(network(image[None, None]), 1)[0]))
        shares = dict(zip(CLASSES, class_fractions(tissue).sum((1, 2, 3)).double() * SPACING_MM**3 / 1000, strict=True))
        brain_ml = float(shares["grey"] + shares["white"])
        ventricles_ml = float(shares["ventricles"])
        icv_ml = brain_ml + ventricles_ml + float(shares["csf"])
        true.append({"ventricles_ml": ventricles_ml, "brain_ml": brain_ml, "icv_ml": icv_ml})
    return [
        accuracy_row(name, native_mm, volume, [row[volume] for row in true], [row[volume] for row in measured])
        for volume in VOLUMES
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    labels_help = "folder of label maps (*seg*.nii.gz) with FreeSurfer / SynthSeg or demo values; repeat for more"
    steps_help = "subjects to train on, one a step (about 2 CPU-s); 0 only measures again the weights at --output"
    parser.add_argument("--labels", type=Path, action="append", required=True, help=labels_help)
    parser.add_argument("--steps", type=int, required=True, help=steps_help)
    parser.add_argument("--test", type=Path, action="append", default=[], help="BIDS cohort to test on; repeat for more")
    parser.add_argument("--start", type=Path, help="weights to continue from; default: random ones")
    parser.add_argument("--output", type=Path, default=WEIGHTS, help="weights; the facts go to a .json beside them")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    folders = {folder: find_label_maps(folder) for folder in arguments.labels}
    sidecar = arguments.output.with_suffix(".json")
    if arguments.steps:
        torch.manual_seed(arguments.seed)
        network = build_network()
        if arguments.start:
            network.load_state_dict(torch.load(arguments.start, weights_only=True))
        sources = [[read_anatomy(path) for path in training] for training, _ in folders.values()]
        start_s = time.process_time()
        peak_rate = 1e-3 if arguments.start else 3e-3  # chosen
        train(network, sources, arguments.steps, arguments.seed, arguments.output, peak_rate)
        facts = {
            "what": "MONAI UNet that labels T1w volumes at 2 mm for measure_volumes.py",
            "data": {folder.name: f"{len(use)} maps, {len(rest)} held out" for folder, (use, rest) in folders.items()},
            "command": _command(arguments),
            "steps": arguments.steps,
            "seed": arguments.seed,
            "cpu_s": round(time.process_time() - start_s),
        }
        if arguments.start:
            earlier = json.loads(arguments.start.with_suffix(".json").read_text())
            facts["started_from"] = {key: value for key, value in earlier.items() if key != "accuracy"}
    else:
        facts = json.loads(sidecar.read_text())

    network = load_network(arguments.output)
    facts["sha256"] = hashlib.sha256(arguments.output.read_bytes()).hexdigest()
    shapes = ", ".join(f"{folder.name}: of {len(held_out)} maps" for folder, (_, held_out) in folders.items())
    facts["limits"] = (
        f"T1w of label maps are simulated, of few anatomies in several shapes ({shapes}): intervals are too narrow."
    )
    facts["accuracy"] = []
    for folder, (_, held_out) in folders.items():
        maps = [read_anatomy(path) for path in held_out]
        for native_mm in (2, 4):
            facts["accuracy"] += held_out_accuracy(network, f"{folder.name}, simulated T1w", maps, native_mm)
    for cohort in arguments.test:
        facts["accuracy"] += accuracy(cohort, arguments.output)
    write_facts(facts, sidecar)
    print(format_table(facts["accuracy"]))


def _command(arguments: argparse.Namespace) -> str:
    """Return the command that trains the same weights, with the folders' names only."""
    folders = [f"--{key} {folder.name}" for key in ("labels", "test") for folder in getattr(arguments, key)]
    start = [f"--start {arguments.start.name}"] if arguments.start else []
    options = [*folders, *start, f"--steps {arguments.steps}", f"--seed {arguments.seed}"]
    return " ".join(["python scripts/train_volume_net.py", *options])


def write_facts(facts: dict, path: Path) -> None:
    """Write JSON with one row of the accuracy table a line."""
    rows = ",\n".join("    " + json.dumps(row) for row in facts["accuracy"])
    head = json.dumps({**facts, "accuracy": None}, indent=2)
    beside = path.with_name(path.name + ".part")
    beside.write_text(head.replace('"accuracy": null', f'"accuracy": [\n{rows}\n  ]') + "\n")
    os.replace(beside, path)


if __name__ == "__main__":
    main()
