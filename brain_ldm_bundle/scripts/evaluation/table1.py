"""Compare generated sets with real scans as in Table 1 of Pinaya et al. 2022, with a floor and trivial answers."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..model.training_record import check_baselines
from ..shared import mni_box
from ..shared.files import write_json
from ..shared.sections import write_section
from ..shared.tables import print_table, write_table
from .compared_sets import Blurred, Remembered, Repeated, Volumes, count_participants, find_samples, halves, refuse_few
from .diversity import draw_pairs, mean_over_pairs, multi_scale_ssim, score_pairs
from .feature_extractors import Extractor
from .feature_space import FeatureSpace
from .grey_values import histogram_distance, intensity_checks
from .mmd_coverage import NEIGHBOURS
from .provenance import read_provenance, trained_on
from .table1_report import BLUR, FLOOR, SPLITS, further_distances, origins, table_1, text, verdict

logger = logging.getLogger(__name__)

FEWEST_REAL, FEWEST_GENERATED = 2 * (NEIGHBOURS + 1), 4
VOLUMES_PER_DIMENSION = 4
REMEMBERED_BYTES = 2**30  # 187 volumes at 1 mm, in all processes together

HELD_OUT = "real, held out"
MEAN = "mean scan, repeated"


@dataclass
class MeasuredSet:
    """The measurements of all volumes of a set."""

    items: list[dict]
    features: np.ndarray  # (n, F)
    checks: list[dict[str, float]]  # intensity checks of each volume
    histograms: np.ndarray  # (n, 256): shares of grey values in the head
    mean: torch.Tensor  # (1, D, H, W)
    pairs: list[tuple[int, int]]
    scores: np.ndarray  # (pairs, 2): MS-SSIM, 4-G-R-SSIM

    @property
    def participants(self) -> np.ndarray:
        return np.array([item["participant_id"] for item in self.items])


@dataclass
class Checked(Dataset):
    """Volumes with their intensity checks, which take longer than to read a volume."""

    volumes: Volumes
    spacing_mm: float

    def __len__(self) -> int:
        return len(self.volumes)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict[str, float], np.ndarray]:
        volume = self.volumes[index]
        return volume, *intensity_checks(volume[0].numpy(), self.spacing_mm)


@dataclass
class SampleEvaluation:
    """Compute Table 1 of Pinaya et al. 2022 and further distances for any number of generated sets.

    Nothing is read before `check` or `run`. docs/settings.md explains the fields that are settings of evaluate.json.
    """

    samples: Mapping[str, str] | None
    data: Mapping[str, Sequence[dict]]  # splits of real scans, from `bids.read_dataset`
    reference_split: str
    preprocessing: Callable[[dict], dict]  # from an item of a real scan to {"image": (1, D, H, W) in 0 to 1}
    sample_preprocessing: Callable[[dict], dict]  # the same for generated volumes, whose intensities it must keep
    extractor: Callable[[], Extractor]
    spacing_mm: float
    pairs: int
    feature_dimensions: int | None
    seed: int
    device: torch.device
    output_dir: str | Path  # for samples.json, samples.section.json, samples_pairs.tsv and samples_volumes.tsv
    cache_file: str | Path | None = None  # remembers checked images, as in `bids.find_volumes`
    weights: Sequence[str | Path] = ()  # model and autoencoder that may have made the sets
    models_dir: str | Path = ""  # holds the weights of baselines that may have made the sets
    blurred_scans: int = 500
    num_workers: int = 0

    def check(self) -> tuple[dict[str, list[dict]], dict[str, dict], list[dict], list[dict], int, Extractor]:
        """Check all input before work that takes hours.

        Returns:
            items of each set, provenance of each set, real scans, held-out scans, number of dimensions, and the extractor.
        """
        for name in ("pairs", "feature_dimensions"):
            number = getattr(self, name)
            if (name, number) != ("feature_dimensions", None) and (type(number) is not int or number < 1):
                raise ValueError(f"{name} must be a whole number, 1 or more, got {number!r}")
        if self.reference_split != "all" and self.reference_split not in self.data:
            raise ValueError(f"reference_split must be all, {', '.join(self.data)}, got {self.reference_split!r}")
        everyone = [item for items in self.data.values() for item in items]
        names = (FLOOR, HELD_OUT, BLUR, MEAN)
        generated = find_samples(self.samples, self.spacing_mm, FEWEST_GENERATED, names, self.cache_file, everyone)
        provenance = {name: read_provenance(items, f"{name}, {self.samples[name]}") for name, items in generated.items()}
        check_baselines(self.data, self.models_dir, *provenance.values())
        real = everyone if self.reference_split == "all" else list(self.data[self.reference_split])
        refuse_few(real, f"real scans of the split {self.reference_split!r}", FEWEST_REAL)
        chosen = {item["participant_id"] for item in real}
        held_out = [item for item in everyone if item["participant_id"] not in chosen]
        smallest = min(count_participants(real) // 2, *map(count_participants, generated.values()))
        if self.feature_dimensions is not None and self.feature_dimensions >= smallest:
            raise ValueError(
                f"feature_dimensions {self.feature_dimensions}: the smallest set (half of the real scans counts as one) has "
                f"{smallest} participants, whose covariance has at most {smallest - 1} dimensions. Use fewer, or add volumes"
            )
        dimensions = self.feature_dimensions or max(1, smallest // VOLUMES_PER_DIMENSION)
        return generated, provenance, real, held_out, dimensions, self.extractor()

    def run(self) -> dict:
        """Measure all sets, write the results, and return the content of samples.json."""
        generated, provenance, real, held_out, dimensions, extractor = self.check()
        reference = Volumes(real, self.preprocessing)
        volumes = {FLOOR: reference}
        if count_participants(held_out) > max(FEWEST_GENERATED, dimensions):
            volumes[HELD_OUT] = Volumes(held_out, self.preprocessing)
        volumes |= {name: Volumes(items, self.sample_preprocessing) for name, items in generated.items()}
        blurred = max(self.blurred_scans, VOLUMES_PER_DIMENSION * dimensions)
        volumes[BLUR] = Blurred(reference, self.spacing_mm, blurred, self.seed)
        number = max(2, REMEMBERED_BYTES // math.prod(mni_box.size(self.spacing_mm)) // max(1, self.num_workers))
        sets = {name: self._measure(Remembered(dataset, number), extractor, name) for name, dataset in volumes.items()}
        sets[MEAN] = self._measure(Repeated(sets[FLOOR].mean), extractor, MEAN)

        space = FeatureSpace(sets[FLOOR].features, dimensions, extractor.standardise)
        if space.dimensions < space.length:
            logger.warning(space.text(extractor.name))
        result = {
            "extractor": extractor.name,
            "features": {"length": space.length, "dimensions": space.dimensions, "share_of_variance": space.share},
            "reference": {"split": self.reference_split, "n": len(real), "blurred": len(volumes[BLUR])},
            "held_out": {"n": len(held_out), "compared": HELD_OUT in volumes},
            "samples": {
                name: {
                    "folder": str(self.samples[name]),
                    "n": len(items),
                    "provenance": provenance[name],
                    "trained_on": self._trained_on(provenance[name]),
                }
                for name, items in generated.items()
            },
            "spacing_mm": self.spacing_mm,
            "pairs": self.pairs,
            "seed": self.seed,
            "scales": len(multi_scale_ssim(mni_box.size(self.spacing_mm)).weights),
            "sets": {name: self._row(one, sets[FLOOR], space) for name, one in sets.items()},
        }
        self._write(sets, result, space.text(extractor.name))
        return result

    def _trained_on(self, provenance: Mapping) -> str:
        baseline = Path(self.models_dir) / f"{provenance.get('Model')}.pt"
        return trained_on(provenance, [*self.weights, baseline], self.data["training"])

    def _measure(self, volumes: Volumes, extractor: Extractor, name: str) -> MeasuredSet:
        """Measure each volume of a set, one in the memory of a process at a time, then its pairs of volumes."""
        features, checks, histograms, total = [], [], [], torch.zeros(())
        loader = DataLoader(Checked(volumes, self.spacing_mm), batch_size=None, num_workers=self.num_workers)
        for volume, numbers, shares in tqdm(loader, f"volumes: {name}", leave=False, disable=None):
            features.append(extractor(volume.to(self.device)))
            checks.append(numbers)
            histograms.append(np.array(shares))  # a copy, because each array from a worker keeps a file open
            total = total + volume / len(volumes)
        features = np.stack(features)
        broken = np.flatnonzero(~np.isfinite(features).all(axis=1))
        if len(broken):
            first = volumes.items[broken[0]]["image"]
            raise ValueError(f"features of {name!r} are NaN or infinite for {len(broken)} volumes, first: {first}")
        pairs = draw_pairs([item["participant_id"] for item in volumes.items], self.pairs, self.seed)
        scores = score_pairs(volumes, pairs, self.device, name, self.num_workers)
        return MeasuredSet(volumes.items, features, checks, np.stack(histograms), total.clamp(0, 1), pairs, scores)

    def _row(self, one: MeasuredSet, reference: MeasuredSet, space: FeatureSpace) -> dict:
        people, person = np.unique(one.participants, return_inverse=True)
        rows = [(slice(None), slice(None))]
        if one is reference:
            rows = [halves(one.participants, [self.seed, split]) for split in range(SPLITS)]
        compared = [_compare(one, rows_a, reference, rows_b, space) for rows_a, rows_b in rows]
        row = {"n": len(one.items), "participants": len(people)}
        row |= {key: float(np.mean([numbers[key] for numbers in compared])) for key in compared[0]}
        row["pairs"] = len(one.pairs)
        for key, scores in zip(("ms_ssim", "gradient_ssim"), one.scores.T, strict=True):
            mean, std, error = mean_over_pairs(person[np.array(one.pairs)], scores)
            row[key] = {"mean": mean, "std": std, "standard_error": None if math.isnan(error) else error}
        return row | {key: float(np.mean([numbers[key] for numbers in one.checks])) for key in one.checks[0]}

    def _write(self, sets: Mapping[str, MeasuredSet], result: dict, space: str) -> None:
        pairs = [["set", "first", "second", "ms_ssim", "gradient_ssim"]]
        volumes = [["set", "participant_id", "file", *sets[FLOOR].checks[0]]]
        for name, one in sets.items():
            for (i, j), scores in zip(one.pairs, one.scores, strict=True):
                pairs.append([name, one.participants[i], one.participants[j], *(f"{score:.5f}" for score in scores)])
            for item, checks in zip(one.items, one.checks, strict=True):
                volumes.append([name, item["participant_id"], item["image"], *(f"{x:.5f}" for x in checks.values())])
        folder = Path(self.output_dir)
        write_table(folder / "samples_pairs.tsv", pairs)
        write_table(folder / "samples_volumes.tsv", volumes)
        write_json(folder / "samples.json", result)
        tables = [table_1(result["sets"]), further_distances(result["sets"]), origins(result["samples"])]
        for table in tables:
            print_table(table)
        title, scans = "Quality of the generated volumes (Table 1)", [item["image"] for item in sets[FLOOR].items]
        path = folder / "samples.section.json"
        folders = self.samples.values()
        write_section(path, title, text(result, space), tables, scans=scans, verdict=verdict(result), volumes=folders)


def _compare(
    a: MeasuredSet, rows_a: np.ndarray | slice, b: MeasuredSet, rows_b: np.ndarray | slice, space: FeatureSpace
) -> dict[str, float]:
    participants = a.participants[rows_a], b.participants[rows_b]
    distances = space.compare(a.features[rows_a], b.features[rows_b], participants)
    histograms = a.histograms[rows_a].mean(axis=0), b.histograms[rows_b].mean(axis=0)
    return distances | {"histogram_distance": histogram_distance(*histograms)}
