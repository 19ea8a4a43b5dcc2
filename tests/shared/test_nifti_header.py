"""A header that gives its voxels two places, or none, is refused. Every other header has one place, in checks and in MONAI."""

import gzip

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import LoadImage

from brain_ldm_bundle.scripts.shared.image_reader import CheckedReader
from brain_ldm_bundle.scripts.shared.nifti import open_image, read_whole
from brain_ldm_bundle.scripts.shared.nifti_header import refuse_ambiguous

VALUES = np.arange(6 * 7 * 8, dtype=np.int16).reshape(6, 7, 8)
AFFINE = np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])


def write(path, changes=(), affine=AFFINE, qform=AFFINE, values=VALUES, codes=(4, 4), kind=nib.Nifti1Image):
    """Write an image whose header holds exactly these entries, right or wrong."""
    image = kind(values, None)
    image.header.set_sform(affine, codes[0])
    image.header.set_qform(qform, codes[1])
    content = bytearray(image.to_bytes())
    header = np.frombuffer(content, kind.header_class.template_dtype, count=1)[0]
    for key, value in dict(changes).items():
        header[key] = value
    path.write_bytes(gzip.compress(bytes(content)))
    return path


def pixdim(*sides, qfac=-1.0):
    return np.array([qfac, *sides, *[1.0] * (7 - len(sides))])


def moved(mm, axis=0):
    affine = AFFINE.copy()
    affine[axis, 3] += mm
    return affine


