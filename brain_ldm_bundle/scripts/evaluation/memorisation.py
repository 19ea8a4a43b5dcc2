"""Copies of training scans among generated volumes: what resemblance is ordinary is learnt from held-out scans.

Nearest training neighbours against those of held-out scans: Dar et al. 2024 (arXiv 2402.01054), here in image and latent
space (`resemblance.py`) instead of features learnt for it. The test of the whole set: Meehan et al. 2020 (arXiv 2004.05675).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from tqdm import tqdm

from ..data.bids import find_volumes
from ..model.training_record import check_baselines
from ..shared.files import write_json
from ..shared.tables import write_table
from ..training.latents import LatentDataset
from .memorisation_report import draw_distances, draw_pairs, write_audit_section
from .nearest_scan import Neighbours, anatomy, threshold, views
from .provenance import read_provenance

__all__ = ["Audit", "audited_volumes"]

FEWEST_HELD_OUT = 6  # chosen: enough for a median
FEWEST_TRAINING = 4
SPACES = ("image", "latent")
KINDS = ("held-out", "sample", "control")


def audited_volumes(
    audited_dir: str | Path | None, data: Mapping[str, Sequence[dict]], spacing_mm: float, cache_file: str | Path | None = None
) -> list[dict]:
    """The generated volumes to audit, checked as by `find_volumes`.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: none given, none in it, other spacing, NaN; or they are the data set's own scans.
    """
    if audited_dir is None:
        raise ValueError("no volumes to audit. Give --audited_dir, the folder that generation wrote to")
    items = find_volumes(audited_dir, spacing_mm, cache_file)
    scans = {Path(item["image"]).resolve() for split in data.values() for item in split}
    own = [item["image"] for item in items if Path(item["image"]).resolve() in scans]
    if own:
        raise ValueError(
            f"audited_dir {audited_dir}: {len(own)} of its {len(items)} volumes, such as {own[0]}, are scans of the data set "
            f"itself and would be copies of themselves. Give the folder of generated volumes"
        )
    return items


class Audit:
    """Compare generated volumes with their nearest training scans, and held-out scans (validation and test) with theirs.

    Held-out scans set the threshold. Training scans that went through the autoencoder, the best copies that a latent
    diffusion model can make, are controls: audited like generated volumes, they must be found.

    One volume and its views are in memory at a time, two of which are encoded together, beside about 1500 numbers for the
    anatomy and one latent of each training scan.

    Args:
        data: of `read_dataset`.
        audited_dir: the folder of generated volumes; None where the audit is not run.
        latents: of the training, validation and test scans, in this order; its autoencoder encodes all other volumes.
        transform: from an item of `audited_volumes` to "image" (1, D, H, W), intensities as written.
        output_dir: receives memorisation.tsv (a row per volume), memorisation.json, two figures, memorisation.section.json.
        max_flagged: share of flagged volumes above which `run` ends the program with status 1.
        min_detected: share of the controls that must be flagged. With fewer the audit has no power, and ends with 1 as well.
        controls: how many training scans serve as controls.
        neighbours: of `Neighbours`.
        pairs: of volume and nearest training scan to draw, the closest first.
        cache_file: of `find_volumes`.

    Raises:
        ValueError: shares that are not 0 to 1.
    """

    def __init__(
        self,
        data: Mapping[str, Sequence[dict]],
        audited_dir: str | Path | None,
        latents: LatentDataset,
        transform: Callable,
        output_dir: str | Path,
        max_flagged: float = 0.0,
        min_detected: float = 0.8,
        controls: int = 12,
        neighbours: int = 5,
        pairs: int = 4,
        cache_file: str | Path | None = None,
        models_dir: str | Path = "",
    ) -> None:
        for name, share in (("max_flagged", max_flagged), ("min_detected", min_detected)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} is a share, 0 to 1, got {share}")
        self.data, self.audited_dir, self.cache_file = data, audited_dir, cache_file
        self.latents, self.models_dir = latents, models_dir
        self.transform = transform
        self.output_dir = Path(output_dir)
        self.max_flagged, self.min_detected = max_flagged, min_detected
        self.controls, self.neighbours, self.pairs = controls, neighbours, pairs
        self.participants = [item["participant_id"] for item in data["training"]]
        self.held_out = [*data["validation"], *data["test"]]
        self.audited: list[dict] = []
        self.provenance: dict = {}

    def check(self) -> None:
        """Refuse what cannot be audited, before work starts.

        Raises:
            FileNotFoundError, ValueError: as `audited_volumes`, `read_provenance`; too few held-out scans or training
                participants.
        """
        if len(self.held_out) < FEWEST_HELD_OUT:
            counts = ", ".join(f"{split}: {len(self.data[split])}" for split in ("validation", "test"))
            raise ValueError(
                f"{len(self.held_out)} held-out scans ({counts}); at least {FEWEST_HELD_OUT} are needed to know which "
                f"resemblance is ordinary. Keep more scans out of training"
            )
        if (count := len(set(self.participants))) < FEWEST_TRAINING:
            raise ValueError(f"{count} training participants; at least {FEWEST_TRAINING} are needed for an audit")
        self.audited = audited_volumes(self.audited_dir, self.data, self.latents.spacing_mm, self.cache_file)
        self.provenance = read_provenance(self.audited, str(self.audited_dir))
        check_baselines(self.data, self.models_dir, self.provenance)

    @torch.inference_mode()
    def run(self) -> dict:
        """Audit, write everything, print the verdict.

        Returns:
            what memorisation.json holds.

        Raises:
            FileNotFoundError, ValueError: as `check`; a volume that is constant where the brain should be, or whose latent is
                not finite.
            SystemExit: status 1, after everything is written, where the audit is not passed.
        """
        self.check()
        self.latents.encode()
        rows = self._rows()
        summary = self._summarise(rows)
        self._write(rows, summary)
        verdict = "passed" if summary["passed"] else "NOT passed"
        print(f"Memorisation audit {verdict}: {summary['verdict']}. Closest pairs: {self.output_dir / 'memorisation.png'}")
        if not summary["passed"]:
            raise SystemExit(1)
        return summary

    def _rows(self) -> list[dict]:
        """Every volume with its nearest training scan in both spaces; one volume in memory at a time."""
        n = len(self.participants)
        anatomies = [self._anatomy(self._scan(i), self.latents.data[i]) for i in tqdm(range(n), "training scans", leave=False)]
        mus = torch.empty(n, self.latents[0]["mu"].numel())
        for i, mu in enumerate(mus):
            mu.copy_(self.latents[i]["mu"].flatten())
        self.spaces = {
            "image": Neighbours(torch.stack(anatomies), self.participants, self.neighbours),
            "latent": Neighbours(mus, self.participants, self.neighbours),
        }
        rows = []
        for i, item in enumerate(tqdm(self.held_out, "held-out scans", leave=False)):
            rows.append(self._row("held-out", item, self._scan(n + i)))
        for item in tqdm(self.audited, "generated volumes", leave=False):
            rows.append(self._row("sample", item, self._sample(item)))
        for i in np.linspace(0, n - 1, min(self.controls, n)).round().astype(int).tolist():
            rows.append(self._row("control", self.latents.data[i], self._through_autoencoder(i)))
        return rows

    def _scan(self, index: int) -> torch.Tensor:
        return torch.as_tensor(self.latents.transform(self.latents.data[index])["image"])

    def _sample(self, item: Mapping) -> torch.Tensor:
        return torch.as_tensor(self.transform({"image": item["image"]})["image"])

    def _through_autoencoder(self, index: int) -> torch.Tensor:
        mu = self.latents[index]["mu"][None].to(self.latents.device)
        with torch.autocast(mu.device.type, dtype=torch.bfloat16, enabled=self.latents.amp):
            return self.latents.autoencoder.decode(mu)[0].float().cpu().clamp(0, 1)

    def _mu(self, volumes: torch.Tensor, item: Mapping) -> torch.Tensor:
        with torch.autocast(self.latents.device.type, dtype=torch.bfloat16, enabled=self.latents.amp):
            mu, _ = self.latents.autoencoder.encode(volumes.to(self.latents.device))
        if not torch.isfinite(mu).all():
            raise ValueError(f"{item['image']}: its latent is not finite; the autoencoder has diverged")
        return mu.float().cpu().flatten(1)

    def _anatomy(self, volume: torch.Tensor, item: Mapping) -> torch.Tensor:
        try:
            return anatomy(volume, self.latents.spacing_mm)
        except ValueError as error:
            raise ValueError(f"{item['image']}: {error}") from error

    def _row(self, kind: str, item: Mapping, volume: torch.Tensor) -> dict:
        seen = dict(views(volume, self.latents.spacing_mm))
        sides = {name: seen[name] for name in ("as it is", "mirrored")}  # a latent's voxels are too large for the shifts
        matches = {
            "image": self.spaces["image"].match(torch.stack([self._anatomy(v, item) for v in seen.values()]), list(seen)),
            "latent": self.spaces["latent"].match(self._mu(torch.stack(list(sides.values())), item), list(sides)),
        }
        return {"kind": kind, "participant_id": item["participant_id"], "image": item["image"], "matches": matches}

    def _summarise(self, rows: Sequence[dict]) -> dict:
        """The numbers of the audit. Tells each row whether it is flagged, and in which space it stands out more."""
        limits = {space: threshold(_distances(rows, "held-out", space)) for space in SPACES}
        for row in rows:
            margins = {space: row["matches"][space].relative_distance - limits[space] for space in SPACES}
            row["space"] = min(margins, key=margins.get)
            row["margin"] = margins[row["space"]]
            row["flagged"] = row["margin"] < 0
        counts = {kind: _count([row["flagged"] for row in rows if row["kind"] == kind]) for kind in KINDS}
        powerful = counts["control"]["share"] >= self.min_detected
        (samples, flagged), (controls, found) = ((counts[kind]["n"], counts[kind]["flagged"]) for kind in ("sample", "control"))
        verdict = f"{flagged} of {samples} generated volumes flagged ({self.max_flagged:.1%} allowed)"
        verdict += f"; of {controls} training scans through the autoencoder, the controls, {found} found"
        if not powerful:
            verdict += f", fewer than {self.min_detected:.0%}: this audit would miss copies"
        return {
            "passed": bool(counts["sample"]["share"] <= self.max_flagged and powerful),
            "verdict": verdict,
            "audited": {"folder": str(self.audited_dir), "n": len(self.audited), "provenance": self.provenance},
            "max_flagged": self.max_flagged,
            "min_detected": self.min_detected,
            "training_scans": len(self.participants),
            "neighbours": self.spaces["image"].neighbours,
            "counts": counts,
            "spaces": {space: {"threshold": limits[space], **_compare(rows, space)} for space in SPACES},
        }

    def _write(self, rows: Sequence[dict], summary: Mapping) -> None:
        self.output_dir.mkdir(parents=True, exist_ok=True)
        columns = ["kind", "participant_id", "file", "flagged"]
        lines = [columns + [f"{s}_{name}" for s in SPACES for name in ("nearest", "r", "relative_distance", "view")]]
        for row in rows:
            cells = [row["kind"], row["participant_id"], row["image"], str(row["flagged"]).lower()]
            for match in row["matches"].values():
                cells += [self.participants[match.scan], f"{match.r:.4f}", f"{match.relative_distance:.4f}", match.view]
            lines.append(cells)
        write_table(self.output_dir / "memorisation.tsv", lines)
        write_json(self.output_dir / "memorisation.json", dict(summary))
        samples = sorted((row for row in rows if row["kind"] == "sample"), key=lambda row: row["margin"])
        draw_pairs(self.output_dir / "memorisation.png", [self._pair(row, summary) for row in samples[: self.pairs]])
        distances = {space: {kind: _distances(rows, kind, space) for kind in KINDS} for space in SPACES}
        limits = {space: summary["spaces"][space]["threshold"] for space in SPACES}
        draw_distances(self.output_dir / "memorisation_distances.png", distances, limits)
        write_audit_section(self.output_dir, summary, pairs=min(self.pairs, len(samples)))

    def _pair(self, row: Mapping, summary: Mapping) -> dict:
        """A generated volume, seen as it fits best, and its nearest training scan."""
        space, match = row["space"], row["matches"][row["space"]]
        seen = "" if match.view == "as it is" else f", {match.view}"
        limit = summary["spaces"][space]["threshold"]
        return {
            "sample": dict(views(self._sample(row), self.latents.spacing_mm))[match.view][0],
            "scan": self._scan(match.scan)[0],
            "titles": [
                f"{row['participant_id']}{seen}",
                f"nearest in {space} space: {self.participants[match.scan]}",
                f"r {match.r:.2f}, relative distance {match.relative_distance:.2f} (flagged below {limit:.2f})",
            ],
            "flagged": row["flagged"],
        }


def _distances(rows: Sequence[dict], kind: str, space: str) -> np.ndarray:
    return np.array([row["matches"][space].relative_distance for row in rows if row["kind"] == kind])


def _count(flags: Sequence[bool]) -> dict:
    """How many are flagged, with the exact 95 % interval of their share."""
    interval = stats.binomtest(sum(flags), len(flags)).proportion_ci()
    share = {"share": sum(flags) / len(flags), "share_95": [float(interval.low), float(interval.high)]}
    return {"n": len(flags), "flagged": sum(flags), **share}


def _compare(rows: Sequence[dict], space: str) -> dict:
    """Spread of r and relative distance by kind, and whether generated volumes as a whole are nearer than held-out scans."""
    samples, held_out = _distances(rows, "sample", space), _distances(rows, "held-out", space)
    test = stats.mannwhitneyu(samples, held_out, alternative="less")
    spread = {
        kind: {
            "r": _quantiles([row["matches"][space].r for row in rows if row["kind"] == kind]),
            "relative_distance": _quantiles(_distances(rows, kind, space)),
        }
        for kind in KINDS
    }
    return {
        "probability_nearer": float(1 - test.statistic / (len(samples) * len(held_out))),
        "p": float(test.pvalue),
        "share_below_5th_percentile": float((samples < np.quantile(held_out, 0.05)).mean()),
        **spread,
    }


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    return {"lowest": float(np.min(values)), "median": float(np.median(values)), "highest": float(np.max(values))}
