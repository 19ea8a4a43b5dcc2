import hashlib
import json
import re

import make_demo_data
import measure_volumes
import measurement
import nibabel
import numpy as np
import pandas
import pytest
import torch
from measurement import tissue_contrast, volume_net
from measurement.accuracy import describe_accuracy
from measurement.output_table import TEMPLATE_ICV_ML, VOLUMES, complete_row, identity_of, quality_flags, write_table
from shared import mni_box

FIELD_MM = (168, 232, 176)  # three different sides, a little larger than the project's box
LOW_MM = np.array([-83.0, -130.0, -66.0])


def axes_mm(spacing_mm):
    return np.meshgrid(
        *[low + spacing_mm / 2 + np.arange(0, size, spacing_mm) for low, size in zip(LOW_MM, FIELD_MM, strict=True)],
        indexing="ij",
    )


def image_of(values, spacing_mm, axcodes="RAS"):
    """Wrap values in RAS order as NIfTI in the wanted storage order."""
    affine = np.diag([spacing_mm] * 3 + [1.0])
    affine[:3, 3] = LOW_MM + spacing_mm / 2
    image = nibabel.Nifti1Image(values.astype(np.float32), affine)
    change = nibabel.orientations.ornt_transform(
        nibabel.orientations.io_orientation(affine), nibabel.orientations.axcodes2ornt(axcodes)
    )
    return image.as_reoriented(change)


def ramp(x, y, z):
    """Different along every axis and on both sides, linear so that interpolation is exact."""
    return 400 + 1.0 * x + 0.7 * y + 1.9 * z


def head(ventricle_mm, spacing_mm=4.0):
    """Nested ellipsoids with the contrast of a T1w head; `ventricle_mm` is the half width of each lateral ventricle."""
    x, y, z = axes_mm(spacing_mm)

    def inside(centre, half):
        radius = sum(((axis - c) / h) ** 2 for axis, c, h in zip((x, y, z), centre, half, strict=True))
        return radius < 1

    image = np.zeros(x.shape)
    for half_mm, signal in ((85, 0.8), (78, 0.1), (72, 0.25), (69, 0.6), (62, 1.0)):
        image[inside((0, -18, 14), (half_mm - 6, half_mm + 14, half_mm - 6))] = signal
    for side in (-1, 1):
        image[inside((side * 16, -14, 18), (ventricle_mm, 2.6 * ventricle_mm, ventricle_mm))] = 0.2
    return image * 600 + np.random.default_rng(0).normal(0, 6, image.shape)


@pytest.fixture
def save(tmp_path):
    def save_as(name, image):
        nibabel.save(image, tmp_path / name)
        return tmp_path / name

    return save_as


@pytest.mark.parametrize(("spacing_mm", "axcodes"), [(1.0, "LPI"), (2.0, "RAS"), (2.0, "SAR"), (4.0, "ASL")])
def test_every_spacing_and_orientation_lands_on_the_same_millimetres(save, spacing_mm, axcodes):
    image = image_of(ramp(*axes_mm(spacing_mm)), spacing_mm, axcodes)
    found = volume_net.read_on_grid(save("ramp.nii", image))
    corner, shape = mni_box.LOWER_CORNER_MM, volume_net.SHAPE
    assert found.shape == shape == (80, 112, 80)
    centres = np.meshgrid(*[low + 1 + 2 * np.arange(n) for low, n in zip(corner, shape, strict=True)], indexing="ij")
    expected = volume_net.scale_intensity(torch.from_numpy(ramp(*centres)).float())
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


def test_finer_volumes_are_averaged_not_skipped(save):
    affine = np.eye(4)
    affine[:3, 3] = np.array(mni_box.LOWER_CORNER_MM) - 3  # every 2 mm centre is the centre of a 1 mm voxel
    noise = np.random.default_rng(0).normal(1000, 100, FIELD_MM[1:]).astype(np.float32)
    noise = np.broadcast_to(noise, FIELD_MM)  # the same along x, because a volume of noise alone is refused
    found = volume_net.read_on_grid(save("noise.nii", nibabel.Nifti1Image(noise, affine)))
    assert found.std() / found.mean() < 0.06  # 0.1 / sqrt(4) for the mean of 2 x 2 voxels, 0.1 for one of them