def turned(degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ AFFINE


FLIPPED = AFFINE @ np.diag([-1, 1, 1, 1])
SHEARED = AFFINE @ [[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        # A scanner's pixdim and qform beside an sform in MNI space: MONAI took the qform, 25 mm away from the checked place.
        ({"qform": moved(25) @ np.diag([0.8, 0.8, 0.8, 1]), "changes": {"pixdim": pixdim(1.6, 1.6, 1.6)}}, "by its pixdim"),
        ({"changes": {"pixdim": pixdim(2, 2, 2.01)}}, r"\(2, 2, 2\) mm by its sform, but of \(2, 2, 2.01\) mm by its pixdim"),
        ({"changes": {"pixdim": pixdim(2, 0, 2)}}, r"voxel sizes \(2, 0, 2\) mm"),
        ({"changes": {"pixdim": pixdim(2, -2, 2)}}, r"voxel sizes \(2, -2, 2\) mm"),
        ({"changes": {"pixdim": pixdim(2, np.nan, 2)}}, r"voxel sizes \(2, nan, 2\) mm"),
        ({"qform": moved(50)}, r"its sform \(code 4\) and its qform \(code 4\) are up to 50 mm apart"),
        ({"qform": moved(1, axis=2), "codes": (4, 1)}, r"sform \(code 4\) and its qform \(code 1\) are up to 1 mm apart"),
        ({"qform": FLIPPED, "codes": (1, 1)}, "has two places"),
        ({"qform": turned(180)}, "has two places"),
        ({"qform": turned(5)}, "has two places"),
        ({"changes": {"quatern_b": 0.9, "quatern_c": 0.9}}, "has a qform that is no rotation"),
        ({"changes": {"quatern_d": np.nan}}, "has an affine that cannot be inverted"),
        ({"changes": {"quatern_d": 0.99, "quatern_c": 0.99, "sform_code": 0}}, "has a qform that is no rotation"),
        ({"changes": {"srow_x": np.zeros(4, "f4")}}, "has an affine that cannot be inverted"),
        ({"changes": {"srow_y": np.full(4, np.inf, "f4")}}, "has an affine that cannot be inverted"),
        ({"changes": {"sform_code": 0, "qform_code": 0}}, "has neither a qform nor an sform"),
        ({"changes": {"sform_code": 77}}, "has the unknown sform_code 77"),
        ({"changes": {"sform_code": -1, "qform_code": 0}}, "has the unknown sform_code -1"),
        ({"changes": {"xyzt_units": 1}}, "has lengths in metres"),
        ({"changes": {"xyzt_units": 3 + 8}}, "has lengths in micrometres"),
        ({"changes": {"xyzt_units": 5}}, r"has lengths in an unknown unit \(xyzt_units 5\)"),
        ({"changes": {"scl_slope": np.nan}}, "has the scl_slope nan"),
        ({"changes": {"scl_slope": np.inf}}, "has the scl_slope inf"),
        ({"changes": {"scl_inter": np.nan}}, "has the scl_inter nan"),
        ({"changes": {"dim": [3, 6, 0, 8, 1, 1, 1, 1]}}, r"has the shape \(6, 0, 8\)"),
        ({"changes": {"dim": [3, 6, -7, 8, 1, 1, 1, 1]}}, r"has the shape \(6, -7, 8\)"),
        ({"values": VALUES.astype(np.complex64)}, "has voxels of type complex64"),
        ({"values": np.zeros((6, 7, 8), [("R", "u1"), ("G", "u1"), ("B", "u1")])}, "has voxels of type RGB"),
    ],
)
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_header_without_one_place_is_refused_by_the_checks_and_by_monai(tmp_path, case, message, kind):
    path = write(tmp_path / "scan.nii.gz", **case, kind=kind)
    with pytest.raises(ValueError, match=message):
        open_image(path)
    with pytest.raises(ValueError, match=f"^{path}: "):
        LoadImage(reader=CheckedReader())(path)


@pytest.mark.parametrize(
    ("case", "affine"),
    [
        ({}, AFFINE),
        ({"codes": (4, 0), "qform": moved(50)}, AFFINE),  # a qform with the code 0 does not count
        ({"codes": (0, 1), "affine": moved(50)}, AFFINE),  # nor does such an sform
        ({"codes": (2, 1)}, AFFINE),
        ({"codes": (5, 1)}, AFFINE),
        ({"affine": turned(180), "qform": turned(180)}, turned(180)),
        ({"affine": turned(179.99), "qform": turned(179.99)}, turned(179.99)),
        ({"qform": moved(0.1)}, AFFINE),
        ({"changes": {"pixdim": pixdim(2.0005, 2, 2)}}, AFFINE),  # rounded
        ({"affine": FLIPPED, "qform": FLIPPED, "changes": {"pixdim": pixdim(2, 2, 2, qfac=0)}}, FLIPPED),  # as SPM writes it
        ({"changes": {"xyzt_units": 0}}, AFFINE),
        ({"changes": {"xyzt_units": 2 + 16}}, AFFINE),
        ({"changes": {"scl_slope": 0, "scl_inter": 0}}, AFFINE),  # not scaled, says NIfTI
        ({"codes": (1, 0), "affine": SHEARED, "changes": {"pixdim": pixdim(2, np.hypot(2, 0.4), 2)}}, SHEARED),
        ({"values": VALUES[:, :, :1]}, AFFINE),
    ],
)
def test_a_header_with_one_place_is_loaded_there(tmp_path, case, affine):
    path = write(tmp_path / "scan.nii.gz", **case)
    np.testing.assert_allclose(open_image(path).affine, affine, atol=1e-4)
    loaded = LoadImage(reader=CheckedReader())(path)
    np.testing.assert_array_equal(loaded.affine.numpy(), open_image(path).affine)
    np.testing.assert_array_equal(loaded.numpy(), case.get("values", VALUES))


def test_every_rotation_that_float32_can_hold_is_accepted():
    """Near 180 degrees the fourth number of a quaternion has only three digits."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        axis = rng.normal(size=3)
        axis /= np.linalg.norm(axis)
        angle = np.pi - 10 ** rng.uniform(-6, 0)
        cross = np.cross(np.eye(3), axis)
        rotation = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = rotation * rng.uniform(0.5, 3), rng.uniform(-150, 150, 3)
        header = nib.Nifti1Header()
        header.set_data_shape([int(255 / np.linalg.norm(affine[:3, 0]))] * 3)
        header.set_sform(affine, 1)
        header.set_qform(affine, 1)
        refuse_ambiguous(header)


def test_a_freesurfer_file_has_the_place_of_its_header_and_needs_one(tmp_path):
    path = tmp_path / "norm.mgz"
    nib.save(nib.MGHImage(VALUES, turned(30)), path)
    np.testing.assert_allclose(read_whole(path).affine, turned(30), atol=1e-4)
    np.testing.assert_array_equal(LoadImage(reader=CheckedReader())(path).numpy(), VALUES)
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[28:30] = bytes(2)  # goodRASFlag
    path.write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(ValueError, match="goodRASFlag"):
        open_image(path)
