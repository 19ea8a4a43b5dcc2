"""Search for copies of training scans among generated volumes.

Held-out scans show how similar two different heads can be, as in Dar et al. 2024 (arXiv 2402.01054), who use learnt features
instead of images and latents. The test of the whole set is from Meehan et al. 2020 (arXiv 2004.05675).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..data.bids import find_volumes
from ..model.training_record import check_baselines
from ..shared.files import write_json
from ..shared.simulated import note_on
from ..shared.tables import write_table
from ..training.latents import LatentDataset
from .anatomies import Anatomies, Views, anatomy_of_views
from .memorisation_report import KINDS, draw_distances, draw_pairs, write_audit_section
from .nearest_scan import Neighbours, threshold, views
from .provenance import read_provenance

FEWEST_HELD_OUT = 6  # chosen: enough for a median
FEWEST_TRAINING = 4
MIN_DETECTED = 0.8  # chosen: share of the controls that must be flagged; with fewer, the audit has no power
SPACES = ("image", "latent")


@dataclass
class Audit:
    """Compare generated volumes and held-out scans (validation and test) with their nearest training scans.

    Held-out scans set the threshold. The controls are training scans that the autoencoder reconstructed, which are the best
    copies that a latent diffusion model can make. They are audited like generated volumes, and must be flagged.

    The audit reads a training scan once, and keeps its latent and about 1500 numbers of its anatomy on disk. It holds these of
    all scans in memory, and a volume with its views in each process.
    docs/settings.md explains the fields that are settings of evaluate.json.
    """

    data: Mapping[str, Sequence[dict]]  # splits from `read_dataset`
    audited_dir: str | Path | None
    latents: LatentDataset  # of training, validation and test scans, in this order; its autoencoder encodes all other volumes
    transform: Callable  # from an item of `find_volumes` to {"image": (1, D, H, W)}, intensities as written
    output_dir: str | Path  # for memorisation.tsv, memorisation.json, two figures and memorisation.section.json
    max_flagged: float = 0.0
    controls: int = 12  # number of training scans that serve as controls
    pairs: int = 4  # number of pairs of volume and nearest training scan to draw, the closest first
    cache_file: str | Path | None = None  # remembers checked images, as in `find_volumes`
    cache_dir: str | Path = "cache"  # for the anatomy of each training scan
    models_dir: str | Path = ""  # holds the weights of a baseline that may have made the volumes

    def __post_init__(self) -> None:
        if not 0 <= self.max_flagged <= 1:
            raise ValueError(f"max_flagged is a share, 0 to 1, got {self.max_flagged}")
        self.output_dir = Path(self.output_dir)
        self.participants = [item["participant_id"] for item in self.data["training"]]
        self.held_out = [*self.data["validation"], *self.data["test"]]

    def check(self) -> tuple[list[dict], dict]:
        """Check all input before work starts, and return the items of the volumes and their provenance."""
        if len(self.held_out) < FEWEST_HELD_OUT:
            counts = ", ".join(f"{split}: {len(self.data[split])}" for split in ("validation", "test"))
            raise ValueError(
                f"{len(self.held_out)} held-out scans ({counts}); at least {FEWEST_HELD_OUT} are needed to know which "
                f"resemblance is ordinary. Keep more scans out of training"
            )
        if (count := len(set(self.participants))) < FEWEST_TRAINING:
            raise ValueError(f"{count} training participants; at least {FEWEST_TRAINING} are needed for an audit")
        if self.audited_dir is None:
            raise ValueError("no volumes to audit. Give --audited_dir, the folder that generation wrote to")
        items = find_volumes(self.audited_dir, self.latents.spacing_mm, self.cache_file)
        scans = {Path(item["image"]).resolve() for item in self.latents.data}
        own = [item["image"] for item in items if Path(item["image"]).resolve() in scans]
        if own:
            raise ValueError(
                f"audited_dir {self.audited_dir}: {len(own)} of its {len(items)} volumes, such as {own[0]}, are scans of the "
                f"data set itself and would be copies of themselves. Give the folder of generated volumes"
            )
        provenance = read_provenance(items, str(self.audited_dir))
        check_baselines(self.data, self.models_dir, provenance)
        return items, provenance

    @torch.inference_mode()
    def run(self) -> dict:
        """Run the audit, write its files, print the verdict, and return the content of memorisation.json.

        Raises:
            SystemExit: the audit is not passed. The exit status is 1.
        """
        items, provenance = self.check()
        self.latents.encode()
        rows = self._rows(items)
        summary = self._summarise(rows, provenance)
        self._write(rows, summary)
        verdict = "passed" if summary["passed"] else "NOT passed"
        print(f"Memorisation audit {verdict}: {summary['verdict']}. Closest pairs: {self.output_dir / 'memorisation.png'}")
        if not summary["passed"]:
            raise SystemExit(1)
        return summary

    def _rows(self, audited: Sequence[dict]) -> pd.DataFrame:
        """Find the nearest training scan of every volume in both spaces."""
        latents, n = self.latents, len(self.participants)
        anatomies = Anatomies(self.data["training"], latents.transform, latents.spacing_mm, self.cache_dir)
        mus = torch.empty(n, latents[0]["mu"].numel())
        for i, mu in enumerate(mus):
            mu.copy_(latents[i]["mu"].flatten())
        vectors = {"image": anatomies.all(latents.num_workers), "latent": mus}
        self.spaces = {space: Neighbours(x.to(latents.device), self.participants) for space, x in vectors.items()}
        scans = Views(self.held_out, latents.transform, latents.spacing_mm)
        samples = Views([{"image": item["image"]} for item in audited], self.transform, latents.spacing_mm)
        rows = self._read_rows("held-out", self.held_out, scans) + self._read_rows("sample", audited, samples)
        for i in np.linspace(0, n - 1, min(self.controls, n)).round().astype(int).tolist():
            volume, item = self._through_autoencoder(i), latents.data[i]
            rows.append(self._row("control", item, volume, anatomy_of_views(volume, latents.spacing_mm, item["image"])))
        return pd.DataFrame(rows)

    def _read_rows(self, kind: str, items: Sequence[Mapping], volumes: Views) -> list[dict]:
        loader = tqdm(DataLoader(volumes, batch_size=None, num_workers=self.latents.num_workers), KINDS[kind], leave=False)
        return [self._row(kind, item, *seen) for item, seen in zip(items, loader, strict=True)]

    def _through_autoencoder(self, index: int) -> torch.Tensor:
        mu = self.latents[index]["mu"][None].to(self.latents.device)
        with torch.autocast(mu.device.type, dtype=torch.bfloat16, enabled=self.latents.amp):
            return self.latents.autoencoder.decode(mu)[0].float().cpu().clamp(0, 1)

    def _mu(self, volumes: torch.Tensor, item: Mapping) -> torch.Tensor:
        with torch.autocast(self.latents.device.type, dtype=torch.bfloat16, enabled=self.latents.amp):
            mu, _ = self.latents.autoencoder.encode(volumes.to(self.latents.device))
        if not torch.isfinite(mu).all():
            raise ValueError(f"{item['image']}: its latent is not finite; the autoencoder has diverged")
        return mu.float().flatten(1)

    def _row(self, kind: str, item: Mapping, volume: torch.Tensor, anatomies: torch.Tensor) -> dict:
        """Match a volume, given the anatomies of its views."""
        names = [name for name, _ in views(volume[:, :1, :1, :1], self.latents.spacing_mm)]
        sides = torch.stack([volume, volume.flip(1)])  # the shifts are smaller than a latent's voxels
        matches = {
            "image": self.spaces["image"].match(anatomies, names),
            "latent": self.spaces["latent"].match(self._mu(sides, item), ["as it is", "mirrored"]),
        }
        row = {"kind": kind, "participant_id": item["participant_id"], "image": item["image"]}
        return row | {f"{space}_{key}": value for space, match in matches.items() for key, value in vars(match).items()}

    def _summarise(self, rows: pd.DataFrame, provenance: Mapping) -> dict:
        """Summarise the audit, and add to each row whether it is flagged and in which space."""
        by_kind = {kind: rows["kind"] == kind for kind in KINDS}
        limits = {space: threshold(rows.loc[by_kind["held-out"], f"{space}_relative_distance"]) for space in SPACES}
        margins = pd.DataFrame({space: rows[f"{space}_relative_distance"] - limits[space] for space in SPACES})
        rows["space"], rows["margin"] = margins.idxmin(axis=1), margins.min(axis=1)
        rows["flagged"] = rows["margin"] < 0
        counts = {kind: _count(rows.loc[of_kind, "flagged"]) for kind, of_kind in by_kind.items()}
        powerful = counts["control"]["share"] >= MIN_DETECTED
        sample, control = counts["sample"], counts["control"]
        verdict = f"{sample['flagged']} of {sample['n']} generated volumes flagged ({self.max_flagged:.1%} allowed)"
        verdict += f"; of {control['n']} training scans through the autoencoder, the controls, {control['flagged']} found"
        if not powerful:
            verdict += f", fewer than {MIN_DETECTED:.0%}: this audit would miss copies"
        return {
            "passed": bool(sample["share"] <= self.max_flagged and powerful),
            "verdict": verdict,
            "audited": {"folder": str(self.audited_dir), "n": sample["n"], "provenance": dict(provenance)},
            "max_flagged": self.max_flagged,
            "min_detected": MIN_DETECTED,
            "training_scans": len(self.participants),
            "neighbours": self.spaces["image"].neighbours,
            "counts": counts,
            "spaces": {space: {"threshold": limits[space], **_compare(rows, space)} for space in SPACES},
        }

    def _write(self, rows: pd.DataFrame, summary: Mapping) -> None:
        columns = ["kind", "participant_id", "file", "flagged"]
        lines = [columns + [f"{s}_{name}" for s in SPACES for name in ("nearest", "r", "relative_distance", "view")]]
        for row in rows.to_dict("records"):
            cells = [row["kind"], row["participant_id"], row["image"], str(row["flagged"]).lower()]
            for space in SPACES:
                numbers = [f"{row[f'{space}_{key}']:.4f}" for key in ("r", "relative_distance")]
                cells += [self.participants[row[f"{space}_scan"]], *numbers, row[f"{space}_view"]]
            lines.append(cells)
        write_table(self.output_dir / "memorisation.tsv", lines)
        write_json(self.output_dir / "memorisation.json", summary)
        samples = rows[rows["kind"] == "sample"].sort_values("margin", kind="stable").head(self.pairs)
        pairs = [self._pair(row, summary) for row in samples.to_dict("records")]
        scans = [item["image"] for item in self.latents.data]
        note = note_on(scans)
        draw_pairs(self.output_dir / "memorisation.png", pairs, note)
        draw_distances(self.output_dir / "memorisation_distances.png", rows, summary["spaces"], note)
        write_audit_section(self.output_dir, summary, len(pairs), scans)

    @staticmethod
    def _image(transform: Callable, item: Mapping) -> torch.Tensor:
        return torch.as_tensor(transform({"image": item["image"]})["image"])

    def _pair(self, row: Mapping, summary: Mapping) -> dict:
        """Return a generated volume in the view that fits best, and its nearest training scan."""
        space = row["space"]
        scan, r, distance, view = (row[f"{space}_{key}"] for key in ("scan", "r", "relative_distance", "view"))
        limit = summary["spaces"][space]["threshold"]
        return {
            "sample": dict(views(self._image(self.transform, row), self.latents.spacing_mm))[view][0],
            "scan": self._image(self.latents.transform, self.latents.data[scan])[0],
            "titles": [
                row["participant_id"] + ("" if view == "as it is" else f", {view}"),
                f"nearest in {space} space: {self.participants[scan]}",
                f"r {r:.2f}, relative distance {distance:.2f} (flagged below {limit:.2f})",
            ],
            "flagged": row["flagged"],
        }


def _count(flags: pd.Series) -> dict:
    """Count the flagged volumes, with the exact 95 % interval of their share."""
    n, flagged = len(flags), int(flags.sum())
    interval = stats.binomtest(flagged, n).proportion_ci()
    return {"n": n, "flagged": flagged, "share": flagged / n, "share_95": [float(interval.low), float(interval.high)]}


def _compare(rows: pd.DataFrame, space: str) -> dict:
    """Summarise r and relative distance by kind, and test whether generated volumes are nearer than held-out scans."""
    kinds = {kind: rows[rows["kind"] == kind] for kind in KINDS}
    samples, held_out = (kinds[kind][f"{space}_relative_distance"] for kind in ("sample", "held-out"))
    test = stats.mannwhitneyu(samples, held_out, alternative="less")
    return {
        "probability_nearer": float(1 - test.statistic / (len(samples) * len(held_out))),
        "p": float(test.pvalue),
        "share_below_5th_percentile": float((samples < np.quantile(held_out, 0.05)).mean()),
        **{
            kind: {key: _spread(of_kind[f"{space}_{key}"]) for key in ("r", "relative_distance")}
            for kind, of_kind in kinds.items()
        },
    }


def _spread(values: pd.Series) -> dict[str, float]:
    return {"lowest": float(values.min()), "median": float(values.median()), "highest": float(values.max())}