def test_volumes_are_probabilities_in_millilitres():
    probabilities = torch.zeros(5, 80, 112, 80)
    probabilities[0] = 1
    block = (slice(None), slice(20, 60), slice(20, 90), slice(20, 60))
    probabilities[block] = torch.tensor([0.0, 0.1, 0.5, 0.4, 0.0])[:, None, None, None]
    for low in (25, 45):
        probabilities[:, low : low + 5, 40:60, 30:40] = torch.tensor([0.0, 0.1, 0.0, 0.1, 0.8])[:, None, None, None]
    found = volume_net.volumes_ml(probabilities)
    ventricle_voxels = 2 * 5 * 20 * 10
    brain_voxels = 40 * 70 * 40 - ventricle_voxels
    assert found["ventricles_ml"] == pytest.approx(0.8 * ventricle_voxels * 0.008, rel=1e-4)
    assert found["brain_ml"] == pytest.approx((0.9 * brain_voxels + 0.1 * ventricle_voxels) * 0.008, rel=1e-4)
    assert found["icv_ml"] == pytest.approx(40 * 70 * 40 * 0.008, rel=1e-4)


def test_islands_do_not_count():
    probabilities = torch.zeros(5, 80, 112, 80)
    probabilities[2, 20:60, 20:90, 20:60] = 1
    for low, size in ((22, 6), (34, 5), (50, 4)):  # a third "ventricle" is a mistake
        probabilities[:, low : low + size, 40:50, 30:40] = torch.tensor([0, 0, 0, 0, 1.0])[:, None, None, None]
    probabilities[3, 70:75, 5:10, 5:10] = 1  # "white matter" in the neck
    probabilities[0] = 1 - probabilities[1:].sum(0)
    found = volume_net.volumes_ml(probabilities)
    assert found["ventricles_ml"] == pytest.approx((6 + 5) * 100 * 0.008, rel=1e-4)
    assert found["brain_ml"] == pytest.approx((40 * 70 * 40 - 15 * 100) * 0.008, rel=1e-4)
    assert found["icv_ml"] == pytest.approx(40 * 70 * 40 * 0.008, rel=1e-4)


def test_no_ventricles_found_measures_zero_and_is_flagged():
    probabilities = torch.zeros(5, 80, 112, 80)
    probabilities[2, 20:60, 20:90, 20:60] = 1
    probabilities[0] = 1 - probabilities[2]
    found = volume_net.volumes_ml(probabilities)
    assert found["ventricles_ml"] == 0
    assert "ventricles_ml_unusual" in quality_flags(found)


def with_nan(values):
    values = values.copy()
    values[3, 4, 5] = np.nan
    return values


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (image_of(with_nan(head(8)), 4.0), "has 1 voxels that are NaN"),
        (image_of(np.zeros((42, 58, 44)), 4.0), "is 0 everywhere"),
        (nibabel.Nifti1Image(np.stack([head(8)] * 2, -1), image_of(head(8), 4.0).affine), "has 4 dimensions"),
        (nibabel.Nifti1Image(head(8), None), "has neither a qform nor an sform"),
        (nibabel.Nifti1Image(head(8), np.diag([4.0, 4, 4, 1])), "register it to MNI space"),
        (nibabel.Nifti1Image(head(8)[::2, ::2, ::2], np.diag([8.0, 8, 8, 1])), "voxels of .8.0, 8.0, 8.0. mm"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_its_name(save, image, message):
    path = save("sub-07_T1w.nii.gz", image)
    with pytest.raises(ValueError, match=message) as refusal:
        volume_net.read_on_grid(path)
    assert "sub-07_T1w.nii.gz" in str(refusal.value)


def noise(values):
    return np.random.default_rng(1).random(values.shape) * (values > 60)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (noise, "neighbouring voxels have a correlation of -?0[.]0., as in noise. Give a T1w"),
        (lambda values: values.max() - values, "fluid is brighter than white matter"),
        (lambda values: values + 400 * (values < 200), "the surroundings are .* as bright as white matter. Is it a T1w"),
        (lambda values: np.select([values > 400, values > 60], [200, values * 3], values), "fluid .* .ventricles .* in a T2w"),
    ],
)
def test_what_is_no_head_is_not_measured(save, change, message):
    [row] = measure_volumes.measure([save("head.nii.gz", image_of(change(head(12)), 4.0))])
    assert re.search(f"head.nii.gz: {message}", row["error"]) and np.isnan(row["brain_ml"])


