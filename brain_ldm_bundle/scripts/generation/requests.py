"""Read requests for volumes, find those that are still to make, and write the volumes."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from ignite.engine import Engine

from ..data.covariates import CovariateSchema, Request, single_request
from ..data.derivative import Derivative, MapDerivative
from ..model.sampler import row_seed
from ..shared.acquisition import draw
from ..shared.background_writer import BackgroundWriter
from ..shared.overrides import command_line
from ..shared.settings import changed
from ..shared.team import Team, left_to_make, shard_of
from .exact_maps import BRAIN, VENTRICLES, ExactMaps

COVARIATES = Path(__file__).resolve().parents[2] / "configs" / "covariates.json"

logger = logging.getLogger(__name__)


def schema_of(recipe: Mapping, covariates_file: str | Path) -> CovariateSchema:
    """Return the schema that a model was trained with. For weights without one, such as the published ones, read the file.

    Another file than the bundle's own must have the covariates of the model.
    """
    if "covariates" not in recipe:
        return CovariateSchema.from_file(covariates_file)
    trained = CovariateSchema.from_dict(recipe["covariates"], where="the schema in the model's weights")
    if Path(covariates_file).resolve() != COVARIATES and CovariateSchema.from_file(covariates_file).inputs != trained.inputs:
        raise ValueError(
            f"{covariates_file} has other covariates than the model's weights ({', '.join(trained.names)}), or the same with "
            f"other ranges or levels. Leave out --covariates_file, because the weights hold theirs"
        )
    return trained


def given_covariates(schema: CovariateSchema, request: Mapping, settings: Mapping) -> dict:
    """Collect the covariates that a user requested for one volume, by name. Refuse two values for one.

    `settings` are the values of the config's settings that are named after covariates; None for one that was not set.
    Covariates without a setting are read from the command line.
    """
    given = command_line()
    other = {name: given[name] for name in schema.names if name in given and name not in settings}
    single = {**{name: value for name, value in settings.items() if value is not None}, **other}
    for name in single.keys() & request.keys():
        if str(single[name]) != str(request[name]):
            raise ValueError(f"{name} is {single[name]!r}, but {request[name]!r} in the request. Leave one out")
    return {**request, **single}


def read_requests(
    schema: CovariateSchema, table: str | Path | None, single: Mapping, seed: int = 0, image: str | Path | None = None
) -> list[Request]:
    """Read the requests of a table, or the `single` request with its covariates.

    Rows with the same entry in the column "noise" start from the same noise, so that they differ only in their covariates. A
    row without an entry has its own noise. The name of a single volume is a hash of its covariates and the seed, so that
    no other volume replaces it. An `image` is refused, because new volumes do not depend on it.
    """
    if image is not None:
        raise ValueError(
            f"image is {image}, but new volumes do not depend on an image. To change it, give the run id editing: "
            f"python -m monai.bundle run editing ... Otherwise leave out --image"
        )
    if table is not None and single:
        raise ValueError(f"both a table ({table}) and single covariates ({', '.join(single)}) were given. Use one of them")
    if table is not None:
        return [schema.request(row) for row in schema.read_table(table, optional=["noise"])]
    if not single:
        flags = " ".join(f"--{name} ..." for name in schema.names)
        raise ValueError(f"nothing was requested. Give --requests TABLE.tsv, or one volume's covariates: {flags}")
    row = single_request(schema, single)
    name = hashlib.sha256(json.dumps(row | {"seed": seed}, sort_keys=True).encode()).hexdigest()[:8]
    return [schema.request({"participant_id": name} | row)]


def warn_without_effect(maps: ExactMaps | None) -> None:
    """Warn of each setting that was changed but that a model of scans does not read."""
    given = {} if maps else changed("inference")
    for name in ("offset_limit", "smallest_island"):
        if name in given:
            logger.warning(
                f"{name} is {given[name]}, but has no effect here: only a model of label maps reads it. Leave it out"
            )


class Pending(Sequence):
    """Volumes that are still to make, as items for `request_batch` and `WriteVolumes`.

    An item is {"request", "provenance": with the seed, "context": scaled covariates (1, C)}. The seed of a volume follows from
    `base_seed` and its participant_id, or the name of its noise.
    """

    def __init__(self, requests: Sequence[Request], provenance: Mapping, base_seed: int) -> None:
        self.requests, self.provenance, self.base_seed = requests, provenance, base_seed

    def __len__(self) -> int:
        return len(self.requests)

    def __getitem__(self, index: int) -> dict:
        request = self.requests[index]
        return {
            "request": request,
            "provenance": own_provenance(request, self.provenance, self.base_seed),
            "context": torch.tensor([request.scaled]),
        }


def own_provenance(request: Request, provenance: Mapping, base_seed: int) -> dict:
    """Add the seed of a volume to the provenance of all. What it draws from the measured acquisition replaces that."""
    # An id has no colon, so a noise named "0001" differs from the noise of sub-0001.
    name = request.participant_id.removeprefix("sub-") if request.noise is None else f"noise:{request.noise}"
    seed = row_seed(base_seed, name)
    return {**provenance, "Seed": seed, "BaseSeed": base_seed, "Acquisition": draw(provenance.get("Acquisition"), seed)}


def pending(
    requests: Sequence[Request],
    derivative: Derivative,
    provenance: Mapping,
    base_seed: int,
    team: Team | None = None,
    shard: str | None = None,
) -> Pending:
    """List the volumes that the processes of a team must make together: those of the shard, without complete ones.

    Args:
        requests: volumes of the whole cohort.
        derivative: data set of the volumes.
        provenance: entries of every sidecar.
        base_seed: seed of the run.
        team: processes that share the work; the first one looks for complete volumes. None: this process is alone.
        shard: part of the cohort, such as "3/40", see `team.shard_of`; None: all volumes.
    """
    mine = shard_of(requests, shard)

    def is_made(request: Request) -> bool:
        return derivative.is_complete(request, own_provenance(request, provenance, base_seed))

    def find() -> list[int]:
        left = left_to_make(mine, is_made, derivative.threads)
        derivative.refuse_clashes(requests, [mine[index] for index in left])
        replaced = [str(file) for index in left if (file := derivative.image_file(mine[index])).exists()]
        if replaced:
            logger.warning(
                f"{len(replaced)} volumes, such as {replaced[0]}, were made for other covariates, settings or weights, or are "
                f"damaged: they will be replaced. Give another --output_dir to keep them"
            )
        of_all = "" if shard is None else f" (shard {shard} of {len(requests)})"
        logger.info(f"{len(left)} of {len(mine)} volumes{of_all} are to be made, {len(mine) - len(left)} are made already")
        return left

    left = (team or Team()).from_first(find)
    return Pending([mine[index] for index in left], provenance, base_seed)


def request_batch(batch: Sequence[dict], device: torch.device, non_blocking: bool = False, **kwargs) -> tuple:
    """Collate items of `pending` into the input and the keyword arguments of `LatentSampler`."""
    context = torch.stack([item["context"] for item in batch]).to(device, non_blocking=non_blocking)
    return context, None, (), {"seeds": [item["provenance"]["Seed"] for item in batch]}


def map_batch(batch: Sequence[dict], device: torch.device, non_blocking: bool = False, **kwargs) -> tuple:
    """Collate items as `request_batch` does, and add the requested values, to which label maps are made."""
    *inputs, arguments = request_batch(batch, device, non_blocking)
    return *inputs, {**arguments, "requested": [item["request"].values for item in batch]}


class WriteVolumes(BackgroundWriter):
    """Write each volume that an evaluator makes from a batch of `pending`, see `BackgroundWriter`."""

    def volumes(self, engine: Engine) -> Iterator[tuple[Request, torch.Tensor, dict]]:
        for item, volume in zip(engine.state.batch, engine.state.output["pred"]):
            yield item["request"], volume[0], item["provenance"]


class WriteMaps(BackgroundWriter):
    """Write each label map of `ExactMaps`, see `BackgroundWriter`. Report those whose volumes are not the requested ones."""

    def __init__(self, derivative: MapDerivative) -> None:
        super().__init__(derivative)
        self.missed: list[str] = []

    def volumes(self, engine: Engine) -> Iterator[tuple[Request, np.ndarray, dict]]:
        for item, made in zip(engine.state.batch, engine.state.output["pred"]):
            for name, found in made.volumes.items():
                if isinstance(found, dict) and found["Requested"] is not None and not found["AsRequested"]:
                    wanted, counted = (f"{found[key]:g} mL" for key in ("Requested", "Counted"))
                    self.missed.append(f"{item['request'].participant_id} has {name} of {counted} instead of {wanted}")
            yield item["request"], made.classes, {**item["provenance"], "Volumes": made.volumes}

    def report(self) -> None:
        if self.missed:
            logger.warning(
                f"{len(self.missed)} requested volumes were not reached within offset_limit: {self.missed[0]}. The sidecars of "
                f"the label maps say so (AsRequested)"
            )
        super().report()


def derivative_of(maps: ExactMaps | None, output_dir: str | Path, dtype: str, **options) -> Derivative:
    """Make the data set of volumes, or of label maps if the model makes them; `options` are those of `Derivative`."""
    if maps is None:
        return Derivative(output_dir, dtype=dtype, **options)
    if dtype != "uint8":
        raise ValueError(f"output_dtype is {dtype}, but label maps are whole numbers. Leave it out")
    return MapDerivative(output_dir, table=maps.table, settings=maps.settings, **options)


def writer_of(derivative: Derivative) -> BackgroundWriter:
    """Make the handler that writes what the model makes: volumes or label maps."""
    return (WriteMaps if isinstance(derivative, MapDerivative) else WriteVolumes)(derivative)


def refuse_without_volumes(requests: Sequence[Request], maps: ExactMaps | None) -> None:
    """Refuse requests for label maps that lack a volume, because the maps are made to the requested volumes."""
    for request in requests if maps else ():
        for name in (VENTRICLES, BRAIN):
            if name in request.values and request.values[name] is None:
                raise ValueError(
                    f"{request.participant_id}: {name} is missing, but label maps are made to the requested volumes. Fill it in"
                )
