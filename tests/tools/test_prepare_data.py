"""Raw scans become a BIDS data set on the models' box. Unusable scans are refused with a reason."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import bids_validator
import nibabel as nib
import numpy as np
import pandas as pd
import prepare_data
import pytest
import SimpleITK as sitk
from conftest import ROOT
from nilearn.datasets import load_mni152_template, load_mni152_wm_template
from PIL import Image
from preparation.defacing import deface
from preparation.intensities import correct_bias
from preparation.reading import read_mask, read_scan
from registration.assessment import MEASURES
from registration.template import to_sitk
from scipy.spatial.transform import Rotation
from shared.simulated import is_simulated
from tools.test_registration import errors, moved_head

SPACING_MM = 4
HEAD_SCALE = 0.9


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """A BIDS folder: sub-good, whose head is small, turned and stored as PIR, and many that cannot be used."""
    root = tmp_path_factory.mktemp("raw")
    good, scan_to_mni = moved_head((12, -8, 10), (8, -12, 15), HEAD_SCALE, (2, 2.5, 3), "PIR")
    data = good.get_fdata(dtype=np.float32)

    def save(subject, data=data, affine=good.affine, name=None):
        folder = root / subject / "anat"
        folder.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(data, affine), folder / f"{name or subject}_T1w.nii.gz")
        return folder / f"{name or subject}_T1w.nii.gz"

    save("sub-good")
    mask = nib.Nifti1Image((data > 100).astype(np.uint8), good.affine)
    nib.save(mask, root / "sub-good" / "anat" / "sub-good_T1w_mask.nii.gz")
    save("sub-4d", np.stack([data, data], -1))
    save("sub-nan", np.where(data > 400, np.nan, data))
    save("sub-zero", np.zeros_like(data))
    save("sub-zscored", (data - data.mean()) / data.std())
    save("sub-coarse", affine=good.affine @ np.diag([1, 1, 2.5, 1]))
    save("sub-shear", affine=good.affine @ np.array([[1, 0, 0, 0], [0, 1, 0.2, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
    truncated = save("sub-truncated")
    truncated.write_bytes(truncated.read_bytes()[:50_000])
    nameless = save("sub-nocode")
    image = nib.load(nameless)
    image.set_sform(None, code=0)
    image.set_qform(None, code=0)
    nib.save(nib.Nifti1Image(image.get_fdata(dtype=np.float32), None, image.header), nameless)
    save("sub-twice", name="sub-twice_run-1")
    save("sub-twice", name="sub-twice_run-2")
    save("sub-unlisted")

    listed = sorted(path.name for path in root.glob("sub-*") if path.name != "sub-unlisted") + ["sub-absent"]
    table = pd.DataFrame({"participant_id": listed, "age": ["061.50"] * len(listed), "sex": ["n/a"] * len(listed)})
    table.to_csv(root / "participants.tsv", sep="\t", index=False)
    (root / "participants.json").write_text('{"age": {"Units": "years"}}')
    return root, scan_to_mni


@pytest.fixture(scope="module")
def prepared(raw, tmp_path_factory):
    """The folder that comes of it, and the exit status."""
    out_dir = tmp_path_factory.mktemp("prepared")
    status = prepare_data.main([str(raw[0]), str(out_dir), "--spacing_mm", str(SPACING_MM)])
    return out_dir, status


def scan_of(folder, subject="sub-good"):
    return nib.load(folder / subject / "anat" / f"{subject}_T1w.nii.gz")


def sidecar_of(folder, subject="sub-good"):
    return json.loads((folder / subject / "anat" / f"{subject}_T1w.json").read_text())


def test_volume_lies_on_the_box_in_ras_order_and_is_called_mni(prepared):
    image = scan_of(prepared[0])
    assert image.shape == (40, 56, 40)
    assert np.diag(image.affine)[:3] == pytest.approx([4, 4, 4])
    assert image.affine[:3, 3] == pytest.approx([-77.019, -123.977, -59.054], abs=1e-3)
    assert int(image.header["sform_code"]) == int(image.header["qform_code"]) == 4
    assert image.get_qform() == pytest.approx(image.affine, abs=1e-3)


def test_sidecar_gives_the_rigid_transform_in_millimetres(raw, prepared):
    angle_deg, distance_mm = errors(np.array(sidecar_of(prepared[0])["ScanToMniRasMm"]), raw[1])
    assert angle_deg < 1.5
    assert distance_mm < 1.5


def test_head_size_survives(prepared):
    """Brain volume is a covariate: a head of 0.9 times the template's size keeps 0.9 cubed of its volume."""
    template = load_mni152_template(resolution=1)
    expected_ml = np.count_nonzero(template.get_fdata() > 0.3) / 1000 * HEAD_SCALE**3
    volume = scan_of(prepared[0]).get_fdata()
    voxel_ml = SPACING_MM**3 / 1000
    assert np.count_nonzero(volume > 0.3) * voxel_ml == pytest.approx(expected_ml, rel=0.05)