def test_fluid_that_the_scanner_sets_to_0_is_no_empty_brain():
    labels = np.full((40, 56, 40), 3)
    labels[17:23, 20:40, 18:28] = 4  # 77 mL in the middle of the brain, at 4 mm
    image = np.where(labels == 4, 0.0, 0.8)
    assert "brain_partly_empty" not in tissue_contrast.flags(image, labels, (-80, -132, -72), 4.0)
    assert "brain_partly_empty" in tissue_contrast.flags(image, np.full_like(labels, 3), (-80, -132, -72), 4.0)


def test_half_a_head_is_flagged(save):
    """Half a head was measured without a word."""
    half = head(12)
    half[: half.shape[0] // 2] = 0
    whole, cut = measure_volumes.measure([save(f"{n}.nii", image_of(each, 4.0)) for n, each in enumerate((head(12), half))])
    assert "brain_partly_empty" not in whole["flags"] and "contrast_not_t1w" not in whole["flags"]
    assert cut["error"] or "brain_partly_empty" in cut["flags"]


def test_grey_matter_that_is_as_bright_as_white_matter_is_flagged():
    labels = np.zeros((80, 112, 80), int)
    labels[20:60, 20:90, 20:60], labels[30:50, 30:80, 30:50], labels[38:42, 50:60, 40:44] = 2, 3, 4
    for levels, expected in (((0, 0.1, 0.5, 0.8, 0.2), []), ((0, 0.1, 0.8, 0.5, 0.9), ["contrast_not_t1w"])):
        image = np.array(levels)[labels]
        image[image == 0] = 0.1
        assert tissue_contrast.flags(image, labels, np.subtract(tissue_contrast.BRAIN_CENTRE_MM, (80, 110, 80)), 2) == expected


def test_a_head_that_does_not_lie_in_mni_space_is_flagged(save):
    """A head 25 mm too low in its header had 14 % less intracranial volume, without a flag."""
    paths = []
    for number, move_mm in enumerate([(0, 0, 0), (0, 0, -15), (0, 0, 12), (15, 0, 0), (0, -20, 0)]):
        image = image_of(head(12), 4.0)
        moved = nibabel.affines.from_matvec(np.eye(3), move_mm) @ image.affine
        paths.append(save(f"{number}.nii", nibabel.Nifti1Image(image.dataobj, moved)))
    rows = list(measure_volumes.measure(paths))
    assert ["brain_off_centre" in row["flags"] for row in rows] == [False, True, True, True, True]


def test_fine_and_coarse_voxels_in_one_table_give_a_warning(save, capsys):
    paths = [save(f"{spacing}.nii", image_of(head(12), spacing)) for spacing in (4.0, 2.0)]
    measure_volumes.warn_of_mixed_spacings(paths[:1] * 2)
    assert capsys.readouterr().err == ""
    measure_volumes.warn_of_mixed_spacings(paths)
    assert "voxels of 2 and 4 mm are in one table" in capsys.readouterr().err


def test_a_z_scored_head_has_the_volumes_of_the_head(save):
    values = head(12)
    paths = [save(f"{n}.nii", image_of(each, 4.0)) for n, each in enumerate((values, (values - values.mean()) / values.std()))]
    raw, z_scored = measure_volumes.measure(paths)
    assert raw["error"] == z_scored["error"] == ""
    assert [z_scored[name] for name in VOLUMES] == pytest.approx([raw[name] for name in VOLUMES], rel=0.02)


def test_a_head_z_scored_inside_a_mask_alone_is_refused(save):
    values = head(12)
    mask = values > 30
    values[mask] = (values[mask] - values[mask].mean()) / values[mask].std()
    with pytest.raises(ValueError, match="brain.nii: has a background of 0 and a first percentile of -.*, so tissue is darker"):
        volume_net.read_on_grid(save("brain.nii", image_of(values * mask, 4.0)))


def test_a_truncated_file_is_refused(save):
    path = save("sub-01_T1w.nii.gz", image_of(head(8), 4.0))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match="cannot be read"):
        volume_net.read_on_grid(path)


