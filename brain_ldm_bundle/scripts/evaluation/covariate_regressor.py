"""Train, load and apply a network that predicts the covariates from a volume."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from ignite.engine import Engine, Events

from ..data.covariates import NULL, CovariateSchema
from ..model.regressor_network import Regressor
from ..shared.files import refuse_unwritable, sha256
from ..shared.journal import Journal
from ..shared.tables import refuse_users_columns, write_table
from ..shared.weights import load_weights, network_of, read_recipe

MADE_BY = "python -m monai.bundle run training --config_file configs/train_regressor.json --dataset_dir DIR"


def load_regressor(path: str | Path, spacing_mm: float) -> Regressor:
    """Load a regressor for volumes of this spacing, in eval mode. Its sizes and covariates are stored with the weights."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such regressor. Train it first: {MADE_BY}")
    recipe = read_recipe(path)
    if "regressor" not in recipe:
        raise ValueError(f"{path}: these are not a regressor's weights. Train one: {MADE_BY}")
    if (own := recipe["spacing_mm"]) != spacing_mm:
        raise ValueError(
            f"{path}: this regressor reads volumes of {own:g} mm, but spacing_mm is {spacing_mm:g}. For volumes of {own:g} mm, "
            f"add --spacing_mm {own:g}. For others, train a regressor: {MADE_BY} --spacing_mm {spacing_mm:g}"
        )
    return load_weights(network_of(Regressor, "regressor", path), path).eval()


def load_start(network: Regressor, init: str | Path | None, schema: CovariateSchema) -> None:
    """Load weights to fine-tune, if any, into the network. Refuse weights of other covariates, whose answers mean others."""
    if init is None:
        return
    known = load_weights(network, init).recipe.get("covariates")
    theirs = CovariateSchema.from_dict(known, str(init)) if known else schema
    if theirs.inputs != schema.inputs:
        raise ValueError(
            f"{init} was trained on other covariates ({theirs.inputs}) than this training uses ({schema.inputs}). Give the "
            f"schema that it was trained with by --covariates_file, or leave out --init_regressor"
        )


def covariate_loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Average the absolute error of scaled covariates (B, C) over the known ones. If none is known, return 0."""
    known = target != NULL
    return ((prediction - target).abs() * known).sum() / known.sum().clamp(min=1)


def covariates_as_target(batch: Mapping, device: torch.device, non_blocking: bool = False, **kwargs) -> tuple:
    """Return input and target of the regression: image (B, 1, D, H, W) and scaled covariates (B, C)."""
    return tuple(torch.as_tensor(batch[key]).to(device, non_blocking=non_blocking) for key in ("image", "covariates"))


def regression_step(engine: Engine, batch: Mapping, grad_clip: float, amp: bool) -> list[dict[str, float]]:
    """Take a step of MONAI's SupervisedTrainer down the absolute error of scaled covariates, the loss of Cole et al. 2017.

    A batch is {"image": (B, 1, D, H, W) in [0, 1], "covariates": (B, C)}. With `amp`, the network runs in bfloat16, the loss in
    float32. `grad_clip` is the largest norm of the gradient.
    """
    network = engine.network.train()
    image, covariates = covariates_as_target(batch, engine.state.device, non_blocking=True)
    engine.optimizer.zero_grad(set_to_none=True)
    with torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=amp):
        prediction = network(image)
    loss = covariate_loss(prediction.float(), covariates)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), grad_clip)
    engine.optimizer.step()
    return [{"loss": loss.item()}]


class Predictions:
    """Write a table of a regressor's predictions: participant_id, file, covariates in physical units, and tool.

    The table is written after the last volume. The rows of a run that was stopped are kept until then.

    Args:
        path: file of the table.
        recipe: recipe of the regressor, which holds its covariates.
        items: volumes with their path "image", in the order of the rows.
        settings: what a prediction depends on besides weights and volume, as JSON can hold it.
        regressor_file: weights of the regressor.
    """

    def __init__(
        self, path: str | Path, recipe: Mapping, items: Sequence[dict], settings: Sequence, regressor_file: str | Path
    ) -> None:
        refuse_unwritable(path)
        self.path, self.items = path, items
        self.schema = CovariateSchema.from_dict(recipe["covariates"], where="the schema in the regressor's weights")
        self.columns = ["participant_id", "file", *self.schema.names, "tool"]
        refuse_users_columns(path, self.columns)
        self.journal = Journal(path, [sha256(regressor_file), *settings])
        self.files = [item["image"] for item in items]

    def left(self) -> list[dict]:
        """Return the items that are still to predict."""
        left = set(self.journal.open(self.files))
        return [item for item in self.items if item["image"] in left]

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.read)
        engine.add_event_handler(Events.COMPLETED, lambda engine: self.write())

    def read(self, engine: Engine) -> None:
        batch, output = engine.state.batch, engine.state.output
        volumes = zip(batch["participant_id"], batch["file"], output["image"], output["pred"].float(), strict=True)
        for participant, file, image, scaled in volumes:
            low, high = image.min().item(), image.max().item()
            if not (-0.01 <= low < high <= 1.01):  # also true for NaN
                raise ValueError(
                    f"{file}: values from {low:g} to {high:g}; a regressor reads images that vary within 0 to 1. "
                    f"Rescale scans with --stretch_intensities True"
                )
            values = [c.physical(value) for c, value in zip(self.schema.covariates, scaled.tolist(), strict=True)]
            cells = (v if isinstance(v, str) else f"{v:.6g}" for v in values)
            self.journal.add(file, [participant, file, *cells, "regressor"])

    def write(self) -> None:
        rows = (self.journal.found[file] for file in self.files)
        write_table(self.path, [self.columns, *rows])
        self.journal.close()


def refuse_no_folder(predict_dir: str | Path | None) -> None:
    if predict_dir is None:
        raise ValueError("nothing to predict. Give --predict_dir FOLDER, with volumes below sub-*/anat, as generated")
