"""From label maps to a data set of T1w images: which maps, which variants of them, who makes them, and how."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import zlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from itertools import product, zip_longest
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.config import KeysCollection
from monai.inferers import Inferer, sliding_window_inference
from monai.transforms import Spacingd
from monai.transforms.utils import convert_applied_interp_mode
from monai.utils import convert_to_dst_type
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from tqdm import tqdm

from .dataset import read_splits
from .deformation import refuse_folding
from .derivative import Derivative, made_here, name_of
from .files import read_whole, sha256
from .labels import LabelTable
from .planes import PLANES
from .weights import generator_file, made_by

__all__ = [
    "Synthesiser",
    "ToModelSpacingd",
    "WriteImages",
    "box_around",
    "find_maps",
    "inputs",
    "pending",
    "refuse_missing_weights",
    "rows",
    "table_of",
]

logger = logging.getLogger(__name__)

MOST_LISTED = 20
MOST_READERS = 4  # each holds a map, some 0.5 GB at 256 x 256 x 256 while its values are looked up
BIDS_FOLDERS = ("sub-*/anat", "sub-*/ses-*/anat", "derivatives/*/sub-*/anat", "derivatives/*/sub-*/ses-*/anat")
PATCH = 32  # Ayaz et al. 2022


def table_of(recipe: Mapping, labels_file: str | Path, name: str | None = None) -> LabelTable:
    """The label table that a model was trained with, or `name` of `labels_file` where one is given.

    Raises:
        ValueError: a given table has other classes than the model.
    """
    if name is None and "labels" in recipe:
        return LabelTable.from_dict(recipe["labels"], where="the table in the model's weights")
    table = LabelTable.from_file(labels_file, name or "freesurfer")
    trained = recipe.get("labels")
    names = LabelTable.from_dict(trained, where="the table in the model's weights").names if trained else table.names
    if names != table.names:
        differing = next(number for number, pair in enumerate(zip_longest(names, table.names)) if pair[0] != pair[1])
        raise ValueError(
            f"label_table {name!r} has other classes than the model's table {trained['name']!r}, from class {differing} "
            f"on. Leave out --label_table to use that, or write a table that maps your values to classes of the same names"
        )
    return table


def refuse_missing_weights(model_file: str | Path, models_dir: str | Path) -> None:
    """Say how to make the model where there is none, in view of which planes are trained already; before it is built.

    Raises:
        FileNotFoundError: with the commands.
    """
    if Path(model_file).is_file():
        return
    missing = [plane for plane in PLANES if not generator_file(models_dir, plane).is_file()]
    if len(missing) == len(PLANES):
        raise FileNotFoundError(f"{model_file}: no such weights file. Make it with: {made_by('training')}")
    state = f"Still to train: {', '.join([*missing, 'fusion'])}"
    commands = [made_by(f"training_spade --plane {plane}") for plane in missing] + [made_by("training_fusion")]
    raise FileNotFoundError(f"{model_file}: no such weights file. {state}. Make it with: {', then '.join(commands)}")


def find_maps(label_maps: str | Path | None, output_dir: str | Path | None = None, split: str | None = None) -> list[dict]:
    """Find label maps and check all their headers.

    Args:
        label_maps: a NIfTI file; a folder of them; a BIDS data set, whose `*_dseg.nii[.gz]` are taken from `sub-X/[ses-Y/]anat`
            here and in `derivatives/*`, but for what this bundle wrote; or a pattern such as "DIR/**/*_desc-aseg_dseg.nii.gz".

        output_dir: where images will go; must be another folder.
        split: train, fusion, validation or test: only those whose row in the BIDS data set's participants.tsv says so.

    Returns:
        items {"image": path, "participant_id": "sub-X", "session_id": "ses-Y" or None}, sorted by path. Names come from the
        files' BIDS entities, elsewhere from their letters and digits: training_seg_01.nii.gz is sub-trainingseg01.

    Raises:
        FileNotFoundError: no label map there, or none of the split.
        ValueError: a split without participants.tsv; all headers that are wrong, all names that clash: up to 20 lines, and how
            many more.
    """
    if label_maps is None:
        raise ValueError("no label maps were given. Add --label_maps with a NIfTI file, a folder, or a BIDS data set")
    root = Path(label_maps)
    if output_dir is not None and root.resolve() == Path(output_dir).resolve():
        raise ValueError(f"label_maps and output_dir are one folder, {root}. Choose a new one for --output_dir")
    if root.is_dir():
        found = [path for folder in BIDS_FOLDERS for path in root.glob(f"{folder}/sub-*_dseg.nii*")]
        synthetic = [folder for folder in root.glob("derivatives/*/") if made_here(folder)]
        found = [path for path in found if not any(path.is_relative_to(folder) for folder in synthetic)]
        found = found or list(root.glob("*.nii*"))
    else:
        found = [root] if root.is_file() else [Path(path) for path in glob(str(label_maps), recursive=True)]
    paths = sorted(path for path in found if path.name.endswith((".nii", ".nii.gz")))
    if not paths:
        raise FileNotFoundError(
            f"label_maps {label_maps}: no label maps there. Give a NIfTI file, a folder of them, or a BIDS data set with "
            f"sub-X/[ses-Y/]anat/*_dseg.nii.gz"
        )
    if split is not None:
        paths = _of_split(paths, split, root / "participants.tsv")
    problems = _in_threads(_header_problem, paths, "Checking headers")
    maps = []
    for path in paths:
        participant, session = _entities(path)
        if participant == "sub-":
            problems.append(f"{path}: the name has no letter or digit to call the subject by. Rename the file")
        maps.append({"image": str(path), "participant_id": participant, "session_id": session})
    _refuse(problems + _clashes(maps), f"{label_maps}: {{}} problems with the label maps")
    return maps


def rows(
    maps: Sequence[Mapping],
    variants: int = 1,
    deformation_mm: float = 5.0,
    deformation_scale_mm: float = 40.0,
    deform_all: bool = False,
    seed: int = 0,
) -> list[dict]:
    """The images to make: `variants` of each map, the first of the map as it is, further ones deformed, as sub-Xv01 ....

    Args:
        maps: from `find_maps`.
        variants: of each map.
        deformation_mm, deformation_scale_mm: as `scripts.deformation.deform`.
        deform_all: deform the first variant, too.
        seed: base seed. That of a row depends on it, the row's name and variant, on nothing else.

    Raises:
        ValueError: variants that would be copies of each other, or whose names clash with other maps'.
    """
    if variants < 1:
        raise ValueError(f"variants must be at least 1, got {variants}")
    refuse_folding(deformation_mm, deformation_scale_mm)
    if deformation_mm == 0 and (variants > 1 or deform_all):
        raise ValueError(f"variants {variants} with deformation_mm 0 would be copies of one image. Set --deformation_mm")
    made = []
    for item, variant in product(maps, range(variants)):
        deformed = deform_all or variant > 0
        row_seed = hashlib.sha256(f"{seed}:{name_of(item)}:{variant}".encode()).digest()[:4]
        made.append(
            {
                **item,
                "participant_id": item["participant_id"] + (f"v{variant:02d}" if variant else ""),
                "source_participant_id": item["participant_id"],
                "provenance": {
                    "LabelMap": Path(item["image"]).name,
                    "Variant": variant,
                    "DeformationMm": deformation_mm if deformed else 0,
                    "DeformationScaleMm": deformation_scale_mm if deformed else None,
                    "Seed": int.from_bytes(row_seed, "big") if deformed else None,
                },
            }
        )
    _refuse(_clashes(made), "{} of the variants' names clash with those of label maps")
    return made


def pending(
    rows: Sequence[Mapping],
    derivative: Derivative,
    table: LabelTable,
    provenance: Mapping,
    rank: int = 0,
    world_size: int = 1,
) -> list[dict]:
    """The rows that this rank has yet to make: each belongs to one rank, those whole on disk are left out.

    Every map of them is read and checked here, before the first image is made.

    Args:
        rows: from `rows`.
        derivative: that they will be written to.
        table: that their label values must be in.
        provenance: of the whole run, such as WeightsSHA256.
        rank, world_size: of this process.

    Raises:
        ValueError: maps that cannot be read, or with values that are not in the table, or empty: up to 20, and how many more.
    """
    mine = [
        {**row, "provenance": {**row["provenance"], "LabelMapSHA256": sha256(row["image"]), **provenance}}
        for row in rows[rank::world_size]
    ]
    left = [row for row in mine if not derivative.is_complete(row)]
    maps = list(dict.fromkeys(row["image"] for row in left))
    problems = _in_threads(lambda path: _content_problem(path, table), maps, "Checking label maps")
    _refuse(problems, f"{{}} of {len(maps)} label maps cannot be used")
    replaced = [str(file) for row in left if (file := derivative.image_file(row)).exists()]
    if replaced:
        logger.warning(
            f"{len(replaced)} images, such as {replaced[0]}, were made from other label maps, settings or weights, or are "
            f"damaged: they will be replaced. Give another --output_dir to keep them"
        )
    logger.info(f"rank {rank}: {len(mine)} of {len(rows)} images are this rank's, {len(mine) - len(left)} of them made already")
    return left


def inputs(rows: Sequence[Mapping]) -> list[dict]:
    """What the transforms need of rows: the map's path, and the seed of those to deform."""
    seeds = [row["provenance"]["Seed"] for row in rows]
    return [{"image": row["image"], **({} if seed is None else {"deformation_seed": seed})} for row, seed in zip(rows, seeds)]