def test_a_volume_with_a_fourth_axis_of_one_is_a_volume(save):
    image = image_of(head(8), 4.0)
    flat = volume_net.read_on_grid(save("a.nii.gz", image))
    same = nibabel.Nifti1Image(np.asarray(image.dataobj)[..., None], image.affine)
    torch.testing.assert_close(volume_net.read_on_grid(save("b.nii.gz", same)), flat)


def test_shipped_weights_find_larger_ventricles_larger(save):
    paths = [save(f"sub-{mm}_T1w.nii.gz", image_of(head(mm), 4.0)) for mm in (8, 11, 14)]
    rows = list(measure_volumes.measure(paths))
    assert [row["participant_id"] for row in rows] == ["sub-8", "sub-11", "sub-14"]
    volumes = [row["ventricles_ml"] for row in rows]
    assert volumes[0] + 5 < volumes[1] < volumes[2] - 5
    for row in rows:
        expected = row["brain_ml"] * TEMPLATE_ICV_ML / row["icv_ml"]
        assert row["brain_normalised_ml"] == pytest.approx(expected)


def test_storage_order_does_not_change_the_volumes(save):
    paths = [save(f"{codes}.nii.gz", image_of(head(11), 4.0, codes)) for codes in ("RAS", "ASL")]
    first, second = [row["ventricles_ml"] for row in measure_volumes.measure(paths)]
    assert second == pytest.approx(first, rel=1e-3)


def test_refused_volumes_keep_their_place(save):
    good = save("sub-a_T1w.nii.gz", image_of(head(11), 4.0))
    bad = save("sub-b_T1w.nii.gz", image_of(np.zeros((42, 58, 44)), 4.0))
    rows = list(measure_volumes.measure([bad, good, bad, good]))
    assert [bool(row["error"]) for row in rows] == [True, False, True, False]
    assert len({round(row["ventricles_ml"], 3) for row in rows if not row["error"]}) == 1
    assert all(np.isnan(row["brain_ml"]) for row in rows if row["error"])