def test_every_side_of_the_head_is_where_it_was(prepared):
    """Against the template itself, shrunk about the centre of the brain, on the same grid."""
    image = scan_of(prepared[0])
    template = load_mni152_template(resolution=1)
    points_mm = nib.affines.apply_affine(image.affine, np.stack(np.indices(image.shape), -1))
    centre_mm = np.array([0, -18, 5])
    voxels = nib.affines.apply_affine(np.linalg.inv(template.affine), (points_mm - centre_mm) / HEAD_SCALE + centre_mm)
    voxels = np.clip(np.rint(voxels).astype(int), 0, np.array(template.shape) - 1)
    expected = template.get_fdata()[tuple(np.moveaxis(voxels, -1, 0))]
    volume = image.get_fdata()
    assert np.corrcoef(volume.ravel(), expected.ravel())[0, 1] > 0.95
    # the template is nearly symmetric: left and right are told apart inside the brain, where the noise is small
    inside = (expected > 0.3) & (expected[::-1] > 0.3)
    right = np.corrcoef(volume[inside], expected[inside])[0, 1]
    assert right > np.corrcoef(volume[::-1][inside], expected[inside])[0, 1]


def test_white_matter_is_08_and_the_constant_restores_the_scan(prepared):
    image = scan_of(prepared[0])
    volume = image.get_fdata()
    assert volume.min() == 0 and volume.max() <= 1
    # the phantom is the template in units of 1/800
    template, white = load_mni152_template(resolution=1).get_fdata(), load_mni152_wm_template(resolution=1).get_fdata()
    assert sidecar_of(prepared[0])["IntensityOfOne"] == pytest.approx(800 * np.median(template[white > 0.9]) / 0.8, rel=0.03)


@pytest.mark.slow
def test_brightness_outside_the_brain_moves_white_matter_only_in_the_old_scale(raw, prepared, tmp_path):
    """Fat in the scalp made white matter of whole heads darker than that of heads without skull."""
    scan = nib.load(raw[0] / "sub-good" / "anat" / "sub-good_T1w.nii.gz")
    data = scan.get_fdata(dtype=np.float32)
    data[:, -4:] = 1300  # PIR: bright fat below the brain
    nib.save(nib.Nifti1Image(data, scan.affine), tmp_path / "sub-good_T1w.nii.gz")
    ones = {}
    for scale in ("white_matter", "brightest"):
        arguments = [
            tmp_path / "sub-good_T1w.nii.gz",
            tmp_path / scale,
            "--spacing_mm",
            "4",
            "--intensity",
            scale,
            "--keep_suspicious",
        ]
        assert prepare_data.main([str(argument) for argument in arguments]) == 0
        ones[scale] = sidecar_of(tmp_path / scale)["IntensityOfOne"]
    assert ones["white_matter"] == pytest.approx(sidecar_of(prepared[0])["IntensityOfOne"], rel=0.03)
    assert ones["brightest"] > 1.25 * ones["white_matter"]


