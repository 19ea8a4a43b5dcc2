"""Edit a head: its latent is noised part of the way, and denoised under other covariates."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type

from ..data.covariates import CovariateSchema, single_request
from ..data.derivative import Derivative
from ..data.image_checks import refuse_elsewhere
from ..model.networks import DiffusionUNet
from ..model.sampler import LatentSampler
from ..shared.files import sha256
from ..shared.nifti import read_whole

__all__ = ["Editor", "edit_file", "read_request"]

NOTICE = "Synthetic: a scan, edited by a generative model. It can show whose scan it was. For research, not for clinical use."


def read_request(schema: CovariateSchema, request: Mapping) -> tuple[dict, float, int]:
    """Covariates in physical values, strength and seed of {"age": 70, "sex": "F", ..., "strength": 0.6, "seed": 0}.

    Numbers may be given as text, as forms and command lines do.

    Raises:
        ValueError: a strength outside of 0 to 1, a seed that is no whole number of 0 or more, a covariate that a table
            would be refused for.
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


class Editor(Inferer):
    """Answer an image with what the model makes of it under requested covariates (SDEdit, Meng et al. 2022, in the latent).

    Of the image, the mean of its latent is taken, so that a request gives the same volume every time.

    Args:
        sampler: walks from the noised latent to the volume.
        schema: of the covariates.
        request: covariates, "strength" and "seed", see `read_request`. Strength 0 reconstructs the image, 1 makes a new head
            to which the image only lends its grid: that of the same covariates and `Seed` in a cohort.
        recipe: of the weights that the network must hold. MONAI Label serves a network whose file fitted nothing in it.
    """

    def __init__(
        self, sampler: LatentSampler, schema: CovariateSchema, request: Mapping, recipe: Mapping | None = None
    ) -> None:
        super().__init__()
        self.sampler = sampler
        self.schema = schema
        self.request = request
        self.recipe = recipe

    def __call__(self, inputs: torch.Tensor, network: DiffusionUNet, request: Mapping | None = None) -> torch.Tensor:
        """The edited volume (1, 1, D, H, W), 0 to 1, for an image (1, 1, D, H, W), 0 to 1, both on the model's grid.

        Args:
            inputs: a tensor, or a MetaTensor with the affine of its file; the answer is of the same kind.
            network: the diffusion model.
            request: instead of that of the editor.

        Raises:
            ValueError: a request that is refused; an image without a head where the model looks for it; other weights.
        """
        row, strength, seed = read_request(self.schema, self.request if request is None else request)
        if self.recipe is not None and network.recipe != self.recipe:
            raise ValueError("the network does not hold the weights of model.pt. Serve model.pt, and restart after training")
        if inputs.shape[:2] != (1, 1):
            raise ValueError(f"one image of one channel can be edited at a time, got {tuple(inputs.shape)}")
        if strength < 1:
            _refuse_no_head(inputs)
        image = torch.as_tensor(inputs).as_subclass(torch.Tensor)
        context = torch.tensor([[self.schema.scale(row)]], device=image.device)  # (1, 1, C)
        start = None
        if strength < 1:
            with torch.inference_mode(), torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=self.sampler.amp):
                start = self.sampler.autoencoder.encode(image)[0].float() * network.scale_factor
        volume = self.sampler(context, network, [seed], start, strength)
        # A copy: tensors of the inference mode cannot be changed by the transforms that follow.
        return convert_to_dst_type(volume.clamp(0, 1).clone(), inputs, dtype=torch.float32)[0]


def edit_file(
    image: str | Path,
    request: Mapping,
    editor: Editor,
    network: DiffusionUNet,
    preprocessing: Callable[[dict], dict],
    postprocessing: Callable[[dict], dict],
    output_dir: str | Path,
    provenance: Mapping,
    dtype: str = "uint8",
    device: torch.device | str = "cpu",
) -> Path:
    """Write the edited image on the grid of the image, as the only volume or one more of a `Derivative`; returns its path.

    Its name is a hash of the image, the request and the provenance: other weights or steps do not overwrite it.

    Raises:
        FileNotFoundError, ValueError: no such image, or not one that can be edited; a request that is refused.
    """
    if image is None or not Path(image).is_file():
        raise FileNotFoundError(f"image {image}: no such file. Give --image FILE, a T1w in MNI space")
    row, strength, seed = read_request(editor.schema, request)
    try:
        read_whole(image)
    except ValueError as error:
        raise ValueError(f"{image}: {error}") from error
    data = preprocessing({"image": str(image)})
    data["pred"] = editor(data["image"][None].to(device), network, request)[0].cpu()
    volume = postprocessing(data)["pred"]
    source = {"Seed": seed, "Strength": strength, "EditedImage": Path(image).name, "EditedImageSHA256": sha256(image)}
    if strength < 1:
        source["Description"] = NOTICE
    name = hashlib.sha256(json.dumps({**provenance, **row, **source}, sort_keys=True).encode()).hexdigest()[:8]
    made = editor.schema.request({"participant_id": name} | row)
    derivative = Derivative(output_dir, editor.schema, volume.affine.numpy(), volume.shape[1:], dtype)
    path = derivative.write(made, volume[0].numpy(), {**provenance, **source})
    derivative.finish([made])
    print(path)
    return path


def _refuse_no_head(inputs: torch.Tensor) -> None:
    meta = getattr(inputs, "meta", {})
    where = meta.get("filename_or_obj", "the image")
    if isinstance(inputs, MetaTensor) and "original_affine" in meta:
        shape = [int(side) for side in meta["spatial_shape"]]
        try:
            refuse_elsewhere(shape, torch.as_tensor(meta["original_affine"]).numpy())
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    if not torch.isfinite(inputs).all():
        raise ValueError(f"{where}: has voxels that are NaN or infinite. Replace them, e.g. by 0")
    if inputs.min() == inputs.max():
        raise ValueError(f"{where}: is the same everywhere in the model's field of view. Give a T1w of a head in MNI space")
