"""Writing volumes to a cohort, and finding those that an interrupted run has written."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from ldm.data.covariates import CovariateSchema
from ldm.data.derivative import PROVENANCE, Derivative
from monai.data import MetaTensor
from monai.transforms import SaveImage
from shared import mni_box
from shared.nifti import read_whole

from .measuring import Case

SPACING_MM = {"published": 1, "middle": 2, "tiny": 4}
COVARIATES = Path(__file__).parents[2] / "brain_ldm_bundle" / "configs" / "covariates.json"
ROWS = 50


def cases(size: str, device: torch.device, amp: bool) -> Iterator[Case]:
    """Make the cases in a temporary folder."""
    spacing_mm = SPACING_MM[size]
    shape, affine = mni_box.size(spacing_mm), mni_box.affine(spacing_mm)
    volume = torch.zeros(shape)
    inside = tuple(slice(side // 5, -side // 5) for side in shape)
    volume[inside] = torch.rand([len(range(side)[cut]) for side, cut in zip(shape, inside)])
    schema = CovariateSchema.from_file(COVARIATES)
    asked = {"age": 65, "sex": "F", "ventricles_ml": 35, "brain_normalised_ml": 1450}
    provenance = dict.fromkeys(PROVENANCE, 0)
    with tempfile.TemporaryDirectory() as folder:
        derivative = Derivative(f"{folder}/ours", schema, affine, shape)
        requests = [schema.request({"participant_id": f"{number:04d}"} | asked) for number in range(ROWS)]
        save = SaveImage(f"{folder}/theirs", dtype="uint8", separate_folder=False, print_log=False)
        image = MetaTensor(volume[None] * 255, affine=torch.from_numpy(affine))
        yield Case(
            "write a volume",
            lambda: save(image),
            lambda: derivative.write(requests[0], volume, provenance),
            "theirs is SaveImage, without a sidecar",
            same=False,
        )
        files = [derivative.write(request, volume, provenance) for request in requests]
        yield Case(
            f"find {ROWS} written volumes",
            lambda: [read_whole(file) for file in files],
            lambda: [derivative.is_complete(request, provenance) for request in requests],
            "theirs reads the voxels",
            same=False,
        )