@pytest.mark.parametrize(
    ("subject", "reason"),
    [
        ("sub-4d", r"has 4 dimensions \(.*, 2\)"),
        ("sub-nan", r"\d+ voxels that are NaN"),
        ("sub-zero", "is 0 everywhere"),
        ("sub-zscored", "not a magnitude image"),
        ("sub-coarse", r"5\.00 .* mm; each side must be 0.1 to 3 mm long"),
        ("sub-shear", "shear"),
        ("sub-truncated", "cannot be read to its end"),
        ("sub-nocode", "neither a qform nor an sform"),
        ("sub-twice", r"2 scans \(sub-twice_run-1_T1w.nii.gz, sub-twice_run-2_T1w.nii.gz\)"),
        ("sub-unlisted", "no row in participants.tsv"),
        ("sub-absent", "no file matches"),
    ],
)
def test_failed_subject_is_reported_with_its_reason_and_leaves_nothing(prepared, subject, reason):
    out_dir, _ = prepared
    failures = pd.read_csv(out_dir / "failures.tsv", sep="\t", index_col="participant_id")
    assert re.search(reason, failures.loc[subject, "reason"])
    assert not (out_dir / subject).exists()


def test_tables_hold_the_subjects_that_succeeded_unchanged(raw, prepared):
    out_dir, status = prepared
    assert status == 1
    table = pd.read_csv(out_dir / "participants.tsv", sep="\t", dtype=str, keep_default_na=False)
    assert table.to_dict("records") == [{"participant_id": "sub-good", "age": "061.50", "sex": "n/a"}]
    assert json.loads((out_dir / "participants.json").read_text()) == {"age": {"Units": "years"}}
    registrations = pd.read_csv(out_dir / "registration.tsv", sep="\t", keep_default_na=False)
    assert list(registrations["participant_id"]) == ["sub-good"]
    assert registrations["template_correlation"][0] > 0.8
    assert registrations["suspicious"][0] == "n/a"
    assert [path.name for path in out_dir.rglob(".*")] == [".bidsignore"]


def test_second_run_skips_what_is_done_and_refuses_other_settings(raw, prepared, capsys):
    out_dir, _ = prepared
    before = (out_dir / "sub-good" / "anat" / "sub-good_T1w.nii.gz").stat().st_mtime_ns
    assert prepare_data.main([str(raw[0]), str(out_dir), "--spacing_mm", str(SPACING_MM)]) == 1
    assert (out_dir / "sub-good" / "anat" / "sub-good_T1w.nii.gz").stat().st_mtime_ns == before
    assert "1 of them done already" in capsys.readouterr().out
    with pytest.raises(ValueError, match="prepared with .*choose another OUT_DIR"):
        prepare_data.prepare_all([raw[0]], out_dir, spacing_mm=2)


def cut_short(image, sidecar, scan):
    image.write_bytes(image.read_bytes()[:-100])


def flip_a_bit(image, sidecar, scan):
    content = bytearray(image.read_bytes())
    content[len(content) // 2] ^= 1
    image.write_bytes(content)


def damage_the_sidecar(image, sidecar, scan):
    sidecar.write_text('{"Settings": ')


def replace_the_scan(image, sidecar, scan):
    status = scan.stat()
    flip_a_bit(scan, None, None)
    os.utime(scan, ns=(status.st_atime_ns, status.st_mtime_ns - 10**9))  # an older copy


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (cut_short, "sub-good_T1w.nii.gz is damaged"),
        (flip_a_bit, "sub-good_T1w.nii.gz is damaged"),
        (damage_the_sidecar, "sub-good_T1w.json: this is not JSON"),
        (replace_the_scan, "sub-good_T1w.nii.gz or its mask has changed"),
    ],
)
def test_stale_and_damaged_results_are_not_called_done(raw, prepared, tmp_path, harm, reason):
    """A scan that was replaced, or an image that was cut short, was called done; a damaged sidecar blocked the run."""
    scan = Path(shutil.copy(raw[0] / "sub-good" / "anat" / "sub-good_T1w.nii.gz", tmp_path))
    shutil.copytree(prepared[0] / "sub-good", tmp_path / "out" / "sub-good")
    work = (scan, "sub-good", tmp_path / "out", sidecar_of(prepared[0])["Settings"])
    assert prepare_data.reason_to_prepare(*work) == ""
    harm(*prepare_data.outputs(tmp_path / "out", "sub-good"), scan)
    assert reason in prepare_data.reason_to_prepare(*work)


