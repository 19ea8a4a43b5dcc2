"""Edit a scan or a label map: add noise to its latent or invert it, then denoise it with other covariates."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type

from ..data.covariates import CovariateSchema, Request, single_request
from ..data.derivative import Derivative, MapDerivative
from ..data.image_checks import COARSE_IMAGE, odd_heads, refuse_elsewhere, warn
from ..data.label_maps import refuse_maps
from ..model.networks import DiffusionUNet
from ..model.sampler import LatentSampler, row_seed
from ..shared.acquisition import draw
from ..shared.device import ranks
from ..shared.files import sha256
from ..shared.mni_box import FIELD_OF_VIEW_MM, LOWER_CORNER_MM
from ..shared.nifti import coarse, named, read_grey_values, refuse_noise
from ..shared.problems import refuse
from ..shared.team import shard_of
from .exact_maps import ExactMaps, LabelMap
from .requests import derivative_of, refuse_without_volumes

NOTICE = "Synthetic: {} edited by a generative model. It may identify the subject. For research, not for clinical use."
METHODS = ("noise", "inversion")


def read_request(schema: CovariateSchema, request: Mapping) -> tuple[dict, float, int]:
    """Check the request of an edit, {"age": 70, "sex": "F", ..., "strength": 0.6, "seed": 0}; numbers may be text.

    Returns:
        covariates in physical values, strength and seed.
    """
    covariates = dict(request)
    strength, seed = covariates.pop("strength", None), covariates.pop("seed", None)
    try:
        share = math.nan if isinstance(strength, bool) else float(strength)
    except (TypeError, ValueError):
        share = math.nan
    if not 0 <= share <= 1:
        raise ValueError(f"strength must be a number from 0 (the image as it is) to 1 (a new head), got {strength!r}")
    if isinstance(seed, bool) or not str(seed).isdecimal() or int(seed) >= 2**63:
        raise ValueError(f"seed must be a whole number from 0 to 2^63 - 1, got {seed!r}")
    return single_request(schema, covariates), share, int(seed)


@dataclass(eq=False)
class Editor(Inferer):
    """Change an image towards requested covariates in the latent space.

    Noise is added to the latent (SDEdit, Meng et al. 2022), or it is inverted (DDIM inversion, Song et al. 2021), and what
    results is denoised. The edit starts from the mean of the image's latent, so a request always gives the same volume.

    Strength 0 reconstructs the image. Strength 1 generates a new head on its grid, the same as in a cohort with these
    covariates and this `Seed`.
    """

    sampler: LatentSampler
    schema: CovariateSchema
    request: Mapping  # covariates, "strength" and "seed", as `read_request` takes them
    # Recipe of the weights that the network must hold: MONAI Label runs even if no tensor of the file fits the network.
    recipe: Mapping | None = None

    def __call__(self, inputs: torch.Tensor, network: DiffusionUNet, request: Mapping | None = None) -> torch.Tensor:
        """Edit an image (1, 1, D, H, W) in [0, 1] on the model's grid. The result is a MetaTensor if the image is one.

        `request` replaces the request of the editor.
        """
        refuse_maps(network.recipe, "the network", "this inferer")
        return self.edit(inputs, network, *read_request(self.schema, self.request if request is None else request))

    def edit(
        self,
        inputs: torch.Tensor,
        network: DiffusionUNet,
        row: Mapping,
        strength: float,
        seed: int,
        source: Mapping | None = None,
    ) -> torch.Tensor | LabelMap:
        """Edit an image as `__call__` does, with a request that `read_request` has checked.

        With `source`, the covariates of the image, its latent is inverted instead of noised. If the sampler makes label maps,
        `inputs` are the classes of one, and so is the result.
        """
        if self.recipe is not None and network.recipe != self.recipe:
            raise ValueError("the network does not hold the weights of model.pt. Serve model.pt, and restart after training")
        if inputs.shape[:2] != (1, 1):
            raise ValueError(f"one image of one channel can be edited at a time, got {tuple(inputs.shape)}")
        image = torch.as_tensor(inputs).as_subclass(torch.Tensor)
        context, own = (
            None if values is None else torch.tensor([[self.schema.scale(values)]], device=image.device)  # (1, 1, C)
            for values in (row, source)
        )
        maps, start = self.sampler.maps, None
        if strength < 1 or source:
            _refuse_no_head(inputs, maps is not None)
            with torch.inference_mode(), self.sampler.autocast(self.sampler.autoencoder):
                start = self.sampler.autoencoder.encode(image)[0].float() * network.scale_factor
        requested = [row if strength > 0 else {}]  # a reconstruction keeps its volumes
        volumes = self.sampler(context, network, [seed], start, strength, requested, own)
        if maps is not None:
            return volumes[0]
        # Copy it, because later transforms cannot change tensors of the inference mode.
        return convert_to_dst_type(volumes.clamp(0, 1).clone(), inputs, dtype=torch.float32)[0]


@dataclass(frozen=True)
class Edit:
    """One edit, with checked values."""

    image: Path
    values: Mapping  # requested covariates, in physical values
    source: Mapping | None  # covariates of the image, for inversion; None adds noise
    strength: float
    seed: int
    name: str = ""  # participant of the result; "" for a hash of what determines it


def read_edits(
    schema: CovariateSchema,
    request: Mapping,
    image: str | Path | None,
    table: str | Path | None = None,
    output_dir: str | Path = "",
    method: str = METHODS[0],
    source: Mapping | None = None,
    shard: str | None = None,
) -> list[Edit]:
    """Read the edit of one image, or a table of edits with a row for each, before work starts.

    Args:
        schema: covariates of the model.
        request: covariates, "strength" and "seed", as `read_request` takes them; with a table, only the last two.
        image: T1w in MNI space, or label map for a model of label maps.
        table: table of requests as for new volumes, with the column "image" and, for inversion, a column such as "source_age"
            for each covariate. Each row has its own seed. Paths of images are relative to the table's folder.
        output_dir: folder of the results. Images of a table that lie there may be missing, because an earlier row makes them.
        method: "noise" or "inversion".
        source: covariates of the image, for inversion.
        shard: part of the edits, such as "3/40", see `team.shard_of`; None: all edits.
    """
    source = source or {}
    if method == METHODS[0] and source:
        raise ValueError("source is given, but only the method inversion reads it. Add --method inversion, or leave it out")
    if table is None:
        if image is None:
            raise ValueError("no image was given. Add --image with a T1w in MNI space, such as --image /data/sub-01_T1w.nii.gz")
        if not Path(image).is_file():
            raise FileNotFoundError(f"image {image}: no such file")
        values, strength, seed = read_request(schema, request)
        if method == METHODS[1] and not source:
            example = "{" + ", ".join(f"'{name}': ..." for name in schema.names) + "}"
            raise ValueError(f'method inversion needs the covariates of the image as it is. Add --source "{example}"')
        edits = [Edit(Path(image), values, single_request(schema, source, "source") if source else None, strength, seed)]
    else:
        if image is not None or source or len(request) > 2:
            raise ValueError(f"{table} is a table of edits, so image, source and covariates are its columns. Leave them out")
        columns = [f"source_{name}" for name in schema.names] if method == METHODS[1] else []
        rows = schema.read_table(table, optional=["image", *columns])
        edits, problems, before, made = [], [], {}, set()
        for row in rows:
            name, where = row["participant_id"], f"{table}: {row['participant_id']}"
            own = {column.removeprefix("source_"): row.get(column) for column in columns}
            try:
                if row.get("image") is None:
                    raise ValueError(f"{where}: has no image. Fill the column 'image'")
                path = Path(table).parent / row["image"]
                if not path.is_file() and os.path.realpath(path) not in made:
                    raise ValueError(f"{where}: image {path}: no such file, and no row above makes it")
                if (other := before.setdefault(name.lower(), name)) != name:
                    raise ValueError(f"{where}: differs from {other} only in case. Rename one of them")
                volumes = (f"{name}_{kind.suffix}.nii.gz" for kind in (Derivative, MapDerivative))
                made.update(os.path.realpath(Path(output_dir, name, "anat", volume)) for volume in volumes)
                origin = schema.values(own, f"{where}: source", request=True) if columns else None
            except ValueError as error:
                problems.append(str(error))
                continue
            values = {covariate: row[covariate] for covariate in schema.names}
            seed = row_seed(int(request["seed"]), name.removeprefix("sub-"))
            edits.append(Edit(path, values, origin, float(request["strength"]), seed, name))
        refuse(problems)
    mine = shard_of(edits, shard)
    for edit in mine:
        if not edit.image.is_file() and edit.image.name.split("_")[0] not in {other.name for other in mine}:
            raise ValueError(
                f"{table}: {edit.name}: a row of another shard makes the image {edit.image}. Make that shard first, or leave "
                f"out --shard"
            )
    return mine


def refuse_edits(edits: Sequence[Edit], maps: ExactMaps | None, sampler_name: str) -> None:
    """Refuse edits that the model, the sampler or processes of torchrun cannot make, before weights are loaded."""
    if (processes := ranks()[1]) > 1:
        raise ValueError(f"each of {processes} processes would make all edits. Start one process for each part: --shard 1/2")
    if any(edit.source for edit in edits) and sampler_name != "ddim":
        raise ValueError(
            f"method inversion walks the steps of a sampler backwards, but sampler_name is {sampler_name!r}, whose steps "
            f"cannot be. Add --sampler_name ddim --steps 50"
        )
    refuse_without_volumes([Request(edit.name or edit.image.name, edit.values, ()) for edit in edits], maps)


def edit_files(
    edits: Sequence[Edit],
    editor: Editor,
    network: DiffusionUNet,
    preprocessing: Callable[[dict], dict],
    postprocessing: Callable[[dict], dict],
    output_dir: str | Path,
    provenance: Mapping,
    dtype: str = "uint8",
    device: torch.device | str = "cpu",
    verify: bool = False,
) -> list[Path]:
    """Make edits in their order, add them to a `Derivative`, and return their paths. Edits that exist are left.

    Without a name, a volume is called by a hash of the image, the request and the provenance, so that edits with other weights
    or steps do not replace it. `preprocessing` brings {"image": path} to the model's grid, and `postprocessing` resamples
    "pred" to the grid of the file. Label maps stay on the model's grid, so that their volumes stay exact.
    """
    made, paths, maps = [], [], editor.sampler.maps
    for edit in edits:
        data = preprocessing({"image": str(edit.image)})
        drawn = {"Seed": edit.seed, "Acquisition": draw(provenance.get("Acquisition"), edit.seed)}
        origin = {"EditedImage": edit.image.name, "EditedImageSHA256": sha256(edit.image)}
        source = {**drawn, "Strength": edit.strength, **origin}
        if edit.source:
            source |= {"Method": METHODS[1], "SourceCovariates": edit.source}
        if edit.strength < 1 or edit.source:
            source["Description"] = NOTICE.format("a scan" if maps is None else "a label map")
        unique = json.dumps({**provenance, **edit.values, **source}, sort_keys=True)
        name = edit.name or hashlib.sha256(unique.encode()).hexdigest()[:8]
        grid, shape = data["image"].affine, data["image"].shape[1:]
        if maps is None:
            grid, shape = (data["image"].meta[key] for key in ("original_affine", "spatial_shape"))
        request = editor.schema.request({"participant_id": name} | edit.values)
        on_grid = {"affine": np.asarray(grid), "shape": shape, "verify": verify}
        derivative = derivative_of(maps, output_dir, dtype, schema=editor.schema, **on_grid)
        if not derivative.is_complete(request, {**provenance, **source}):
            edited = editor.edit(data["image"][None].to(device), network, edit.values, edit.strength, edit.seed, edit.source)
            if maps is None:
                data["pred"] = edited[0].cpu()
                volume = postprocessing(data)["pred"][0].numpy()
            else:
                volume, source["Volumes"] = edited
            derivative.write(request, derivative.stored(request, volume), {**provenance, **source})
        made.append(request)
        paths.append(derivative.image_file(request))
        print(paths[-1])
    if made:  # a shard may have no row
        derivative.finish(made)
    return paths


def _refuse_no_head(inputs: torch.Tensor, of_maps: bool = False) -> None:
    meta = getattr(inputs, "meta", {})
    where = meta.get("filename_or_obj", "the image")
    with named(where):
        if isinstance(inputs, MetaTensor) and "original_affine" in meta:
            shape = [int(side) for side in meta["spatial_shape"]]
            affine = torch.as_tensor(meta["original_affine"]).numpy()
            refuse_elsewhere(shape, affine)
            if sides := coarse(nib.affines.voxel_sizes(affine), FIELD_OF_VIEW_MM[0] / inputs.shape[2]):
                warn({COARSE_IMAGE: [f"{where} ({sides})"]})
        if of_maps:
            return  # the reader has checked the values
        if Path(where).is_file():
            refuse_noise(read_grey_values(where))
    if not torch.isfinite(inputs).all():
        raise ValueError(f"{where}: has voxels that are NaN or infinite. Replace them, e.g. by 0")
    if inputs.min() == inputs.max():
        raise ValueError(f"{where}: is constant in the model's field of view. Give a T1w of a head in MNI space")
    if Path(where).is_file():
        on_grid = torch.as_tensor(inputs[0, 0]).flip(0).cpu().numpy()  # in RAS order
        remarks = odd_heads(on_grid, LOWER_CORNER_MM, FIELD_OF_VIEW_MM[0] / len(on_grid))
        warn({remark: [f"{where}{measured}"] for remark, measured in remarks.items()})
