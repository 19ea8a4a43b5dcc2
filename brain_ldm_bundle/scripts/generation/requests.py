"""From a table of requested covariates to a cohort on disk: which rows, which seeds, who makes them, what is still to do."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from ignite.engine import Engine, Events

from ..data.covariates import CovariateSchema, participant_label, single_request
from ..data.derivative import Derivative
from ..model.sampler import row_seed
from ..shared.overrides import command_line

__all__ = ["WriteVolumes", "covariate_flags", "pending", "read_requests", "request_batch", "schema_of"]

logger = logging.getLogger(__name__)

NOISE_COLUMN = "noise"  # of a table of requests: names the noise that its rows share


def schema_of(recipe: Mapping, covariates_file: str | Path) -> CovariateSchema:
    """The covariates that a model was trained with; of the file for weights that carry none (the published ones)."""
    if "covariates" in recipe:
        return CovariateSchema.from_dict(recipe["covariates"], where="the schema in the model's weights")
    return CovariateSchema.from_file(covariates_file)


def read_requests(schema: CovariateSchema, table: str | Path | None, single: Mapping, seed: int = 0) -> list[dict]:
    """The rows to make, in physical values: of a table, or the one row given by name (`--age 70 --sex F ...`).

    A table may have a column "noise": rows with the same entry begin from the same noise, so that nothing but their
    covariates tells them apart. Where it is empty, a row has its own noise.

    Raises:
        ValueError: neither or both; a row that the schema refuses.
    """
    if table is not None and single:
        raise ValueError(f"both a table ({table}) and single covariates ({', '.join(single)}) were given. Use one of them")
    if table is not None:
        return schema.read_table(table, optional=[NOISE_COLUMN])
    if not single:
        flags = " ".join(f"--{name} ..." for name in schema.names)
        raise ValueError(f"nothing was requested. Give --requests TABLE.tsv, or one volume's covariates: {flags}")
    row = single_request(schema, single)
    # Named for what it is, so that another request does not replace it.
    name = hashlib.sha256(json.dumps(row | {"seed": seed}, sort_keys=True).encode()).hexdigest()[:8]
    return [{"participant_id": f"sub-{name}"} | row]


def covariate_flags(names: Iterable[str]) -> dict[str, object]:
    """What the command line says of covariates, such as {"age": 70} for `--age 70`."""
    given = command_line()
    return {name: given[name] for name in names if name in given}


def pending(
    requests: Sequence[Mapping],
    schema: CovariateSchema,
    derivative: Derivative,
    provenance: Mapping,
    base_seed: int,
    rank: int = 0,
    world_size: int = 1,
) -> list[dict]:
    """The items that this rank has yet to make: each row belongs to one rank, rows already whole on disk are left out.

    The seed of a row depends on `base_seed` and its participant_id, or on `base_seed` and its "noise" where it has one.

    Returns:
        items {"request": the row, "provenance": with its seed, "context": scaled covariates (1, C)}.
    """
    items = []
    for request in requests[rank::world_size]:
        noise = request.get(NOISE_COLUMN)
        # An id holds no colon, so that a noise called "0001" is not that of sub-0001.
        seed = row_seed(base_seed, participant_label(request["participant_id"]) if noise is None else f"noise:{noise}")
        own = {**provenance, "Seed": seed, "BaseSeed": base_seed}
        if not derivative.is_complete(request, own):
            context = torch.tensor([schema.scale(request)])
            items.append({"request": request, "provenance": own, "context": context})
    replaced = [str(file) for item in items if (file := derivative.image_file(item["request"])).exists()]
    if replaced:
        logger.warning(
            f"{len(replaced)} volumes, such as {replaced[0]}, were made for other covariates, settings or weights, or are "
            f"damaged: they will be replaced. Give another --output_dir to keep them"
        )
    mine = len(requests[rank::world_size])
    logger.info(f"rank {rank}: {mine} of {len(requests)} volumes are this rank's, {mine - len(items)} of them made already")
    return items


def request_batch(batch: Sequence[dict], device: torch.device, non_blocking: bool = False, **kwargs) -> tuple:
    """Input and keyword arguments of `LatentSampler` for items of `pending`."""
    context = torch.stack([item["context"] for item in batch]).to(device, non_blocking=non_blocking)
    return context, None, (), {"seeds": [item["provenance"]["Seed"] for item in batch]}


class WriteVolumes:
    """Write each volume that an evaluator makes; one that cannot be written does not keep the others from being made.

    A full disk (OSError) does end the run: what is written stays, and the same command goes on later.
    """

    def __init__(self, derivative: Derivative) -> None:
        self.derivative = derivative
        self.problems: list[str] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        for item, volume in zip(engine.state.batch, engine.state.output["pred"]):
            try:
                self.derivative.write(item["request"], volume[0].cpu(), item["provenance"])
            except ValueError as error:
                self.problems.append(str(error))

    def report(self) -> None:
        """End with an error that names the rows without a volume, if there are any."""
        if self.problems:
            raise RuntimeError("\n".join([f"{len(self.problems)} volumes were not written, all others were:", *self.problems]))