@pytest.mark.slow
def test_a_damaged_result_is_named_and_made_again(raw, prepared, tmp_path, capsys):
    shutil.copytree(prepared[0], tmp_path / "out")
    image, sidecar = prepare_data.outputs(tmp_path / "out", "sub-good")
    cut_short(image, sidecar, None)
    scan = raw[0] / "sub-good" / "anat" / "sub-good_T1w.nii.gz"
    assert prepare_data.main([str(scan), str(tmp_path / "out"), "--spacing_mm", str(SPACING_MM)]) == 0
    assert f"sub-good: prepared again, because {image} is damaged" in capsys.readouterr().out
    assert image.read_bytes() == (prepared[0] / "sub-good" / "anat" / image.name).read_bytes()


@pytest.mark.slow
def test_a_full_disk_ends_the_run_in_one_line(raw, tmp_path):
    scan = raw[0] / "sub-good" / "anat" / "sub-good_T1w.nii.gz"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError) as error:
            prepare_data.main([str(scan), str(tmp_path / "out"), "--spacing_mm", str(SPACING_MM)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "sub-good_T1w.nii.gz. Make room or choose another folder" in str(error.value)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def masked(raw, tmp_path_factory):
    """The folder that comes of simulated heads, a scan with a mask of half its head and one without a mask, and the status."""
    folder = tmp_path_factory.mktemp("masked")
    source = raw[0] / "sub-good" / "anat"
    (folder / "dataset_description.json").write_text(json.dumps({"Simulated": True}))
    (folder / "Anna_1.nii.gz").write_bytes((source / "sub-good_T1w.nii.gz").read_bytes())
    mask = nib.load(source / "sub-good_T1w_mask.nii.gz")
    half = np.asarray(mask.dataobj).copy()
    half[: half.shape[0] // 3] = 0  # PIR: no front of the head
    nib.save(nib.Nifti1Image(half, mask.affine), folder / "Anna_1_mask.nii.gz")
    arguments = [str(folder / "Anna_1.nii.gz"), str(folder / "Ben.nii.gz"), str(folder / "out")]
    return folder / "out", prepare_data.main(
        [*arguments, "--spacing_mm", "4", "--mask_suffix", "_mask.nii.gz", "--keep_suspicious"]
    )


def test_brain_mask_removes_all_else_and_files_without_bids_names_get_an_id(masked):
    out_dir, status = masked
    assert status == 1
    volume = scan_of(out_dir, "sub-Anna1").get_fdata()
    assert np.mean(volume == 0) > 0.6
    assert sidecar_of(out_dir, "sub-Anna1")["SkullStripped"] is True
    assert "Ben.nii.gz is missing" in (out_dir / "failures.tsv").read_text()


def test_a_mask_may_hold_probabilities_or_intensities(raw, tmp_path):
    source = raw[0] / "sub-good" / "anat"
    scan, mask = read_scan(source / "sub-good_T1w.nii.gz"), nib.load(source / "sub-good_T1w_mask.nii.gz")
    binary = np.asarray(mask.dataobj)
    for name, values in {"likely": 0.3 + 0.6 * binary, "grey": 200 * binary}.items():
        nib.save(nib.Nifti1Image(values.astype(np.float32), mask.affine), tmp_path / f"{name}.nii.gz")
        read = sitk.GetArrayFromImage(read_mask(tmp_path / f"{name}.nii.gz", scan))
        assert set(np.unique(read)) == {0, 1} and read.sum() == binary.sum()


def test_a_second_call_with_other_scans_does_not_lose_the_rows_of_the_first(prepared, raw, tmp_path):
    out_dir = shutil.copytree(prepared[0], tmp_path / "out")
    scan = shutil.copy(raw[0] / "sub-good" / "anat" / "sub-good_T1w.nii.gz", tmp_path / "b.nii.gz")
    with pytest.raises(ValueError, match="OUT_DIR holds sub-good of an earlier call, which would lose their rows"):
        prepare_data.main([str(scan), str(out_dir), "--spacing_mm", str(SPACING_MM)])
    assert (out_dir / "participants.tsv").read_text() == (prepared[0] / "participants.tsv").read_text()


def test_a_scan_that_fails_now_leaves_no_image_of_an_earlier_one(prepared, raw, tmp_path, capsys):
    out_dir = shutil.copytree(prepared[0], tmp_path / "out")
    study = shutil.copytree(raw[0], tmp_path / "raw")
    (study / "sub-good" / "anat" / "sub-good_T1w.nii.gz").write_bytes(b"broken")
    assert prepare_data.main([str(study), str(out_dir), "--spacing_mm", str(SPACING_MM)]) == 1
    assert not list(out_dir.glob("sub-good/**/*.*"))
    assert capsys.readouterr().out.rstrip().split("\n")[-1].lstrip().startswith("sub-zscored")  # the reasons come last


def test_mask_on_another_grid_is_refused(raw, tmp_path):
    scan = read_scan(raw[0] / "sub-good" / "anat" / "sub-good_T1w.nii.gz")
    mask = nib.load(raw[0] / "sub-good" / "anat" / "sub-good_T1w_mask.nii.gz")
    moved = mask.affine.copy()
    moved[0, 3] += 5
    nib.save(nib.Nifti1Image(np.asarray(mask.dataobj), moved), tmp_path / "mask.nii.gz")
    with pytest.raises(ValueError, match="mask.nii.gz: has another grid"):
        read_mask(tmp_path / "mask.nii.gz", scan)


def test_n4_removes_a_smooth_bias():
    rng = np.random.default_rng(0)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, size) for size in (20, 24, 22)), indexing="ij")
    ball = (x**2 + y**2 + z**2 < 0.7).astype(float)
    data = ball * 500 * np.exp(0.4 * y) + np.abs(rng.normal(0, 5, ball.shape))
    image = to_sitk(data, [8, 8, 8], np.eye(3), np.zeros(3))
    corrected = sitk.GetArrayFromImage(correct_bias(image)).transpose(2, 1, 0)
    spread = [np.std(volume[ball > 0]) / np.mean(volume[ball > 0]) for volume in (data, corrected)]
    assert spread[1] < 0.4 * spread[0]


