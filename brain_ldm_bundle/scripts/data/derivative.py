"""Generated volumes as a BIDS derivative data set: image, sidecar, table; what is made is not made again."""

from __future__ import annotations

import fcntl
import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike

from ..shared.files import atomic, write_json
from ..shared.nifti import read_whole, write_nifti
from .covariates import CovariateSchema, Request

__all__ = ["Derivative"]

BIDS_VERSION = "1.9.0"
GENERATOR = "brain_ldm_bundle"
NOTICE = "Synthetic image, made by a generative model. Not a scan. For research, not for clinical use."
SPACE = "MNI152, rigid: axes and origin are the template's, the head keeps its own size"
PROVENANCE = ("Seed", "Sampler", "Steps", "GuidanceScale", "PredictionType", "WeightsSHA256")

# 1/255 in the header's float32 would read 255 back as 1.00000006. One step below, 255 reads as 0.99999995.
UINT8_SLOPE = np.nextafter(np.float32(1 / 255), np.float32(0))
INTENSITIES = {
    "uint8": "The model's 0 to 1, clipped, rounded to 0 to 255; scl_slope 1/255 reads them back as 0 to 1. "
    "The same for all volumes",
    "float32": "The model's 0 to 1, clipped. The same for all volumes",
}


class Derivative:
    """The folder that generated volumes are written to.

        output_dir/dataset_description.json, README, participants.tsv, participants.json
        output_dir/sub-X/anat/sub-X_T1w.nii.gz, sub-X_T1w.json

    Several processes may write different participants at once; each calls `finish` at its end. The sidecar is written last:
    an image without it counts as not made.

    Args:
        output_dir: new, empty, or of an earlier run.
        schema: of the requests' covariates.
        affine: 4x4, voxel indices to RAS mm in MNI space, such as `scripts.shared.mni_box.affine(spacing_mm)`.
        shape: voxels of a volume, such as `scripts.shared.mni_box.size(spacing_mm)`.
        dtype: "uint8", or "float32" for the values as the model gave them.
        name: of the data set.
        covariates_are: what the table says of them; those of a decoded scan were not requested.

    Raises:
        ValueError: the folder holds another data set; no such dtype.
    """

    def __init__(
        self,
        output_dir: str | Path,
        schema: CovariateSchema,
        affine: ArrayLike,
        shape: Sequence[int],
        dtype: str = "uint8",
        name: str = "Synthetic T1-weighted brain MRI",
        covariates_are: str = "requested of the model",
    ) -> None:
        if dtype not in INTENSITIES:
            raise ValueError(f"dtype must be {' or '.join(INTENSITIES)}, got {dtype!r}")
        self.output_dir = Path(output_dir)
        self.schema = schema
        self.affine = np.asarray(affine, dtype=float)
        self.shape = tuple(int(n) for n in shape)
        self.dtype = dtype
        self.name = name
        self.covariates_are = covariates_are
        self._refuse_other_dataset()
        self.output_dir.mkdir(parents=True, exist_ok=True)
        self._write_description()

    def image_file(self, request: Request) -> Path:
        """Path of the volume of a request, `output_dir/sub-X/anat/sub-X_T1w.nii.gz`."""
        return self.output_dir / request.participant_id / "anat" / f"{request.participant_id}_T1w.nii.gz"

    def is_complete(self, request: Request, provenance: Mapping) -> bool:
        """Whether this very volume is there: same covariates, provenance, dtype and grid, image whole."""
        image_file = self.image_file(request)
        wanted = _plain(self._sidecar(request, provenance))
        made = _read_sidecar(image_file)
        said = wanted.keys() - {"Description", "SoftwareVersions"}
        if made is None or any(made.get(key) != wanted[key] for key in said):
            return False
        try:
            image = read_whole(image_file)
        except ValueError:
            return False
        return image.shape == self.shape and np.allclose(image.affine, self.affine, atol=1e-3)

    def write(self, request: Request, volume: ArrayLike, provenance: Mapping) -> Path:
        """Write one volume and its sidecar, over those of the same participant.

        Args:
            request: name and covariates of the volume.
            volume: (D, H, W) in the order of `affine`, 0 to 1; what lies beyond is clipped. An array or a CPU tensor.
            provenance: Seed, Sampler, Steps, GuidanceScale, PredictionType, WeightsSHA256, and more if wanted.

        Returns:
            The image's path.

        Raises:
            ValueError: NaN or infinite voxels, another shape, a part of provenance missing.
            OSError: no room, no permission; nothing incomplete is left.
        """
        image_file = self.image_file(request)
        sidecar = self._sidecar(request, provenance)
        volume = np.asarray(volume, dtype=np.float32)
        if volume.shape != self.shape:
            raise ValueError(f"{image_file.name}: expected a volume of {self.shape}, got {volume.shape}")
        bad = volume.size - np.count_nonzero(np.isfinite(volume))
        if bad:
            raise ValueError(
                f"{image_file.name}: {bad} of {volume.size} generated voxels are NaN or infinite, nothing was written. "
                f"Sample in float32 (amp false), and see that the weights are finite"
            )
        image_file.parent.mkdir(parents=True, exist_ok=True)
        sidecar_file = _sidecar_file(image_file)
        sidecar_file.unlink(missing_ok=True)  # it would vouch for the new image if this stopped half-way
        write_nifti(image_file, self._nifti(volume))
        write_json(sidecar_file, sidecar)
        return image_file

    def finish(self, requests: Sequence[Request]) -> list[str]:
        """Write participants.tsv and participants.json for all volumes in the folder, of this run and earlier ones.

        Values are taken from the sidecars: the table says what was made, not what was asked.

        Args:
            requests: all requests of this run.

        Returns:
            The participants of `requests` that have no volume.
        """
        folder = os.open(self.output_dir, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)  # of several ranks the last one to come here sees the volumes of all
            return self._finish(requests)
        finally:
            os.close(folder)

    def _finish(self, requests: Sequence[Request]) -> list[str]:
        made = {}
        for image_file in sorted(self.output_dir.glob("sub-*/anat/sub-*_T1w.nii.gz")):
            sidecar = _read_sidecar(image_file)
            if sidecar is not None:
                made[image_file.parts[-3]] = sidecar["Covariates"]
        others = {name for covariates in made.values() for name in covariates} - set(self.schema.names)
        columns = [*self.schema.names, *sorted(others)]
        lines = ["\t".join(["participant_id", *columns])]
        for participant, covariates in made.items():
            lines.append("\t".join([participant, *(_cell(covariates.get(name, {}).get("Value")) for name in columns)]))
        with atomic(self.output_dir / "participants.tsv") as file:
            file.write("".join(f"{line}\n" for line in lines).encode())
        write_json(self.output_dir / "participants.json", self._columns())
        self._write_description()
        return [request.participant_id for request in requests if request.participant_id not in made]

    def _nifti(self, volume: np.ndarray) -> nib.Nifti1Image:
        volume = np.clip(volume, 0, 1)
        if self.dtype == "uint8":
            volume = np.round(volume * 255).astype(np.uint8)
        image = nib.Nifti1Image(volume, self.affine)
        image.set_sform(self.affine, code="mni")
        image.set_qform(self.affine, code="mni")
        header = image.header
        header.set_xyzt_units("mm")
        header["descrip"] = "Synthetic, not for clinical use"
        header["cal_min"], header["cal_max"] = 0, 1
        header.set_slope_inter(UINT8_SLOPE if self.dtype == "uint8" else 1, 0)
        return image

    def _sidecar(self, request: Request, provenance: Mapping) -> dict:
        missing = [key for key in PROVENANCE if key not in provenance]
        if missing:
            raise ValueError(f"provenance lacks {', '.join(missing)}")
        covariates = {}
        for covariate, scaled in zip(self.schema.covariates, request.scaled, strict=True):
            covariates[covariate.name] = {"Value": request.values[covariate.name], "Scaled": scaled}
            if covariate.unit:
                covariates[covariate.name]["Units"] = covariate.unit
        return {
            "Description": NOTICE,
            "Synthetic": True,
            "Covariates": covariates,
            **provenance,
            "SpatialReference": SPACE,
            "IntensityScaling": INTENSITIES[self.dtype],
            "SoftwareVersions": {
                GENERATOR: _bundle_version(),
                "python": platform.python_version(),
                **{package: metadata.version(package) for package in ("torch", "monai", "numpy", "nibabel")},
            },
        }

    def _columns(self) -> dict:
        columns = {"participant_id": {"Description": "Synthetic subject; its images are not scans"}}
        for covariate in self.schema.covariates:
            column = {"Description": f"{covariate.description} ({self.covariates_are})".strip()}
            if covariate.unit:
                column["Units"] = covariate.unit
            if covariate.levels is not None:
                column["Levels"] = {level: f"scaled to {code:g}" for level, code in covariate.levels.items()}
            columns[covariate.name] = column
        return columns

    def _refuse_other_dataset(self) -> None:
        # Images are looked for first: a process that starts at the same time writes the description before any image.
        occupied = any(self.output_dir.glob("sub-*")) or (self.output_dir / "participants.tsv").exists()
        try:
            description = json.loads((self.output_dir / "dataset_description.json").read_text(encoding="utf-8"))
            generators = [entry["Name"] for entry in description.get("GeneratedBy", [])]
        except FileNotFoundError:
            generators = [] if occupied else [GENERATOR]
        except (ValueError, TypeError, KeyError, AttributeError):
            generators = []
        if generators != [GENERATOR]:
            raise ValueError(
                f"output_dir {self.output_dir} holds a data set that {GENERATOR} did not make; it would be mixed with "
                f"synthetic images. Choose a new folder"
            )

    def _write_description(self) -> None:
        write_json(
            self.output_dir / "dataset_description.json",
            {
                "Name": self.name,
                "BIDSVersion": BIDS_VERSION,
                "DatasetType": "derivative",
                "GeneratedBy": [{"Name": GENERATOR, "Version": _bundle_version(), "Description": NOTICE}],
            },
        )
        with atomic(self.output_dir / "README") as file:
            file.write(
                f"{self.name}\n\n{NOTICE}\n\n"
                f"participants.tsv holds the covariates of each image ({self.covariates_are}), participants.json their units.\n"
                "The sidecar of each image says with which weights, sampler and seed it was made.\n"
                "Where it names an EditedImage, the image was made from that scan, and can show whose scan it was.\n\n"
                f"Space: {SPACE}.\nIntensities: {INTENSITIES[self.dtype]}.\n".encode()
            )


def _sidecar_file(image_file: Path) -> Path:
    return image_file.with_name(image_file.name.replace(".nii.gz", ".json"))


def _read_sidecar(image_file: Path) -> dict | None:
    """None where the image counts as not made."""
    try:
        sidecar = json.loads(_sidecar_file(image_file).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return sidecar if isinstance(sidecar, dict) and "Covariates" in sidecar and image_file.is_file() else None


def _plain(content: dict) -> dict:
    """As JSON gives it back: tuples become lists, keys strings."""
    return json.loads(json.dumps(content))


def _cell(value: float | str | None) -> str:
    if value is None:
        return "n/a"
    return value if isinstance(value, str) else f"{value:.15g}"


def _bundle_version() -> str:
    metadata_file = Path(__file__).parents[2] / "configs" / "metadata.json"
    return json.loads(metadata_file.read_text(encoding="utf-8"))["version"] if metadata_file.is_file() else "unknown"
