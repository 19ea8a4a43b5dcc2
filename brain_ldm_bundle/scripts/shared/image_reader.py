"""Load images in MONAI's transforms with the function that checks them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import nibabel as nib
from monai.config import PathLike
from monai.data import NibabelReader
from monai.utils import ensure_tuple

from .nifti import read_volume


class CheckedReader(NibabelReader):
    """Read an image with `nifti.read_volume`, or another function of its path, in MONAI's `LoadImaged`.

    MONAI's own reader takes another affine than the checks if pixdim and sform disagree.
    """

    def __init__(self, read_image: Callable[[PathLike], nib.Nifti1Image] = read_volume) -> None:
        super().__init__()
        self.read_image = read_image

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs) -> tuple[PathLike, ...]:
        """Return the paths. Reading is left to `get_data`, because MONAI tries other readers if `read` refuses a file."""
        self.filenames = ensure_tuple(data)
        return self.filenames

    def get_data(self, img: Sequence[PathLike]) -> tuple:
        """Return voxels (X, Y, Z) and metadata."""
        return super().get_data([self.read_image(path) for path in img])