def test_coarse_grid_averages_instead_of_skipping_voxels():
    """A checkerboard of single voxels must come out grey, not black or white."""
    data = np.indices((48, 60, 56)).sum(0) % 2 * 100.0
    image = to_sitk(data, [1, 1, 1], np.eye(3), np.zeros(3))
    grid = to_sitk(np.zeros((6, 7, 8)), [4, 4, 4], np.eye(3), np.array([10.0, 12, 11]))
    identity = sitk.AffineTransform(3)
    assert prepare_data.resample(image, grid, identity, sitk.sitkBSpline) == pytest.approx(50, abs=2)


@pytest.mark.parametrize("spacing_mm", [0, -1, 3, 1.5])
def test_spacing_that_does_not_divide_the_box_is_refused(spacing_mm):
    with pytest.raises(ValueError, match="spacing_mm .* does not divide"):
        prepare_data.box(spacing_mm)


def test_command_line_refuses_bad_folders_before_work_starts(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "study").mkdir()
    (tmp_path / "excel").mkdir()
    (tmp_path / "excel" / "participants.csv").write_text("participant_id,age\n")
    (tmp_path / "study" / "participants.tsv").write_text("participant_id\tage\n")
    for arguments, message in [
        ([tmp_path / "nowhere", tmp_path / "out"], "nowhere: no such file or folder"),
        ([tmp_path / "empty", tmp_path / "empty"], "OUT_DIR must differ"),
        ([tmp_path / "empty", tmp_path / "out"], "no file matches sub-"),
        ([tmp_path / "empty", tmp_path / "new.nii.gz"], "new.nii.gz: OUT_DIR, the last argument, must be a folder"),
        ([tmp_path / "empty", tmp_path / "out", "--mask_suffix", ".nii.gz"], "--mask_suffix .nii.gz: give the end of"),
        ([tmp_path / "empty", tmp_path / "out", "--mask_suffix", "/a"], "--mask_suffix /a: give the end of"),
        ([tmp_path / "excel", tmp_path / "out"], "participants.csv: would be ignored. Save it as participants.tsv"),
        ([tmp_path / "\u5f20.nii.gz", "b.nii", tmp_path / "out"], "\u5f20.nii.gz: its participant cannot be named"),
        ([tmp_path / "empty", tmp_path / "study"], "study: OUT_DIR holds another data set, whose tables would be lost"),
    ]:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            prepare_data.main([str(argument) for argument in arguments])
    assert not (tmp_path / "out").exists()


