"""report.py and three_planes.py: sides are drawn from the affine, numbers are those of agreement.py, nothing is hidden."""

import hashlib
import json
import re

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import report
import report_cohort
import report_tables
from three_planes import three_planes

SHAPE = (20, 28, 24)  # RAS: three different side lengths
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
AFFINE[:3, 3] = (-19.0, -27.0, -23.0)
CENTRE_MM = (1.0, 1.0, 1.0)


def phantom():
    """Grey head; in all planes through its middle a bright block at the subject's left, less bright at the front and top."""
    volume = np.full(SHAPE, 0.2, np.float32)
    volume[2:4, 12:17, 10:15] = 1.0  # left
    volume[8:13, 24:26, 10:15] = 0.8  # front
    volume[8:13, 12:17, 20:22] = 0.6  # top
    return nib.Nifti1Image(volume, AFFINE)


def stored_as(image, axes):
    orientation = nib.orientations.axcodes2ornt(axes)
    return image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), orientation))


@pytest.fixture(params=["RAS", "LAS", "PIR"])
def picture(request, tmp_path):
    path = tmp_path / "sub-1_T1w.nii.gz"
    nib.save(stored_as(phantom(), request.param), path)
    return three_planes(path, CENTRE_MM)


def middle_of(picture, value):
    rows, columns = np.nonzero(np.isclose(picture, value, atol=0.02))
    return rows.mean(), columns.mean()


def test_the_subjects_left_is_at_the_right_and_front_and_head_are_up(picture):
    widths = [SHAPE[0] + 2, SHAPE[0] + 2, SHAPE[1] + 2]  # each plane within a frame of one column
    axial, coronal, sagittal = np.split(picture, np.cumsum(widths)[:-1], axis=1)
    assert picture.shape == (28, sum(widths))

    assert middle_of(axial, 1.0)[1] > 15  # left block at the right edge
    assert middle_of(axial, 0.8)[0] < 5  # front on top
    assert middle_of(coronal, 1.0)[1] > 15
    assert middle_of(coronal, 0.6)[0] < 6  # the coronal plane of 24 rows is centred in 28
    assert middle_of(sagittal, 0.8)[1] < 6  # front at the left
    assert middle_of(sagittal, 0.6)[0] < 6
    assert not np.isclose(sagittal, 1.0).any()


def test_the_plane_lies_at_the_given_millimetres(tmp_path):
    nib.save(phantom(), tmp_path / "a.nii.gz")
    through_left_block = three_planes(tmp_path / "a.nii.gz", (-14.0, 1.0, 1.0))
    assert np.isclose(through_left_block[:, 44:], 1.0).any()


def test_long_voxels_are_drawn_long(tmp_path):
    nib.save(nib.Nifti1Image(np.ones((10, 12, 5), np.float32), np.diag([2.0, 2.0, 6.0, 1.0])), tmp_path / "a.nii.gz")
    assert three_planes(tmp_path / "a.nii.gz").shape == (15, 12 + 12 + 14)


def test_a_series_is_no_volume(tmp_path):
    nib.save(nib.Nifti1Image(np.ones((4, 5, 6, 2), np.float32), AFFINE), tmp_path / "a.nii.gz")
    with pytest.raises(ValueError, match=r"expected one 3-D volume, got shape \(4, 5, 6, 2\)"):
        three_planes(tmp_path / "a.nii.gz")


# --- The page ------------------------------------------------------------------------------------------------------


def make_cohort(folder, participants, ventricles_ml, measured_ml, name="A <cohort>", split=None):
    for participant in participants:
        anat = folder / participant / "anat"
        anat.mkdir(parents=True)
        nib.save(phantom(), anat / f"{participant}_T1w.nii.gz")
        sidecar = {"Sampler": "ddim", "Steps": 7, "SoftwareVersions": {"monai": "1.6.1"}}
        (anat / f"{participant}_T1w.json").write_text(json.dumps(sidecar))
    (folder / "dataset_description.json").write_text(json.dumps({"Name": name}))
    table = pd.DataFrame({"participant_id": participants, "age": 60.5, "sex": "F", "ventricles_ml": ventricles_ml})
    if split:
        table["split"] = split
    table.to_csv(folder / "participants.tsv", sep="\t", index=False)
    measured = pd.DataFrame({"participant_id": participants, "ventricles_ml": measured_ml, "flags": "n/a"}).dropna()
    measured.to_csv(folder.with_suffix(".tsv"), sep="\t", index=False)
    return folder, folder.with_suffix(".tsv")


