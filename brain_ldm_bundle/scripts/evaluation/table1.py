"""Generated sets against real scans: fidelity, diversity, intensities, with a floor above and trivial answers below."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from ..shared import mni_box
from ..shared.files import write_json
from ..shared.sections import write_section
from ..shared.tables import write_table
from .compared_sets import BLUR_MM, Blurred, Remembered, Repeated, Volumes, count_participants, find_samples, halves, refuse_few
from .diversity import draw_pairs, mean_over_pairs, multi_scale_ssim, score_pairs
from .feature_extractors import Extractor
from .feature_space import FeatureSpace
from .fid import check_features
from .grey_values import histogram_distance, intensity_checks
from .mmd_coverage import NEIGHBOURS
from .provenance import read_provenance, trained_on
from .table1_report import FLOOR, SPLITS, further_distances, origins, table_1, text

__all__ = ["SampleEvaluation"]

logger = logging.getLogger(__name__)

FEWEST_REAL, FEWEST_GENERATED = 2 * (NEIGHBOURS + 1), 4
VOLUMES_PER_DIMENSION = 4
REMEMBERED_BYTES = 2**30  # 187 volumes at 1 mm

HELD_OUT = "real, held out"
BLUR, MEAN = f"real, blurred by {BLUR_MM:g} mm", "mean scan, repeated"


@dataclass
class Described:
    """What is kept of a set when its volumes have passed."""

    features: np.ndarray  # (n, F)
    checks: list[dict[str, float]]  # of each volume's intensities
    histograms: np.ndarray  # (n, 256): shares of grey values in the head
    mean: torch.Tensor  # (1, D, H, W)
    participants: np.ndarray  # (n,): whom the volumes show
    pairs: list[tuple[int, int]]
    scores: np.ndarray  # (pairs, 2): MS-SSIM, 4-G-R-SSIM


class SampleEvaluation:
    """Table 1 of Pinaya et al. 2022 and further distances, for any number of generated sets.

    Nothing is read before `check` or `run`.

    Args:
        samples: name to folder of generated volumes; or None, for which `run` raises.
        data: splits of real scans, as `bids.read_dataset` gives them.
        reference_split: real scans that sets are compared with; "all": every one.
        preprocessing: of real scans, from an item to {"image": (1, D, H, W)} in 0 to 1.
        sample_preprocessing: of generated ones, which keeps their intensities.
        extractor: makes the `Extractor`.
        spacing_mm: of the grid.
        pairs: per set, drawn at random.
        feature_dimensions: principal components along which FID compares covariances; None: as many as the smallest set
            has volumes for (a quarter of them), at most all.
        seed: of the pairs and halves.
        device: that computes.
        output_dir: samples.json, samples.section.json, samples_pairs.tsv, samples_volumes.tsv.
        cache_file: of checked images, as `bids.find_volumes`.
        weights: files of the models that may have made the sets, to tell what they were trained on.
    """

    def __init__(
        self,
        samples: Mapping[str, str] | None,
        data: Mapping[str, Sequence[dict]],
        reference_split: str,
        preprocessing: Callable[[dict], dict],
        sample_preprocessing: Callable[[dict], dict],
        extractor: Callable[[], Extractor],
        spacing_mm: float,
        pairs: int,
        feature_dimensions: int | None,
        seed: int,
        device: torch.device,
        output_dir: str | Path,
        cache_file: str | Path | None = None,
        weights: Sequence[str | Path] = (),
    ) -> None:
        self.samples, self.data, self.reference_split = samples, data, reference_split
        self.preprocessing, self.sample_preprocessing = preprocessing, sample_preprocessing
        self.make_extractor, self.spacing_mm = extractor, spacing_mm
        self.pairs, self.feature_dimensions, self.seed = pairs, feature_dimensions, seed
        self.device, self.output_dir, self.cache_file = device, Path(output_dir), cache_file
        self.weights = weights
        self.provenance: dict[str, dict] = {}

    def run(self) -> dict:
        """Measure and write; the content of samples.json comes back.

        Raises:
            ValueError, FileNotFoundError: as `check`, and `Volumes`.
        """
        generated, real, held_out, dimensions, extractor = self.check()
        reference = Volumes(real, self.preprocessing)
        volumes = {FLOOR: reference}
        if count_participants(held_out) > max(FEWEST_GENERATED, dimensions):
            volumes[HELD_OUT] = Volumes(held_out, self.preprocessing)
        volumes |= {name: Volumes(items, self.sample_preprocessing) for name, items in generated.items()}
        volumes[BLUR] = Blurred(reference, self.spacing_mm)
        number = REMEMBERED_BYTES // math.prod(mni_box.size(self.spacing_mm))
        described = {name: self._describe(Remembered(dataset, number), extractor, name) for name, dataset in volumes.items()}
        volumes[MEAN] = Repeated(described[FLOOR].mean)
        described[MEAN] = self._describe(volumes[MEAN], extractor, MEAN)

        space = FeatureSpace(described[FLOOR].features, dimensions, extractor.standardise)
        if space.dimensions < space.length:
            logger.warning(space.text(extractor.name))
        result = {
            "extractor": extractor.name,
            "features": {"length": space.length, "dimensions": space.dimensions, "share_of_variance": space.share},
            "reference": {"split": self.reference_split, "n": len(real)},
            "held_out": {"n": len(held_out), "compared": HELD_OUT in volumes},
            "samples": {
                name: {
                    "folder": str(self.samples[name]),
                    "n": len(items),
                    "provenance": self.provenance[name],
                    "trained_on": trained_on(self.provenance[name], self.weights, self.data["training"]),
                }
                for name, items in generated.items()
            },
            "spacing_mm": self.spacing_mm,
            "pairs": self.pairs,
            "seed": self.seed,
            "scales": len(multi_scale_ssim(mni_box.size(self.spacing_mm)).weights),
            "sets": {name: self._row(one, described[FLOOR], space) for name, one in described.items()},
        }
        self._write(volumes, described, result, space.text(extractor.name))
        return result

    def check(self) -> tuple[dict[str, list[dict]], list[dict], list[dict], int, Extractor]:
        """Refuse what `run` would refuse, before hours go into something else: the sets, both kinds of scans, extractor.

        Raises:
            ValueError, FileNotFoundError: as `find_samples`, `read_provenance`, `load_extractor`; too few real scans.
        """
        numbers = {"pairs": self.pairs}
        if self.feature_dimensions is not None:
            numbers["feature_dimensions"] = self.feature_dimensions
        for name, number in numbers.items():
            if type(number) is not int or number < 1:
                raise ValueError(f"{name} must be a whole number, 1 or more, got {number!r}")
        names = (FLOOR, HELD_OUT, BLUR, MEAN)
        everyone = [item for items in self.data.values() for item in items]
        generated = find_samples(self.samples, self.spacing_mm, FEWEST_GENERATED, names, self.cache_file, everyone)
        self.provenance = {name: read_provenance(items, f"{name}, {self.samples[name]}") for name, items in generated.items()}
        real, held_out = self._real_scans(everyone)
        dimensions = self._dimensions(count_participants(real), [count_participants(items) for items in generated.values()])
        return generated, real, held_out, dimensions, self.make_extractor()

    def _real_scans(self, everyone: Sequence[dict]) -> tuple[list[dict], list[dict]]:
        if self.reference_split != "all" and self.reference_split not in self.data:
            raise ValueError(f"reference_split must be all, {', '.join(self.data)}, got {self.reference_split!r}")
        real = everyone if self.reference_split == "all" else list(self.data[self.reference_split])
        refuse_few(real, f"real scans of the split {self.reference_split!r}", FEWEST_REAL)
        chosen = {item["participant_id"] for item in real}
        return real, [item for item in everyone if item["participant_id"] not in chosen]

    def _dimensions(self, real: int, generated: Sequence[int]) -> int:
        """Of covariances: as many as the smallest set's participants allow; half of the real ones is a set, too."""
        smallest = min(real // 2, *generated)
        if self.feature_dimensions is not None and self.feature_dimensions >= smallest:
            raise ValueError(
                f"feature_dimensions {self.feature_dimensions}: the smallest set (half of the real scans counts as one) has "
                f"{smallest} participants, whose covariance has at most {smallest - 1} dimensions. Use fewer, or add volumes"
            )
        return self.feature_dimensions or max(1, smallest // VOLUMES_PER_DIMENSION)

    def _describe(self, volumes: Dataset, extractor: Extractor, name: str) -> Described:
        """One pass over the volumes, one in memory at a time; then the pairs, two at a time; and what is `Remembered`."""
        features, checks, histograms, total = [], [], [], torch.zeros(())
        for index in tqdm(range(len(volumes)), f"volumes: {name}", leave=False, disable=None):
            volume = volumes[index]
            features.append(extractor(volume.to(self.device)))
            numbers, shares = intensity_checks(volume[0].numpy(), self.spacing_mm)
            checks.append(numbers)
            histograms.append(shares)
            total = total + volume / len(volumes)
        participants = np.array([item["participant_id"] for item in volumes.items])
        pairs = draw_pairs(participants, self.pairs, self.seed)
        return Described(
            check_features(np.stack(features), name),
            checks,
            np.stack(histograms),
            total.clamp(0, 1),
            participants,
            pairs,
            score_pairs(volumes, pairs, self.device, name),
        )

    def _row(self, described: Described, reference: Described, space: FeatureSpace) -> dict:
        people, person = np.unique(described.participants, return_inverse=True)
        row = {"n": len(described.features), "participants": len(people)}
        if described is reference:
            compared = [self._compare(reference, a, reference, b, space) for a, b in self._halves(reference)]
            row |= {key: float(np.mean([numbers[key] for numbers in compared])) for key in compared[0]}
        else:
            row |= self._compare(described, slice(None), reference, slice(None), space)
        row["pairs"] = len(described.pairs)
        for key, scores in zip(("ms_ssim", "gradient_ssim"), described.scores.T, strict=True):
            mean, std, error = mean_over_pairs(person[np.array(described.pairs)], scores)
            row[key] = {"mean": mean, "std": std, "standard_error": None if math.isnan(error) else error}
        for key in described.checks[0]:
            row[key] = float(np.mean([numbers[key] for numbers in described.checks]))
        return row

    def _compare(
        self, a: Described, rows_a: np.ndarray | slice, b: Described, rows_b: np.ndarray | slice, space: FeatureSpace
    ) -> dict[str, float]:
        histograms = a.histograms[rows_a].mean(axis=0), b.histograms[rows_b].mean(axis=0)
        participants = a.participants[rows_a], b.participants[rows_b]
        distances = space.compare(a.features[rows_a], b.features[rows_b], participants)
        return distances | {"histogram_distance": histogram_distance(*histograms)}

    def _halves(self, described: Described) -> list[tuple[np.ndarray, np.ndarray]]:
        return [halves(described.participants, [self.seed, split]) for split in range(SPLITS)]

    def _write(self, volumes: Mapping[str, Dataset], described: Mapping[str, Described], result: dict, space: str) -> None:
        pair_lines = [["set", "first", "second", "ms_ssim", "gradient_ssim"]]
        volume_lines = [["set", "participant_id", "file", *described[FLOOR].checks[0]]]
        for name, one in described.items():
            items = volumes[name].items
            for (i, j), scores in zip(one.pairs, one.scores, strict=True):
                ids = items[i]["participant_id"], items[j]["participant_id"]
                pair_lines.append([name, *ids, *(f"{score:.5f}" for score in scores)])
            for item, checks in zip(items, one.checks, strict=True):
                volume_lines.append([name, item["participant_id"], item["image"], *(f"{x:.5f}" for x in checks.values())])
        self.output_dir.mkdir(parents=True, exist_ok=True)
        for file_name, lines in (("samples_pairs.tsv", pair_lines), ("samples_volumes.tsv", volume_lines)):
            write_table(self.output_dir / file_name, lines)
        write_json(self.output_dir / "samples.json", result)
        tables = [table_1(result["sets"]), further_distances(result["sets"]), origins(result["samples"])]
        for table in tables:
            for cells in [table["header"], *table["rows"]]:
                print("  ".join(f"{cell:26s}" for cell in cells).rstrip())
        write_section(
            self.output_dir / "samples.section.json", "Quality of the generated volumes (Table 1)", text(result, space), tables
        )