def test_a_missing_simpleitk_is_named_with_the_command_that_installs_it():
    command = "import sys; sys.modules['SimpleITK'] = None; sys.path.insert(0, 'scripts'); import prepare_data"
    process = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 1
    assert process.stderr == "error: prepare_data.py needs SimpleITK. Install it: pip install SimpleITK\n"


def test_a_run_in_which_every_scan_fails_makes_no_data_set(tmp_path):
    scan = tmp_path / "in" / "sub-a" / "anat" / "sub-a_T1w.nii.gz"
    scan.parent.mkdir(parents=True)
    nib.save(nib.Nifti1Image(np.zeros((8, 9, 10), np.uint8), np.eye(4)), scan)
    assert prepare_data.main([str(tmp_path / "in"), str(tmp_path / "out"), "--spacing_mm", "8"]) == 1
    assert "is 0 everywhere" in (tmp_path / "out" / "failures.tsv").read_text()
    assert not (tmp_path / "out" / "participants.tsv").exists()
    assert prepare_data.main([str(tmp_path / "in"), str(tmp_path / "out"), "--spacing_mm", "8"]) == 1  # may run again


@pytest.mark.slow
def test_several_workers_give_the_same_as_one(raw, prepared, tmp_path):
    prepare_data.main([str(raw[0]), str(tmp_path / "out"), "--spacing_mm", str(SPACING_MM), "--workers", "2"])
    assert scan_of(tmp_path / "out").get_fdata() == pytest.approx(scan_of(prepared[0]).get_fdata(), abs=0.02)


def test_scans_that_are_simulated_stay_so(prepared, masked):
    """Else figures of the prepared data set would call them scans."""
    for out_dir, subject, simulated in ((masked[0], "sub-Anna1", True), (prepared[0], "sub-good", False)):
        assert is_simulated(out_dir) is is_simulated(Path(scan_of(out_dir, subject).get_filename())) is simulated


def test_the_bids_validator_accepts_the_prepared_scans(prepared):
    assert bids_validator.problems(prepared[0]) == []


