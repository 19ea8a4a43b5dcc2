"""Write generated volumes in MNI space to a BIDS derivative data set, with covariates in sidecars and participants.tsv."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike

from ..shared.base_derivative import BaseDerivative
from ..shared.files import write_json
from ..shared.head_mask import head_mask
from ..shared.label_files import read_names
from ..shared.label_table import LabelTable
from ..shared.tables import write_table
from .covariates import CovariateSchema, Request

NOTICE = "Synthetic image, made by a generative model. Not a scan. For research, not for clinical use."
SPACE = "MNI152, rigid: axes and origin are the template's, the head keeps its own size"
SMALLEST_HEAD_L = 2.1  # chosen: brains are smaller; heads with skull and scalp, as far as the image shows them, are larger
PROVENANCE = ("Seed", "Sampler", "Steps", "GuidanceScale", "PredictionType", "WeightsSHA256")


class Derivative(BaseDerivative):
    """Write generated volumes to a folder, see `BaseDerivative`.

    Args:
        output_dir: folder that is new, empty, or written by an earlier run.
        schema: covariates of the requests.
        affine: matrix (4, 4) from voxel indices to RAS millimetres in MNI space, such as `mni_box.affine(spacing_mm)`.
        shape: number of voxels along each axis, such as `mni_box.size(spacing_mm)`.
        dtype: type of the voxels on disk: "uint8", or "float32" for the model's output without rounding.
        name: name of the data set.
        covariates_are: origin of the covariates, for the table. Reconstructions have the covariates of their scans.
        verify: whether to read finished volumes to their end before they are left out.
    """

    generator, notice, required, mark = "brain_ldm_bundle", NOTICE, PROVENANCE, "Covariates"

    def __init__(
        self,
        output_dir: str | Path,
        schema: CovariateSchema,
        affine: ArrayLike,
        shape: Sequence[int],
        dtype: str = "uint8",
        name: str = "Synthetic T1-weighted brain MRI",
        covariates_are: str = "requested of the model",
        verify: bool = False,
    ) -> None:
        self.schema = schema
        self.affine = np.asarray(affine, dtype=float)
        self.shape = tuple(int(n) for n in shape)
        self.covariates_are = covariates_are
        rows = "; ".join(" ".join(f"{value:g}" for value in row) for row in self.affine[:3])
        self.stored_as = f"{dtype}, {' x '.join(map(str, self.shape))} voxels, affine {rows}"
        super().__init__(output_dir, dtype, name, verify)

    def image_file(self, request: Request) -> Path:
        """Return the path of a request's volume, `output_dir/sub-X/anat/sub-X_T1w.nii.gz`."""
        return self.output_dir / request.participant_id / "anat" / f"{request.participant_id}_{self.suffix}.nii.gz"

    def is_complete(self, request: Request, provenance: Mapping) -> bool:
        """Check for a complete image with the same covariates, provenance, dtype and grid."""
        content = self._content(request, provenance)
        return self._is_made([self.image_file(request)], content, lambda: (self.shape, self.affine))

    def write(self, request: Request, volume: ArrayLike, provenance: Mapping) -> Path:
        """Write one volume and its sidecar, and return the path of the image. Existing files are replaced.

        Args:
            request: name and covariates of the volume.
            volume: intensities (D, H, W) on the grid of `affine`, as an array or a tensor, which are clipped to 0 to 1; or what
                `stored` returned for them.
            provenance: entries of the sidecar, which must include those in `PROVENANCE`.

        Raises:
            ValueError: voxels are not finite, the shape is wrong, or the provenance lacks an entry.
            OSError: the disk is full or read-only. No incomplete file is left.
        """
        image_file, sidecar = self.image_file(request), self._content(request, provenance)
        if np.shape(volume) != self.shape:
            raise ValueError(f"{image_file.name}: expected a volume of {self.shape}, got {np.shape(volume)}")
        stored = self.stored(request, volume)
        stripped = bool(_litres(stored, self.affine) < SMALLEST_HEAD_L)
        self._write(image_file, {**sidecar, "SkullStripped": stripped}, {image_file: self._image(stored)})
        return image_file

    def _image(self, stored: np.ndarray) -> nib.Nifti1Image:
        image = nib.Nifti1Image(stored, self.affine)
        image.set_sform(self.affine, code="mni")
        image.set_qform(self.affine, code="mni")
        image.header.set_xyzt_units("mm")
        self._describe(image.header)
        return image

    def _names(self) -> dict[int, str]:
        """Return the names of label values, if the folder holds label maps."""
        path = self.output_dir / "dseg.tsv"
        return read_names(path) if path.exists() else {}

    def _refuse_other_dataset(self) -> None:
        super()._refuse_other_dataset()
        if self.suffix == "T1w" and self._names():
            raise ValueError(f"output_dir {self.output_dir} holds label maps. Choose a new folder for T1w")

    def _content(self, request: Request, provenance: Mapping) -> dict:
        covariates = {}
        for covariate, scaled in zip(self.schema.covariates, request.scaled, strict=True):
            covariates[covariate.name] = {"Value": request.values[covariate.name], "Scaled": scaled}
            if covariate.unit:
                covariates[covariate.name]["Units"] = covariate.unit
        return self._sidecar(provenance, Covariates=covariates, SpatialReference=SPACE)

    def _of_participant(self, sidecar: Mapping) -> dict[str, float | str | None]:
        return {name: entry.get("Value") for name, entry in sidecar["Covariates"].items()}

    def _participants(self, made: Mapping[Path, Mapping]) -> tuple[list[Sequence[str]], dict]:
        made = {image_file.parts[-3]: covariates for image_file, covariates in made.items()}
        names = self.schema.names + sorted({name for values in made.values() for name in values} - set(self.schema.names))
        lines = [["participant_id", *names]]
        for participant, covariates in made.items():
            lines.append([participant, *(_cell(covariates.get(name)) for name in names)])
        columns = {"participant_id": {"Description": "Synthetic subject; its images are not scans"}}
        for covariate in self.schema.covariates:
            column = {"Description": f"{covariate.description} ({self.covariates_are})".strip()}
            if covariate.unit:
                column["Units"] = covariate.unit
            if covariate.levels is not None:
                column["Levels"] = {level: f"scaled to {code:g}" for level, code in covariate.levels.items()}
            columns[covariate.name] = column
        for name in names[len(self.schema.names) :]:
            columns[name] = {"Description": f"Covariate of other weights ({self.covariates_are})"}
        return lines, columns

    def _readme(self) -> str:
        return (
            f"participants.tsv holds the covariates of each image ({self.covariates_are}), participants.json their units.\n"
            "The sidecar of each image states the weights, the sampler and the seed.\n"
            "If it names an EditedImage, the image was made from that scan and may identify its subject.\n\n"
            f"Space: {SPACE}."
        )


