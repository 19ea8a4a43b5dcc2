"""Edit a scan: add noise to its latent, then denoise it with other covariates."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type

from ..data.covariates import CovariateSchema, single_request
from ..data.derivative import Derivative
from ..data.image_checks import odd_heads, refuse_elsewhere, warn
from ..data.label_maps import refuse_maps
from ..model.networks import DiffusionUNet
from ..model.sampler import LatentSampler
from ..shared.acquisition import draw
from ..shared.files import sha256
from ..shared.mni_box import FIELD_OF_VIEW_MM, LOWER_CORNER_MM
from ..shared.nifti import named, read_grey_values, refuse_noise

NOTICE = "Synthetic: a scan edited by a generative model. It may identify the subject. For research, not for clinical use."


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
    """Change an image towards requested covariates by SDEdit (Meng et al. 2022) in the latent space.

    The edit starts from the mean of the image's latent, so a request always gives the same volume.

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
        return self.edit(inputs, network, *read_request(self.schema, self.request if request is None else request))

    def edit(self, inputs: torch.Tensor, network: DiffusionUNet, row: Mapping, strength: float, seed: int) -> torch.Tensor:
        """Edit an image as `__call__` does, with a request that `read_request` has checked."""
        if self.recipe is not None and network.recipe != self.recipe:
            raise ValueError("the network does not hold the weights of model.pt. Serve model.pt, and restart after training")
        refuse_maps(network.recipe, "the network", "editing")
        if inputs.shape[:2] != (1, 1):
            raise ValueError(f"one image of one channel can be edited at a time, got {tuple(inputs.shape)}")
        image = torch.as_tensor(inputs).as_subclass(torch.Tensor)
        context = torch.tensor([[self.schema.scale(row)]], device=image.device)  # (1, 1, C)
        start = None
        if strength < 1:
            _refuse_no_head(inputs)
            with torch.inference_mode(), self.sampler.autocast(self.sampler.autoencoder):
                start = self.sampler.autoencoder.encode(image)[0].float() * network.scale_factor
        volume = self.sampler(context, network, [seed], start, strength)
        # Copy it, because later transforms cannot change tensors of the inference mode.
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
    """Edit an image, add the result on the image's grid to a `Derivative`, and return its path.

    The volume's name is a hash of the image, the request and the provenance, so that edits with other weights or steps do not
    replace it. The image is a T1w in MNI space, and `request` has the form for `read_request`. `preprocessing` brings
    {"image": path} to the model's grid, and `postprocessing` resamples "pred" to the grid of the file.
    """
    if image is None:
        raise ValueError("no image was given. Add --image with a T1w in MNI space, such as --image /data/sub-01_T1w.nii.gz")
    if not Path(image).is_file():
        raise FileNotFoundError(f"image {image}: no such file")
    row, strength, seed = read_request(editor.schema, request)
    data = preprocessing({"image": str(image)})
    data["pred"] = editor.edit(data["image"][None].to(device), network, row, strength, seed)[0].cpu()
    volume = postprocessing(data)["pred"]
    drawn = {"Seed": seed, "Acquisition": draw(provenance.get("Acquisition"), seed)}
    source = {**drawn, "Strength": strength, "EditedImage": Path(image).name, "EditedImageSHA256": sha256(image)}
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
    with named(where):
        if isinstance(inputs, MetaTensor) and "original_affine" in meta:
            shape = [int(side) for side in meta["spatial_shape"]]
            refuse_elsewhere(shape, torch.as_tensor(meta["original_affine"]).numpy())
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