@pytest.fixture(scope="module")
def cut_off(raw, tmp_path_factory):
    """The lower half of a head, and the folder that comes of it."""
    scan = nib.load(raw[0] / "sub-good" / "anat" / "sub-good_T1w.nii.gz")
    folder = tmp_path_factory.mktemp("cut_off")
    (folder / "in" / "sub-cut" / "anat").mkdir(parents=True)
    nib.save(scan.slicer[:, scan.shape[1] // 2 :], folder / "in" / "sub-cut" / "anat" / "sub-cut_T1w.nii.gz")  # PIR
    (folder / "in" / "participants.tsv").write_text("participant_id\tage\nsub-cut\t50\n")
    return folder / "in", folder / "out", prepare_data.main([str(folder / "in"), str(folder / "out"), "--spacing_mm", "4"])


def test_a_suspicious_scan_is_left_out_with_its_reason(cut_off):
    """Half a head had its row in participants.tsv, and went into training."""
    _, out_dir, status = cut_off
    assert status == 1
    assert not (out_dir / "participants.tsv").exists() and not list(out_dir.glob("sub-*"))
    assert scan_of(out_dir / "suspicious", "sub-cut").shape == (40, 56, 40)
    reason = pd.read_csv(out_dir / "failures.tsv", sep="\t")["reason"][0]
    assert re.match(r"suspicious: only \d\d% of the brain lies in the field of view", reason)
    assert Image.open(out_dir / "registration.png").size[1] > 100


def test_suspicious_scans_come_back_and_go_again_without_new_work(cut_off, tmp_path, capsys):
    source, out_dir = (shutil.copytree(folder, tmp_path / folder.name) for folder in cut_off[:2])
    arguments = [str(source), str(out_dir), "--spacing_mm", "4"]
    assert prepare_data.main([*arguments, "--keep_suspicious"]) == 0
    assert "1 of them done already" in capsys.readouterr().out
    assert (out_dir / "participants.tsv").read_text() == "participant_id\tage\nsub-cut\t50\n"
    assert scan_of(out_dir, "sub-cut").shape == (40, 56, 40) and not (out_dir / "suspicious").exists()
    (out_dir / "sub-cut" / "anat" / "sub-cut_dseg.nii.gz").touch()  # a file of the user
    (out_dir / "participants.tsv").write_text("participant_id\tsplit\tage\ncut\ttest\t51\n")
    assert prepare_data.main([*arguments, "--keep_suspicious"]) == 0  # a user's column is kept, the source has the age
    assert (out_dir / "participants.tsv").read_text() == "participant_id\tage\tsplit\nsub-cut\t50\ttest\n"
    (out_dir / "participants.tsv").write_text("participant_id\tage\tsplit\nsub-cut\t50\ttest\nmine\t60\t\nsub-gone\t40\t\n")
    with (out_dir / "registration.tsv").open("a") as file:
        file.write("sub-gone" + "\t0" * len(MEASURES) + "\n")  # its scan was prepared, and then removed from both folders
    (out_dir / "participants.json").write_text('{"split": {"Description": "mine"}}')
    (source / "participants.json").write_text('{"age": {"Units": "years"}}')
    assert prepare_data.main([*arguments, "--keep_suspicious"]) == 0  # and so are a user's row and description
    assert (out_dir / "participants.tsv").read_text().splitlines()[1:] == ["sub-cut\t50\ttest", "sub-mine\t60\tn/a"]
    assert json.loads((out_dir / "participants.json").read_text()).keys() == {"age", "split"}
    (source / "participants.tsv").write_text("participant_id\tyears\nsub-cut\t50\n")
    (source / "participants.json").unlink()
    assert prepare_data.main([*arguments, "--keep_suspicious"]) == 0  # what the source withdraws is not the user's
    rows = ["participant_id\tyears\tsplit", "sub-cut\t50\ttest", "sub-mine\tn/a\tn/a"]
    assert (out_dir / "participants.tsv").read_text().splitlines() == rows
    assert json.loads((out_dir / "participants.json").read_text()).keys() == {"split"}
    sidecar = out_dir / "sub-cut" / "anat" / "sub-cut_T1w.json"
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"SourceSpacingMm": [1, 1, 6.5]}))  # slices of a clinic
    assert prepare_data.main([*arguments, "--keep_suspicious"]) == 0
    said = capsys.readouterr()
    assert "longer voxels than the result: sub-cut (1 x 1 x 6.5 mm). Leave them out, or" in said.out
    assert "keeps 1 row without a scan, such as sub-mine" in said.err
    (out_dir / "participants.tsv").write_text("participant_id\tage\nsub-cut\t50\n")
    assert prepare_data.main(arguments) == 1
    assert not (out_dir / "participants.tsv").exists()
    assert [path.name for path in out_dir.glob("sub-cut/anat/*")] == ["sub-cut_dseg.nii.gz"]


# Points of the template's space (RAS, mm), 4 to 6 mm before or below the brain and 12 to 15 mm: the margin is 8 mm, and without
# the size of the head the places change by more.
KEPT = [(0, 75, 0), (30, 72, -10), (-30, 72, -10), (30, 60, -24), (-30, 60, -24), (12, 50, -36)]
REMOVED = [(8, 86, -5), (30, 85, -10), (-30, 85, -10), (30, 58, -35), (-30, 58, -35), (12, 48, -45)]