class MapDerivative(Derivative):
    """Write generated label maps `sub-X_dseg.nii.gz` to a folder, with `dseg.tsv`, which names their values.

    The voxels are the first label value of each class of `table`, so that tools which read maps with this table take the maps
    as they are. `settings` are further entries of every sidecar.
    """

    notice = "Synthetic label map, made by a generative model. Not of a person. For research, not for clinical use."
    suffix, scaling = "dseg", {"uint8": "", "int16": "", "int32": ""}

    def __init__(self, *args, table: LabelTable, settings: Mapping, **options) -> None:
        self.table, self.settings, self.values = table, settings, table.first_values()
        options |= {"dtype": str(self.values.dtype), "name": "Synthetic label maps of the head"}
        super().__init__(*args, **options)

    def stored(self, request: Request, volume: ArrayLike) -> np.ndarray:
        """Return the label values (D, H, W) of classes, as they are stored."""
        return self.values[np.asarray(volume)]

    def write(self, request: Request, volume: ArrayLike, provenance: Mapping) -> Path:
        """Write what `stored` returned for a map, and its sidecar. "Volumes" in the provenance is about this map alone."""
        image_file, own = self.image_file(request), {"Volumes": provenance.get("Volumes")}
        sidecar = self._content(request, {key: value for key, value in provenance.items() if key not in own})
        if np.shape(volume) != self.shape:
            raise ValueError(f"{image_file.name}: expected a label map of {self.shape}, got {np.shape(volume)}")
        self._write(image_file, {**sidecar, **own}, {image_file: self._image(np.asarray(volume))})
        return image_file

    def _content(self, request: Request, provenance: Mapping) -> dict:
        return super()._content(request, {**provenance, **self.settings})

    def _describe(self, header: nib.Nifti1Header) -> None:
        header["descrip"] = "Synthetic, not for clinical use"

    def _refuse_other_dataset(self) -> None:
        super()._refuse_other_dataset()
        if (self.output_dir / "dataset_description.json").exists() and self._names() != self.table.value_names():
            raise ValueError(
                f"output_dir {self.output_dir} holds T1w, or label maps of another table than {self.table.name!r}. Choose a "
                f"new folder"
            )

    def _write_description(self) -> None:
        write_table(self.output_dir / "dseg.tsv", self.table.dseg_rows())  # first, because the next file marks the data set
        super()._write_description()
        write_json(self.output_dir / "dseg.json", {"SpatialReference": SPACE})  # of the table; a map has its own sidecar

    def _readme(self) -> str:
        return (
            f"dseg.tsv names the label values. participants.tsv holds the covariates of each map ({self.covariates_are}),\n"
            "participants.json their units. The sidecar of each map states the weights, the sampler and the seed, and the\n"
            "volumes that were counted in the map, before and after they were brought to the requested ones.\n\n"
            f"Space: {SPACE}."
        )


def _litres(stored: np.ndarray, affine: np.ndarray) -> float:
    """Measure the head on a grid of about 4 mm, which is within 5 % of 1 mm in five scans, and takes a fiftieth of the time."""
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    steps = [max(round(4 / side), 1) for side in sides]
    coarse = stored[tuple(slice(None, None, step) for step in steps)]
    if coarse.min() == coarse.max():
        return 0.0
    return head_mask(coarse).sum() * np.prod(sides * steps) / 1e6


def _cell(value: float | str | None) -> str:
    if value is None:
        return "n/a"
    return value if isinstance(value, str) else f"{value:.15g}"