REQUESTED_ML = [40.0, 10.0, 30.0, 20.0, 60.0, 50.0]
MEASURED_ML = [42.0, 13.0, 30.0, 20.0, 61.0, 50.0]


@pytest.fixture
def generated(tmp_path):
    return make_cohort(tmp_path / "generated", [f"sub-syn{i}" for i in range(6)], REQUESTED_ML, MEASURED_ML)


def page_of(generated, *arguments):
    output = generated[0].parent / "report.html"
    report.main([str(generated[0]), "--measured", str(generated[1]), "--output", str(output), *map(str, arguments)])
    return output.read_text()


def cells(page, first):
    """The cells of the table row that begins with `first`."""
    row = re.search(rf"<tr><td[^>]*>{re.escape(first)}</td>(.*?)</tr>", page)
    return re.findall(r"<td[^>]*>(.*?)</td>", row[1]) if row else None


def without_scripts(page):
    return re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)


def test_the_table_holds_agreement_and_the_trivial_baseline(generated):
    page = page_of(generated)
    n, r, slope, bias, mae = cells(page, "Generated, requested against measured: lateral ventricles")
    assert (n, bias, mae) == ("6", "+1.0 mL", "1.0 mL")
    assert float(r.split()[0]) == pytest.approx(np.corrcoef(REQUESTED_ML, MEASURED_ML)[0, 1], abs=6e-4)
    assert float(slope.split()[0]) == pytest.approx(np.polyfit(REQUESTED_ML, MEASURED_ML, 1)[0], abs=6e-3)
    assert cells(page, "— always answering the mean") == ["6", "undefined", "0", "0", "15.0 mL"]


def test_the_gallery_is_sorted_by_requested_volume(generated):
    captions = re.findall(r"requested ([\d.]+)\smL, measured ([\d.]+)\smL", page_of(generated))
    assert captions == [(f"{asked}", f"{measured}") for asked, measured in sorted(zip(REQUESTED_ML, MEASURED_ML))]


def test_a_short_gallery_reaches_from_the_smallest_to_the_largest(generated):
    captions = re.findall(r"requested ([\d.]+)\smL", page_of(generated, "--gallery", 3))
    assert captions[0] == "10.0" and captions[-1] == "60.0" and len(captions) == 3


def test_the_page_needs_no_network_and_escapes_names(generated, tmp_path):
    real = make_cohort(tmp_path / "real", [f"sub-{i}" for i in range(6)], REQUESTED_ML, MEASURED_ML, split=["test"] * 6)
    page = page_of(generated, "--real", real[0], "--real_measured", real[1])
    assert "default-src 'none'" in page
    assert not re.search(r'(src|href|action)="(?!data:|#)|url\(|@import', without_scripts(page))
    assert "A &lt;cohort&gt;" in page and "<cohort>" not in page
    assert cells(page, "Scans of the cohort, true against measured: lateral ventricles")[0] == "6"
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_volumes_that_could_not_be_measured_are_counted(tmp_path):
    measured_ml = [42.0, np.nan, 30.0, 20.0, 61.0, 50.0]
    generated = make_cohort(tmp_path / "generated", [f"sub-{i}" for i in range(6)], REQUESTED_ML, measured_ml)
    page = page_of(generated)
    assert "6 generated volumes" in page and "1 could not be measured" in page
    assert cells(page, "Generated, requested against measured: lateral ventricles")[0] == "5"
    assert "requested 10.0\N{NO-BREAK SPACE}mL, could not be measured" in page


def test_a_cohort_of_noise_is_shown_all_the_same(tmp_path):
    page = page_of(make_cohort(tmp_path / "generated", ["sub-1", "sub-2"], [10.0, 20.0], [np.nan, np.nan]))
    assert "2 could not be measured" in page and len(re.findall("<figure data-values", page)) == 2


def test_too_few_volumes_say_so_instead_of_a_number(tmp_path):
    generated = make_cohort(tmp_path / "generated", ["sub-1", "sub-2"], [10.0, 20.0], [11.0, 21.0])
    assert "at least 4 pairs" in cells(page_of(generated), "Generated, requested against measured: lateral ventricles")[1]


def test_notices_are_there(generated):
    page = page_of(generated)
    assert "not for clinical use" in page and "Synthetic images" in page and "subject's left is at the picture's right" in page


def test_sampling_is_told_from_the_sidecars(generated):
    page = page_of(generated)
    assert cells(page, "Sampling, Steps") == ["7"] and cells(page, "Sampling, WeightsSHA256") == ["unknown"]
    sidecar = generated[0] / "sub-syn0" / "anat" / "sub-syn0_T1w.json"
    sidecar.write_text(json.dumps({"Steps": 50}))
    assert cells(page_of(generated), "Sampling, Steps") in (["7 / 50"], ["50 / 7"])


