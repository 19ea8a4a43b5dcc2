"""Write a bundle for generation that holds no Python: its configs name only classes of MONAI and PyTorch."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import torch
from monai.bundle import ConfigParser
from shared.files import read_json, save_weights, write_json, write_text

README = """# {name} without Python

This bundle makes one T1-weighted volume for given covariates. It holds configs and weights, and no Python. It is for research,
not for clinical use. Each `_target_` is a class or function of MONAI or PyTorch.

    python -m monai.bundle run --config_file configs/inference.json{example} --seed 1 --output_dir OUT

Run it in this folder, or add `--bundle_root FOLDER`. The volume is that of the full bundle with `--sampler_name ddim
--acquisition False` for the same first noise, apart from rounding. `--steps` must divide 1000.

What the full bundle has and this one lacks:

- checks: of settings, covariates, ranges, weights and files. A wrong value gives an error of MONAI, or a wrong volume. Sex and
  other levels are given as numbers: {levels}.
- tables of requests, a seed for each row, skipping of volumes that exist, shards, `torchrun` and background writing.
- 8-bit images, BIDS names, sidecars with covariates, seed and weights (provenance), `participants.tsv`, and a note in the data
  set that volumes are synthetic.
- the sampler DPM-Solver++ with 15 steps, guidance, withheld covariates, bfloat16, and the rewrites that save time and memory.
- noise and bias field of scans, editing, label maps, training, evaluation and the audit for copies.
"""


def write_no_python(bundle: Path, weights: Path, folder: Path) -> None:
    """Write the bundle for weights of `brain_ldm_bundle`, as the files of a bundle below `folder`.

    Raises:
        ValueError: MONAI has no classes for this bundle or these weights.
    """
    parser = ConfigParser(ConfigParser.load_config_file(bundle / "configs" / "inference.json"))
    if "autoencoder_def" not in parser.config:
        raise ValueError(f"{bundle}: --no-python is for brain_ldm_bundle only, because MONAI has no classes for this network")
    sys.path.insert(0, str(bundle))  # for the bundle's own `scripts`
    parser.update({"models_dir": str(weights)})
    recipe = parser.get_parsed_content("recipe")
    predicts = recipe.get("prediction_type", "epsilon")
    if recipe.get("labels") or predicts == "flow":
        kind = "make label maps" if recipe.get("labels") else "predict the flow"
        raise ValueError(f"{weights / 'model.pt'}: these weights {kind}, which MONAI's sampler cannot. Pack them with Python")
    unet, autoencoder = parser.get_parsed_content("trained_network"), parser.get_parsed_content("trained_autoencoder")
    covariates = parser.get_parsed_content("schema").to_dict()["covariates"]
    defaults, scaled = _covariates(covariates)
    channels, *grid = parser.get_parsed_content("latent_shape")
    affine = parser.get_parsed_content("derivative#affine").tolist()
    config = {
        "_desc_": "Make one volume by 50 DDIM steps, with classes of MONAI and PyTorch only. docs/README.md says what is lost.",
        "imports": ["$import torch", "$import monai"],
        "bundle_root": ".",
        "output_dir": "$@bundle_root + '/eval'",
        "models_dir": "$@bundle_root + '/models'",
        **defaults,
        "seed": 0,
        "steps": 50,
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "network_def": _unet(_sizes(unet, recipe.get("unet", {}))),
        "autoencoder_def": _autoencoder(_sizes(autoencoder, recipe.get("autoencoder", {}))),
        "network": "$@network_def.to(@device).eval()",
        "autoencoder": "$@autoencoder_def.to(@device).eval()",
        "scheduler": {
            "_target_": "monai.networks.schedulers.DDIMScheduler",
            "num_train_timesteps": 1000,
            "schedule": "scaled_linear_beta",
            "beta_start": 0.0015,
            "beta_end": 0.0205,
            "clip_sample": False,
            "prediction_type": predicts,
        },
        "inferer": {
            "_target_": "monai.inferers.LatentDiffusionInferer",
            "scheduler": "@scheduler",
            "scale_factor": unet.scale_factor.item(),
        },
        "covariates": f"$torch.tensor([[{scaled}]], device=@device)",
        "noise": f"$torch.randn({(1, channels, *grid)}, generator=torch.Generator().manual_seed(@seed)).to(@device)",
        "hybrid": "$lambda x, timesteps, context: @network(torch.cat([x, context[:, 0, :, None, None, None]"
        ".expand(-1, -1, *x.shape[2:])], 1), timesteps, context)",
        "saver": {
            "_target_": "monai.transforms.SaveImage",
            "output_dir": "@output_dir",
            "output_postfix": "T1w",
            "separate_folder": False,
            "resample": False,
        },
        "affine": affine,
        "run": [
            "$@network.load_state_dict(torch.load(@models_dir + '/model.pt', weights_only=True))",
            "$@autoencoder.load_state_dict(torch.load(@models_dir + '/autoencoder.pt', weights_only=True))",
            "$@scheduler.set_timesteps(@steps)",
            # MONAI 1.6 spaces the time steps evenly from 999 to 0, but steps by 1000 // n.
            "$setattr(@scheduler, 'timesteps', torch.arange(@steps - 1, -1, -1) * (1000 // @steps))",
            "$@saver(monai.data.MetaTensor(@inferer.sample(@noise, @autoencoder, @hybrid, conditioning=@covariates)[0].cpu()"
            ".clamp(0, 1), affine=torch.tensor(@affine)))",
        ],
    }
    write_json(folder / "configs" / "inference.json", config)
    metadata = read_json(bundle / "configs" / "metadata.json")
    packages = {name: metadata["required_packages_version"][name] for name in ("pytorch-ignite", "nibabel", "einops", "fire")}
    write_json(folder / "configs" / "metadata.json", metadata | {"required_packages_version": packages})
    for name, network in {"model": unet, "autoencoder": autoencoder}.items():
        state = {key: value for key, value in network.state_dict().items() if key not in ("scale_factor", "_extra_state")}
        save_weights(state, folder / "models" / f"{name}.pt")
    example = "".join(f" --{name} {value}" for name, value in defaults.items())
    levels = ", ".join(f"{given['name']} {given['levels']}" for given in covariates if "levels" in given) or "there are none"
    write_text(folder / "docs" / "README.md", README.format(name=bundle.name, example=example, levels=levels.replace("'", "")))
    write_text(folder / "LICENSE", (bundle / "LICENSE").read_text(encoding="utf-8"))


def _covariates(covariates: list[dict]) -> tuple[dict[str, float], str]:
    """Return a default value of each covariate, and the expression that scales all of them."""
    defaults, scaled = {}, []
    for given in covariates:
        name = given["name"]
        if "levels" in given:
            defaults[name] = next(iter(given["levels"].values()))
            scaled.append(f"float(@{name})")
            continue
        low, high = given["range"]
        defaults[name] = round((low + high) / 2)
        if given.get("scale") == "log":
            scaled.append(f"torch.log(torch.tensor(@{name} / {low})).item() / torch.log(torch.tensor({high} / {low})).item()")
        else:
            scaled.append(f"(@{name} - {low}) / ({high} - {low})")
    return defaults, f"[{', '.join(scaled)}]"


def _sizes(network: torch.nn.Module, given: dict) -> dict:
    """Return the arguments of a network: those in the recipe, and the defaults."""
    parameters = inspect.signature(type(network)).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters} | given


def _unet(sizes: dict) -> dict:
    return {
        "_target_": "monai.networks.nets.DiffusionModelUNet",
        "spatial_dims": 3,
        "in_channels": sizes["latent_channels"] + sizes["num_covariates"],
        "out_channels": sizes["latent_channels"],
        "channels": list(sizes["channels"]),
        "num_res_blocks": sizes["num_res_blocks"],
        "attention_levels": [heads > 0 for heads in sizes["num_head_channels"]],
        "num_head_channels": list(sizes["num_head_channels"]),
        "norm_num_groups": sizes["norm_num_groups"],
        "norm_eps": 1e-6,
        "resblock_updown": True,
        "with_conditioning": True,
        "transformer_num_layers": 1,
        "cross_attention_dim": sizes["num_covariates"],
        "upcast_attention": True,
        "include_fc": True,
        "use_combined_linear": False,
    }


def _autoencoder(sizes: dict) -> dict:
    return {
        "_target_": "monai.networks.nets.AutoencoderKL",
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": 1,
        "channels": list(sizes["channels"]),
        "latent_channels": sizes["latent_channels"],
        "num_res_blocks": sizes["num_res_blocks"],
        "norm_num_groups": sizes["norm_num_groups"],
        "norm_eps": 1e-6,
        "attention_levels": [False] * len(sizes["channels"]),
        "with_encoder_nonlocal_attn": False,
        "with_decoder_nonlocal_attn": False,
    }