class ToModelSpacingd(Spacingd):
    """Classes (1, D, H, W) to the model's voxel size by nearest neighbour; inverted, an image on that grid by linear weights.

    On maps of that voxel size it changes nothing.
    """

    def __init__(self, keys: KeysCollection, spacing_mm: float) -> None:
        super().__init__(keys, pixdim=(spacing_mm,) * 3, mode="nearest")

    def __call__(self, data: Mapping[Hashable, torch.Tensor], lazy: bool | None = None) -> dict[Hashable, torch.Tensor]:
        # Without the other entries: Spacingd 1.6.1 takes all that are called image_* for metadata, and so fails on
        # "image_path", which MONAI Label puts there.
        moved = super().__call__({key: data[key] for key in self.key_iterator(data)}, lazy)
        for labels in moved.values():
            labels.applied_operations = convert_applied_interp_mode(labels.applied_operations, mode="bilinear")
        return {**data, **moved}


class Synthesiser(Inferer):
    """T1w from classes by `SpadeFusion`, with a choice of how the fusion CNN goes over the volume.

    Args:
        merge: "whole": in one pass, cut into blocks where the volume is larger than one, each with as much margin as the CNN
            reaches, so that the result is that of one pass; or "patches": patches of 32 voxels with half overlap, weighted
            by a Gaussian, as published (Ayaz et al. 2022).
        block: side in voxels.
        amp: run the networks in bfloat16.

    Raises:
        ValueError: no such merge.
    """

    def __init__(self, merge: str = "whole", block: int = 128, amp: bool = False) -> None:
        super().__init__()
        if merge not in ("whole", "patches"):
            raise ValueError(f"merge must be whole or patches, got {merge!r}")
        self.merge = merge
        self.block = block
        self.amp = amp

    @torch.no_grad()
    def __call__(self, inputs: torch.Tensor, network: torch.nn.Module) -> torch.Tensor:
        """T1w (B, 1, X, Y, Z) from 0 to 1 for classes (B, 1, X, Y, Z) in RAS order; a MetaTensor for a MetaTensor.

        Raises:
            ValueError: as `SpadeFusion`.
        """
        labels = torch.as_tensor(inputs).as_subclass(torch.Tensor)
        with torch.autocast(labels.device.type, dtype=torch.bfloat16, enabled=self.amp):
            volumes = network.slice_volumes(labels)  # (B, 3, X, Y, Z)
            if self.merge == "whole":  # beyond the labels' reach all is background
                around = box_around(labels > 0.5, network.fusion.radius)
                image = torch.zeros(labels.shape, device=labels.device)
                image[around] = in_blocks(network.fusion, volumes[around], self.block, network.fusion.radius).float()
            else:
                image = sliding_window_inference(volumes, (PATCH,) * 3, 8, network.fusion, overlap=0.5, mode="gaussian")
        image = image.float().clamp(0, 1) * (labels > 0.5)
        return convert_to_dst_type(image, inputs, dtype=torch.float32)[0]