def test_a_stopped_run_continues_with_what_is_left_and_workers_give_the_same_table(save, tmp_path, monkeypatch):
    paths = [save(f"sub-{mm}_T1w.nii.gz", image_of(head(mm), 4.0)) for mm in (8, 11, 14)]
    bad = save("sub-9_T1w.nii.gz", image_of(np.zeros((42, 58, 44)), 4.0))
    once, twice = tmp_path / "once.tsv", tmp_path / "twice.tsv"
    arguments = ["measure_volumes.py", *map(str, [*paths, bad]), "--output"]
    monkeypatch.setattr("sys.argv", [*arguments, str(once), "--workers", "2"])
    assert measure_volumes.main() == 1

    read = []

    def stop_at_the_third(path):
        read.append(path.name)
        if len(read) == 3:
            raise KeyboardInterrupt
        return volume_net.read_on_grid(path)

    monkeypatch.setattr("sys.argv", [*arguments, str(twice)])
    monkeypatch.setattr(measure_volumes, "read_on_grid", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        measure_volumes.main()
    assert not twice.exists()
    kept = tmp_path / ".twice.tsv.unfinished"
    kept.write_bytes(kept.read_bytes() + b'\n[["cut sho')
    save("sub-8_T1w.nii.gz", image_of(head(8), 4.0))  # a file that is written again is measured again
    read += [""] * 9
    assert measure_volumes.main() == 1
    assert read[12:] == ["sub-8_T1w.nii.gz", "sub-14_T1w.nii.gz", "sub-9_T1w.nii.gz"]
    assert twice.read_text() == once.read_text() and not kept.exists()


def test_command_measures_the_rest_and_exits_1(save, tmp_path, monkeypatch, capsys):
    save("sub-a_T1w.nii.gz", image_of(head(11), 4.0))
    save("sub-b_T1w.nii.gz", image_of(np.zeros((42, 58, 44)), 4.0))
    output = tmp_path / "volumes.tsv"
    monkeypatch.setattr("sys.argv", ["measure_volumes.py", str(tmp_path), "--output", str(output)])
    assert measure_volumes.main() == 1
    table = pandas.read_csv(output, sep="\t")
    columns = ["participant_id", "file", "ventricles_ml", "brain_ml", "icv_ml", "brain_normalised_ml", "flags", "tool"]
    assert table.columns.tolist() == columns
    assert table.participant_id.tolist() == ["sub-a"]
    printed = capsys.readouterr()
    assert "sub-b_T1w.nii.gz: is 0 everywhere" in printed.err
    assert "mae" in printed.out  # the accuracy follows the result
    assert not list(tmp_path.glob("*.part"))


def test_the_table_has_a_column_for_sessions_if_there_are_any(tmp_path):
    """The same participant stood there twice, and nothing said which scan was which."""
    volumes = dict.fromkeys(VOLUMES, 1.0)
    files = ["x/sub-a_ses-2_run-1_T1w.nii.gz", "ses-9/sub-b_T1w.nii.gz"]
    rows = [complete_row(identity_of(file), file, volumes, measure_volumes.TOOL) for file in files]
    write_table(rows, tmp_path / "v.tsv")
    table = pandas.read_csv(tmp_path / "v.tsv", sep="\t", keep_default_na=False)
    assert table.columns[1] == "session_id" and list(table["session_id"]) == ["ses-2", "n/a"]


def test_all_participants_of_a_study_are_measured_and_nothing_else(tmp_path):
    """A participant whose folder is a link was left out, and derivatives were measured as further scans."""
    study = tmp_path / "study"
    for folder in (tmp_path / "elsewhere" / "sub-2", study / "sub-1", study / "derivatives" / "other" / "sub-1"):
        (folder / "anat").mkdir(parents=True)
        for name in (f"{folder.name}_T1w.nii.gz", f"._{folder.name}_T1w.nii.gz", f"{folder.name}_T1w.nii.gz.part"):
            (folder / "anat" / name).touch()
    (study / "sub-2").symlink_to(tmp_path / "elsewhere" / "sub-2")
    names = [f"{name}/anat/{name}_T1w.nii.gz" for name in ("sub-1", "sub-2")]
    assert measure_volumes.find_images([study]) == [study / name for name in names]
    assert measure_volumes.find_images([study / "derivatives" / "other"]) == [study / "derivatives" / "other" / names[0]]
    assert measure_volumes.find_images([tmp_path / "elsewhere"]) == [tmp_path / "elsewhere" / names[1]]


def test_a_scan_that_is_given_twice_is_measured_once(tmp_path):
    (tmp_path / "sub-a" / "anat").mkdir(parents=True)
    scan = tmp_path / "sub-a" / "anat" / "sub-a_T1w.nii.gz"
    scan.touch()
    assert measure_volumes.find_images([tmp_path, tmp_path / "sub-a", scan]) == [scan]


def test_links_of_two_participants_to_one_object_are_two_scans(tmp_path):
    """git-annex stores equal files once. The first of two participants had no row."""
    (tmp_path / "object").touch()
    scans = [tmp_path / "study" / name / "anat" / f"{name}_T1w.nii.gz" for name in ("sub-a", "sub-b")]
    for scan in scans:
        scan.parent.mkdir(parents=True)
        scan.symlink_to(tmp_path / "object")
    assert measure_volumes.find_images([tmp_path / "study"]) == scans


def test_a_folder_without_volumes_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no .*T1w"):
        measure_volumes.find_images([tmp_path])


TRUE_ML = {"ventricles_ml": 200, "brain_ml": 1000, "icv_ml": 1400}


def make_cohort(folder, sizes_mm, columns=VOLUMES, unit=1.0):
    rows = []
    for i, mm in enumerate(sizes_mm):
        path = folder / f"sub-{i}" / "anat" / f"sub-{i}_T1w.nii.gz"
        path.parent.mkdir(parents=True)
        nibabel.save(image_of(head(mm), 4.0), path)
        rows.append({"participant_id": f"sub-{i}", **{name: unit * (TRUE_ML[name] + 5.0 * mm) for name in columns}})
    pandas.DataFrame(rows).to_csv(folder / "participants.tsv", sep="\t", index=False)
    return folder


def test_accuracy_compares_with_the_cohorts_own_table_and_names_what_it_leaves_out(tmp_path, capsys):
    cohort = make_cohort(tmp_path, (8, 10, 12, 14, 9))
    nibabel.save(image_of(np.zeros((42, 58, 44)), 4.0), cohort / "sub-4" / "anat" / "sub-4_T1w.nii.gz")
    rows = measure_volumes.accuracy(cohort)
    assert [row["volume"] for row in rows] == ["ventricles_ml", "brain_ml", "icv_ml"]
    assert rows[0]["n"] == 4 and rows[0]["spacing_mm"] == 4 and rows[0]["r"] > 0.9
    assert rows[0]["bias"] < -100  # measured minus the table's
    assert re.search(r"left out: .*sub-4_T1w.nii.gz: is 0 everywhere", capsys.readouterr().err)


def test_accuracy_refuses_scans_without_a_row_before_it_measures(tmp_path):
    cohort = make_cohort(tmp_path, (8, 10))
    (cohort / "participants.tsv").write_text("participant_id\tventricles_ml\tbrain_ml\ticv_ml\n0\t20\t900\t1300\n")
    with pytest.raises(ValueError, match="no row for sub-1, none for this participant"):
        measure_volumes.accuracy(cohort, tmp_path / "no weights")


def test_nothing_is_written_if_no_volume_can_be_measured(save, tmp_path, monkeypatch):
    save("sub-b_T1w.nii.gz", image_of(np.zeros((42, 58, 44)), 4.0))
    monkeypatch.setattr("sys.argv", ["measure_volumes.py", str(tmp_path), "--output", str(tmp_path / "volumes.tsv")])
    with pytest.raises(ValueError, match="none of 1 images can be measured:\n.*is 0 everywhere"):
        measure_volumes.main()
    assert not (tmp_path / "volumes.tsv").exists()


@pytest.mark.parametrize("unit", [1000.0, 0.001, 0.07])
def test_accuracy_refuses_another_unit_of_the_true_volumes_before_it_measures(tmp_path, unit):
    """In mm3, litres or percent of the head, its table showed slopes and biases of no meaning."""
    with pytest.raises(ValueError, match="participants.tsv, its median: brain_ml would be .* mL, but only 300 to 2500 mL are"):
        measure_volumes.read_true(make_cohort(tmp_path, (8, 10), unit=unit))


def test_accuracy_needs_the_true_volumes(tmp_path):
    with pytest.raises(ValueError, match="no column .'icv_ml'"):
        measure_volumes.accuracy(make_cohort(tmp_path, (8,), ("ventricles_ml", "brain_ml")))


def test_accuracy_refuses_its_own_measurements_and_requests_as_the_truth(tmp_path):
    """Its own table agreed with itself: r 1.0, slope 1.0, error 0.0."""
    cohort = make_cohort(tmp_path, (8, 10))
    table = cohort / "participants.tsv"
    true = pandas.read_csv(table, sep="\t")
    true.assign(tool=["SynthSeg", "measure_volumes.py"]).to_csv(table, sep="\t", index=False)
    with pytest.raises(ValueError, match="participants.tsv: holds what measure_volumes.py measured, .* Give volumes from"):
        measure_volumes.read_true(cohort)
    true.assign(tool="SynthSeg").to_csv(table, sep="\t", index=False)
    assert len(measure_volumes.read_true(cohort)[0]) == 2
    (cohort / "dataset_description.json").write_text('{"GeneratedBy": [{"Name": "brain_ldm_bundle"}]}')
    with pytest.raises(ValueError, match="participants.tsv: holds what was requested from brain_ldm_bundle"):
        measure_volumes.read_true(cohort)


def test_accuracy_in_the_repository_describes_the_shipped_weights():
    facts = json.loads(measurement.WEIGHTS.with_suffix(".json").read_text())
    assert facts["sha256"] == hashlib.sha256(measurement.WEIGHTS.read_bytes()).hexdigest()
    assert measurement.WEIGHTS.stat().st_size <= 2_000_000


def test_accuracy_of_other_weights_is_called_unknown(tmp_path):
    weights = tmp_path / "volume_net.pt"
    weights.write_bytes(b"other")
    assert "unknown" in describe_accuracy(weights)
    (tmp_path / "volume_net.json").write_text('{"sha256": "0", "accuracy": []}')
    assert "describes other weights" in describe_accuracy(weights)


def test_head_size_is_normalised_to_the_same_template_as_the_demo_cohort():
    assert make_demo_data.TEMPLATE_ICV_ML == TEMPLATE_ICV_ML