def test_training_time_is_that_of_the_event_files_without_pauses(generated, tmp_path):
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    folder = tmp_path / "training" / "tensorboard" / "diffusion"
    for suffix, start, steps in ((".a", 1000.0, 30), (".b", 1060.0, 20), (".c", 9000.0, 50)):  # a and b overlap; a pause; c
        writer = EventFileWriter(str(folder), filename_suffix=suffix)
        for step in range(0, steps + 1, 10):
            writer.add_event(Event(wall_time=start + 4 * step, step=step))
        writer.close()
    for file in folder.iterdir():  # the writer begins each file with an event of now
        keep_own_events(file)
    page = page_of(generated, "--training", tmp_path / "training")
    assert cells(page, "Training, diffusion") == ["50 steps in 5.7 min of wall time"]  # 1000-1140 and 9000-9200


def keep_own_events(file):
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.summary.writer.record_writer import RecordWriter

    events = [event for event in EventFileLoader(str(file)).Load() if not event.file_version]
    with open(file, "wb") as stream:
        for event in events:
            RecordWriter(stream).write(event.SerializeToString())


def test_reconstruction_stands_beside_the_mean_image(generated, tmp_path):
    def scores(ssim):
        return {"n": 24, "ssim": {"mean": ssim, "std": 0.01}} | dict.fromkeys(("psnr_db", "l1"), {"mean": 1.0, "std": 0.1})

    summary = tmp_path / "reconstruction.json"
    summary.write_text(json.dumps({"reconstruction": scores(0.93), "mean_image": scores(0.71)}))
    page = page_of(generated, "--reconstruction", summary)
    assert cells(page, "Autoencoder")[:2] == ["24", "0.93 ± 0.01"]
    assert cells(page, "— always answering the mean training scan")[1] == "0.71 ± 0.01"


def test_the_tools_accuracy_is_shown_only_for_its_own_weights(tmp_path):
    row = {"images": "demo", "spacing_mm": 4.0, "volume": "ventricles_ml", "n": 40, "r": 0.99, "r_low": 0.98, "r_high": 0.995}
    row |= {"slope": 1.0, "slope_low": 0.98, "slope_high": 1.02, "bias": -0.3, "mae": 1.2}
    weights, facts = tmp_path / "net.pt", tmp_path / "net.json"
    weights.write_bytes(b"weights")
    facts.write_text(json.dumps({"sha256": hashlib.sha256(b"weights").hexdigest(), "accuracy": [row]}))
    assert report_tables.tool_accuracy_rows(facts)[0][1:3] == ["40", "0.990 [0.980, 0.995]"]
    weights.write_bytes(b"others")
    assert "describes other weights" in report_tables.tool_accuracy_rows(facts)


@pytest.mark.parametrize("change", ["unknown", "twice", "no quantity", "no image", "no table"])
def test_mistakes_are_named_and_no_page_is_written(generated, change):
    folder, measured = generated
    message = {
        "unknown": "sub-x is not in .*participants.tsv",
        "twice": "sub-syn1 is there twice",
        "no quantity": "nothing to compare",
        "no image": "no sub-syn1_T1w.nii.gz below it",
        "no table": "generated.tsv: no such table",
    }[change]
    if change == "unknown":
        measured.write_text(measured.read_text().replace("sub-syn1", "sub-x"))
    elif change == "twice":
        measured.write_text(measured.read_text().replace("sub-syn2", "sub-syn1"))
    elif change == "no quantity":
        measured.write_text(measured.read_text().replace("ventricles_ml", "hippocampus_ml"))
    elif change == "no image":
        (folder / "sub-syn1" / "anat" / "sub-syn1_T1w.nii.gz").unlink()
    else:
        measured.unlink()
    with pytest.raises(SystemExit, match=message):
        page_of(generated)
    assert not list(folder.parent.glob("*report*"))


def test_each_scan_of_the_cohort_is_shown_once(tmp_path):
    volumes_ml = [10.0, 20.0, 90.0]
    cohort = report_cohort.read_cohort(make_cohort(tmp_path / "real", ["sub-1", "sub-2", "sub-3"], volumes_ml, volumes_ml)[0])
    assert report_cohort.nearest(cohort, "ventricles_ml", [11.0, 16.0]) == ["sub-1", "sub-2"]
    assert report_cohort.nearest(cohort, "ventricles_ml", [9.0, 21.0, 50.0, 80.0]) == ["sub-1", "sub-2", None, "sub-3"]