def in_blocks(network: Callable[[torch.Tensor], torch.Tensor], volumes: torch.Tensor, block: int, margin: int) -> torch.Tensor:
    """`network(volumes)`, (B, 1, X, Y, Z) of (B, C, X, Y, Z), in blocks with up to `margin` voxels around them."""
    sizes = volumes.shape[2:]
    result = volumes.new_empty((len(volumes), 1, *sizes))
    for starts in product(*(range(0, size, block) for size in sizes)):
        around = [slice(max(start - margin, 0), start + block + margin) for start in starts]
        within = [slice(start - cut.start, start - cut.start + block) for start, cut in zip(starts, around)]
        inside = tuple(slice(start, start + block) for start in starts)
        result[(..., *inside)] = network(volumes[(..., *around)])[(..., *within)].to(result.dtype)
    return result


def box_around(mask: torch.Tensor, margin: int) -> tuple[slice, ...]:
    """Index of the smallest box around masks (B, 1, X, Y, Z), grown by a margin as far as the volume goes; all, if empty."""
    found = mask.any(dim=0)[0].nonzero()
    if not len(found):
        return (slice(None),) * mask.ndim
    low, high = found.amin(dim=0) - margin, found.amax(dim=0) + margin + 1
    return (slice(None), slice(None), *(slice(max(0, a), b) for a, b in zip(low.tolist(), high.tolist())))