def test_defacing_removes_nose_and_eyes_and_leaves_the_brain_with_its_margin():
    """A small, flat head that was turned, on a grid in LAS order with three side lengths and voxel sizes."""
    affine = np.array([[-1.5, 0, 0, 70], [0, 1.2, 0, -120], [0, 0, 1.4, -112], [0, 0, 0, 1]])
    volume = np.ones((96, 184, 132), np.float32)
    to_template = np.eye(4)
    to_template[:3, :3] = np.diag([1 / 0.8, 1 / 0.9, 1 / 0.85]) @ Rotation.from_euler("xz", [-8, 6], degrees=True).as_matrix()
    to_template[:3, 3] = (2, -3, 4)
    defaced = deface(volume, affine, to_template)

    def at(*point_mm):  # in the template
        voxel = nib.affines.apply_affine(np.linalg.inv(to_template @ affine), point_mm)
        return defaced[tuple(np.rint(voxel).astype(int))]

    removed = [*REMOVED, (0, 98, -40), (32, 62, -36), (-32, 62, -36), (0, 85, -65)]  # tip of the nose, eyes, mouth
    kept = [*KEPT, (0, -18, 5), (0, 66, 0), (10, 68, -12), (30, 50, -10), (0, 80, 40), (70, -20, -40), (0, 0, -80)]
    assert [point for point in removed if at(*point) != 0] == []
    assert [point for point in kept if at(*point) != 1] == []


def test_the_face_of_a_small_turned_head_is_found_by_its_registration(tmp_path):
    """The head is the template's brain in air that has noise, so what is blank is exactly 0 and everything else is not."""
    scan, _ = moved_head((12, -8, 10), (8, -12, 15), 0.85, (2, 2.5, 3), "PIR")
    nib.save(nib.Nifti1Image(scan.get_fdata(dtype=np.float32) + 40, scan.affine), tmp_path / "head.nii.gz")
    assert prepare_data.main([str(tmp_path / "head.nii.gz"), str(tmp_path / "out"), "--spacing_mm", "2", "--deface"]) == 0
    [path] = (tmp_path / "out").glob("sub-*/anat/*_T1w.nii.gz")
    image = nib.load(path)
    centre_mm = np.array([0, -18, 5])
    volume = image.get_fdata()

    def at(point_mm):  # in the template
        mni_mm = (np.array(point_mm) - centre_mm) * 0.85 + centre_mm
        return volume[tuple(np.rint(nib.affines.apply_affine(np.linalg.inv(image.affine), mni_mm)).astype(int))]

    assert [point for point in REMOVED if at(point) != 0] == []
    assert [point for point in KEPT if at(point) == 0] == []
    assert sidecar_of(tmp_path / "out", path.parts[-3])["Defaced"] is True


@pytest.mark.parametrize("codes", ["RAS", "LPI", "PIR", "SAL", "ILA", "ASL"])
def test_a_marked_voxel_keeps_its_place_from_any_orientation(tmp_path, codes):
    """A capsule on the left temple, in a scan of three side lengths and voxel sizes."""
    data = np.random.default_rng(0).uniform(1, 50, (20, 26, 22)).astype(np.float32)
    data[3, 17, 9] = 51
    image = nib.Nifti1Image(data, np.array([[2.0, 0, 0, -21], [0, 1.5, 0, -14], [0, 0, 1.2, -9], [0, 0, 0, 1]]))
    change = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes))
    nib.save(image.as_reoriented(change), tmp_path / "scan.nii.gz")
    scan = read_scan(tmp_path / "scan.nii.gz")
    index = np.argwhere(sitk.GetArrayFromImage(scan) == 51)[0][::-1].tolist()
    left, posterior, superior = scan.TransformIndexToPhysicalPoint(index)
    assert (-left, -posterior, superior) == pytest.approx((-15, 11.5, 1.8), abs=1e-4)