class WriteImages:
    """Write each image that an evaluator makes; one that cannot be written does not keep the others from being made.

    A full disk (OSError) does end the run: what is written stays, and the same command goes on later.

    Args:
        derivative: where to.
        rows: in the order of the evaluator's batches of one.
    """

    def __init__(self, derivative: Derivative, rows: Sequence[Mapping]) -> None:
        self.derivative = derivative
        self.rows = rows
        self.problems: list[str] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        row = self.rows[engine.state.iteration - 1]
        volume, labels = engine.state.output[0]["pred"], engine.state.batch[0]["dseg"]
        try:
            self.derivative.write(row, volume[0].cpu(), labels[0].cpu())
        except ValueError as error:
            self.problems.append(str(error))

    def report(self) -> None:
        """End with an error that names the rows without an image, if there are any."""
        if self.problems:
            raise RuntimeError("\n".join([f"{len(self.problems)} images were not written, all others were:", *self.problems]))


def _entities(path: Path) -> tuple[str, str | None]:
    """Subject and session of a file: BIDS entities, or else a subject made of the name's letters and digits."""
    match = re.match(r"(sub-[0-9A-Za-z+]+)(?:_(ses-[0-9A-Za-z+]+))?(?=[_.])", path.name)
    if match:
        return match[1], match[2]
    return "sub-" + re.sub(r"[^0-9A-Za-z]", "", re.sub(r"\.nii(\.gz)?$", "", path.name)), None


def _clashes(items: Sequence[Mapping]) -> list[str]:
    first, problems = {}, []
    for item in items:
        other = first.setdefault(name_of(item), item["image"])
        if other is not item["image"]:
            problems.append(
                f"{item['image']}: would be written as {name_of(item)}, and so would {other}. Choose between them with a "
                f"pattern such as --label_maps 'DIR/**/*_desc-aseg_dseg.nii.gz', or rename one"
            )
    return problems


def _of_split(paths: Sequence[Path], split: str, table: Path) -> list[Path]:
    """The maps of participants of one split."""
    split_of = read_splits(table) if table.is_file() else None
    if split_of is None:
        raise ValueError(f"split {split!r}: there is no column split in {table} that says whose maps those are")
    chosen = [path for path in paths if split_of.get(_entities(path)[0]) == split]
    if not chosen:
        found = ", ".join(sorted(set(split_of.values())))
        raise FileNotFoundError(f"{table}: no participant with a label map is in the split {split!r}. There are: {found}")
    return chosen


def _header_problem(path: Path) -> str | None:
    try:
        image = nib.load(path)
        header, shape, affine = image.header, image.shape, image.affine
        codes = max(int(header["sform_code"]), int(header["qform_code"]))
    except (OSError, EOFError, ValueError, KeyError, zlib.error, ImageFileError, HeaderDataError) as error:
        return f"{path}: is not a NIfTI image that can be read ({error})"
    if len(shape) != 3 and shape[3:] != (1,):  # some tools write a trailing axis of one
        return f"{path}: has {len(shape)} dimensions {shape}; a label map has three. Extract one volume, e.g. by fslroi"
    if header.get_data_dtype().kind not in "iuf":
        return f"{path}: has voxels of type {header.get_data_dtype()}; label values are needed"
    if codes == 0:
        return f"{path}: has neither a qform nor an sform, so left and right are unknown. Copy them from the scan it belongs to"
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        return f"{path}: has an affine without three directions, {affine[:3, :3].tolist()}. Copy it from the scan it belongs to"
    return None


def _content_problem(path: str, table: LabelTable) -> str | None:
    try:
        table.classes(np.asanyarray(read_whole(path).dataobj), path)
    except ValueError as error:
        return str(error) if str(error).startswith(path) else f"{path}: {error}"
    return None


def _in_threads(check: Callable, paths: Sequence, description: str) -> list[str]:
    """What is wrong with the files, in their order."""
    with ThreadPoolExecutor(min(MOST_READERS, os.cpu_count())) as pool:
        found = list(tqdm(pool.map(check, paths), description, len(paths), leave=False, disable=None))
    return [problem for problem in found if problem]


def _refuse(problems: Sequence[str], heading: str) -> None:
    if problems:
        hidden = len(problems) - MOST_LISTED
        more = [f"... and {hidden} more"] if hidden > 0 else []
        raise ValueError("\n".join([heading.format(len(problems)) + ":", *problems[:MOST_LISTED], *more]))
