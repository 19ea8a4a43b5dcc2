"""Test report.py and three_planes.py: sides follow the affine, numbers equal agreement.py, and nothing is hidden."""

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import report
from cohorts import cohort as report_cohort
from cohorts.three_planes import three_planes
from PIL import Image
from report_page.agreement_table import tool_accuracy
from tiny_report import AFFINE, CENTRE_MM, SHAPE, make_cohort, make_labelled, phantom, stored_as, write_section

SCRIPTS = Path(report.__file__).parent


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
    with pytest.raises(ValueError, match=r"has 4 dimensions \(4, 5, 6, 2\)"):
        three_planes(tmp_path / "a.nii.gz")


# --- The page ------------------------------------------------------------------------------------------------------


REQUESTED_ML = [40.0, 10.0, 30.0, 20.0, 60.0, 50.0]
MEASURED_ML = [42.0, 13.0, 30.0, 20.0, 61.0, 50.0]


@pytest.fixture
def generated(tmp_path):
    return make_cohort(tmp_path / "generated", [f"sub-syn{i}" for i in range(6)], REQUESTED_ML, MEASURED_ML)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of `generated` without options, for the tests that only read it."""
    folder = tmp_path_factory.mktemp("page") / "generated"
    return page_of(make_cohort(folder, [f"sub-syn{i}" for i in range(6)], REQUESTED_ML, MEASURED_ML))


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


def test_the_table_holds_agreement_and_the_trivial_baseline(page):
    n, r, slope, bias, mae = cells(page, "Generated: lateral ventricles")
    assert (n, bias, mae) == ("6", "+1.0 mL", "1.0 mL")
    assert float(r.split()[0]) == pytest.approx(np.corrcoef(REQUESTED_ML, MEASURED_ML)[0, 1], abs=6e-4)
    assert float(slope.split()[0]) == pytest.approx(np.polyfit(REQUESTED_ML, MEASURED_ML, 1)[0], abs=6e-3)
    assert cells(page, "— always answering the mean") == ["6", "undefined", "0", "0", "15.0 mL"]


def test_the_gallery_is_sorted_by_requested_volume(page):
    captions = re.findall(r"requested ([\d.]+)\smL, measured ([\d.]+)\smL", page)
    assert captions == [(f"{asked}", f"{measured}") for asked, measured in sorted(zip(REQUESTED_ML, MEASURED_ML))]


def test_a_short_gallery_reaches_from_the_smallest_to_the_largest(generated):
    captions = re.findall(r"requested ([\d.]+)\smL", page_of(generated, "--gallery", 3))
    assert captions[0] == "10.0" and captions[-1] == "60.0" and len(captions) == 3


def test_the_page_needs_no_network_and_escapes_names(generated, tmp_path):
    real = make_cohort(tmp_path / "real", [f"sub-{i}" for i in range(6)], REQUESTED_ML, MEASURED_ML, split=["test"] * 6)
    (real[0] / "dataset_description.json").write_text(json.dumps({"Name": "A <cohort>", "Simulated": False}))
    page = page_of(generated, "--real", real[0], "--real_measured", real[1])
    assert "not scans of persons" not in page
    assert "default-src 'none'" in page
    assert not re.search(r'(src|href|action)="(?!data:|#)|url\(|@import', without_scripts(page))
    assert "A &lt;cohort&gt;" in page and "<cohort>" not in page
    assert cells(page, "Scans: lateral ventricles")[0] == "6"
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_volumes_that_could_not_be_measured_are_counted(tmp_path):
    measured_ml = [42.0, np.nan, 30.0, 20.0, 61.0, 50.0]
    generated = make_cohort(tmp_path / "generated", [f"sub-{i}" for i in range(6)], REQUESTED_ML, measured_ml)
    page = page_of(generated)
    assert "6 generated volumes" in page and "1 could not be measured" in page
    assert cells(page, "Generated: lateral ventricles")[0] == "5"
    assert "requested 10.0\N{NO-BREAK SPACE}mL, could not be measured" in page


def test_a_cohort_of_noise_is_shown_all_the_same(tmp_path):
    page = page_of(make_cohort(tmp_path / "generated", ["sub-1", "sub-2"], [10.0, 20.0], [np.nan, np.nan]))
    assert "2 could not be measured" in page and len(re.findall("<figure data-values", page)) == 2


def test_too_few_volumes_say_so_instead_of_a_number(tmp_path):
    generated = make_cohort(tmp_path / "generated", ["sub-1", "sub-2"], [10.0, 20.0], [11.0, 21.0])
    assert "at least 4 pairs" in cells(page_of(generated), "Generated: lateral ventricles")[1]


def test_notices_are_there(page):
    assert "not for clinical use" in page and "Synthetic images" in page and "subject's left is at the picture's right" in page


def test_sampling_is_read_from_the_sidecars(page, generated):
    assert cells(page, "Sampling, steps") == ["7"] and cells(page, "Sampling, SHA-256 of the weights") == ["unknown"]
    sidecar = generated[0] / "sub-syn0" / "anat" / "sub-syn0_T1w.json"
    sidecar.write_text(json.dumps({"Steps": 50}))
    assert cells(page_of(generated), "Sampling, steps") in (["7 / 50"], ["50 / 7"])


def test_training_time_is_the_time_of_the_event_files_without_pauses(generated, tmp_path):
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
    (time,) = cells(page, "Training, diffusion")
    assert time.startswith(
        "50 steps in 5.7 min of wall time, without the steps of weights that it started from"
    )  # 1000-1140 and 9000-9200


def keep_own_events(file):
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.summary.writer.record_writer import RecordWriter

    events = [event for event in EventFileLoader(str(file)).Load() if not event.file_version]
    with open(file, "wb") as stream:
        for event in events:
            RecordWriter(stream).write(event.SerializeToString())


def test_the_tools_accuracy_is_shown_only_for_its_own_weights(tmp_path):
    row = {"images": "demo", "spacing_mm": 4.0, "volume": "ventricles_ml", "n": 40, "r": 0.99, "r_low": 0.98, "r_high": 0.995}
    row |= {"slope": 1.0, "slope_low": 0.98, "slope_high": 1.02, "bias": -0.3, "mae": 1.2}
    weights, facts = tmp_path / "net.pt", tmp_path / "net.json"
    weights.write_bytes(b"weights")
    facts.write_text(json.dumps({"sha256": hashlib.sha256(b"weights").hexdigest(), "accuracy": [row], "limits": "Simulated."}))
    rows, limits = tool_accuracy(weights)
    assert rows[0][1:3] == ["40", "0.990 [0.980, 0.995]"] and limits == "Simulated."
    weights.write_bytes(b"others")
    rows, limits = tool_accuracy(weights)
    assert not rows and "describes other weights" in limits


@pytest.mark.parametrize("change", ["unknown", "twice", "no quantity", "no image", "no table", "itself", "coarse", "NaN"])
def test_mistakes_are_named_and_no_page_is_written(generated, change):
    folder, measured = generated
    message = {
        "unknown": "sub-x is not in .*participants.tsv",
        "twice": "sub-syn1 appears twice",
        "no quantity": "nothing to compare",
        "no image": "no sub-syn1_T1w.nii.gz below it",
        "no table": "generated.tsv: no such table",
        "itself": "are one folder",
        "NaN": "sub-syn1_T1w.nii.gz: has 120 voxels that are NaN or infinite",
        "coarse": "2",  # the exit status
    }[change]
    if change == "unknown":
        measured.write_text(measured.read_text().replace("sub-syn1", "sub-x"))
    elif change == "twice":
        measured.write_text(measured.read_text().replace("sub-syn2", "sub-syn1"))
    elif change == "no quantity":
        measured.write_text(measured.read_text().replace("ventricles_ml", "hippocampus_ml"))
    elif change == "no image":
        (folder / "sub-syn1" / "anat" / "sub-syn1_T1w.nii.gz").unlink()
    elif change == "NaN":
        image = nib.Nifti1Image(np.full((4, 5, 6), np.nan), np.eye(4))
        nib.save(image, folder / "sub-syn1" / "anat" / "sub-syn1_T1w.nii.gz")
    elif change == "no table":
        measured.unlink()
    further = {"itself": ["--real", folder], "coarse": ["--viewer_spacing_mm", "300"]}.get(change, [])
    with pytest.raises((ValueError, FileNotFoundError, SystemExit), match=message):
        page_of(generated, *further)
    assert not list(folder.parent.glob("*report*"))


def test_requested_against_measured_is_shown_once(generated, tmp_path):
    """The page had the rows of Figure 3 twice, the second time without the rows of the tool on scans."""
    write_section(tmp_path / "evaluation", "conditioning")
    page = page_of(generated, "--evaluation", tmp_path / "evaluation")
    assert "Do they show what was requested?" not in page and "How well does the measuring tool" in page


SESSIONS = ["sub-1_ses-1", "sub-1_ses-2", "sub-2_ses-1", "sub-3"]


@pytest.fixture
def sessions(tmp_path):
    """A folder whose first participant has two scans, the second one in a session; and a table of it, a row per scan."""
    folder = tmp_path / "study"
    rows = []
    for number, scan in enumerate(SESSIONS):
        participant, *session = scan.split("_")
        path = folder.joinpath(participant, *session, "anat", f"{scan}_T1w.nii.gz")
        path.parent.mkdir(parents=True)
        nib.save(phantom(), path)
        rows.append({"participant_id": participant, "file": str(path), "ventricles_ml": 10.0 + number})
    participants = pd.DataFrame({"participant_id": ["sub-1", "sub-2", "sub-3"], "ventricles_ml": [10.0, 20.0, 30.0]})
    participants.to_csv(folder / "participants.tsv", sep="\t", index=False)
    give_sessions(folder, "sub-1", session_id=["ses-1", "2"], Ventricles_ML=[10.0, 10.5])
    return folder, pd.DataFrame(rows)


def give_sessions(folder, participant, **columns):
    """Give each session of a participant its own values."""
    saved(pd.DataFrame(columns), folder / participant / f"{participant}_sessions.tsv")


def saved(table, path):
    table.to_csv(path, sep="\t", index=False)
    return path


def test_a_row_is_the_scan_that_its_file_names(sessions, tmp_path):
    """The tools write a row per scan, which the page refused as a participant who appears twice."""
    folder, table = sessions
    cohort = report_cohort.read_cohort(folder, [saved(table[::-1], tmp_path / "v.tsv")])
    assert cohort.measured["ventricles_ml"].to_dict() == {
        "sub-1_ses-1": 10.0,
        "sub-1_ses-2": 11.0,
        "sub-2": 12.0,
        "sub-3": 13.0,
    }
    assert cohort.expected["ventricles_ml"].tolist() == [10.0, 10.5, 20.0, 30.0]
    with pytest.raises(ValueError, match="v.tsv: sub-1 has several volumes in .*study. Name the volume in a column file"):
        report_cohort.read_cohort(folder, [saved(table.drop(columns="file"), tmp_path / "v.tsv")])
    with pytest.raises(ValueError, match="v.tsv: sub-1_ses-2 appears twice"):
        report_cohort.read_cohort(folder, [saved(table.iloc[[0, 1, 1]], tmp_path / "v.tsv")])


def test_a_table_of_another_folder_is_refused_but_a_moved_folder_is_accepted(sessions, tmp_path, monkeypatch):
    """Generated cohorts all have a sub-syn0001: the table of another one passed, and its numbers stood on the page."""
    folder, table = sessions
    measured = saved(table, tmp_path / "v.tsv")
    other = tmp_path / "other" / "study"
    shutil.copytree(folder, other)
    report_cohort.read_cohort(other, [measured])  # equal files: a copy
    nib.save(nib.Nifti1Image(phantom().get_fdata() * 0.9, AFFINE), other / "sub-3" / "anat" / "sub-3_T1w.nii.gz")
    with pytest.raises(ValueError, match="sub-3 was measured in .*tmp.*/study/sub-3/.*, which is not .*other/study/sub-3/anat"):
        report_cohort.read_cohort(other, [measured])
    moved = folder.rename(tmp_path / "moved")  # now the files of the table are not there
    report_cohort.read_cohort(other, [measured])
    with pytest.raises(ValueError, match="Measure .*moved itself; if only .* has changed, correct the column file"):
        report_cohort.read_cohort(moved, [measured])
    monkeypatch.chdir(moved)
    inside = table.assign(file=table["file"].str.removeprefix(f"{folder}/"))
    report_cohort.read_cohort(Path(), [saved(inside, tmp_path / "v.tsv")])


def test_tables_of_one_tool_are_parts_of_one_measurement(sessions, tmp_path):
    folder, table = sessions
    table["tool"] = "a tool"
    parts = [saved(table[:2], tmp_path / "a.tsv"), saved(table[2:], tmp_path / "b.tsv")]
    cohort = report_cohort.read_cohort(folder, parts)
    assert list(cohort.tables) == ["a tool"] and cohort.measured["ventricles_ml"].tolist() == [10.0, 11.0, 12.0, 13.0]


def test_each_scan_of_the_cohort_is_shown_once(tmp_path):
    volumes_ml = [10.0, 20.0, 90.0]
    cohort = report_cohort.read_cohort(make_cohort(tmp_path / "real", ["sub-1", "sub-2", "sub-3"], volumes_ml, volumes_ml)[0])
    assert report_cohort.nearest(cohort, "ventricles_ml", [11.0, 16.0]) == ["sub-1", "sub-2"]
    assert report_cohort.nearest(cohort, "ventricles_ml", [9.0, 21.0, 50.0, 80.0]) == ["sub-1", "sub-2", None, "sub-3"]


# --- What is on the page, whatever the folder ----------------------------------------------------------------------


class Elements(HTMLParser):
    """Names and attributes of a page's elements, as a browser would see them."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def named(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


def test_a_folder_alone_makes_a_page_next_to_it_and_writes_nothing_inside(generated):
    folder = generated[0]
    before = sorted(folder.rglob("*"))
    report.main([str(folder)])
    page = (folder.parent / "generated_report.html").read_text()
    assert sorted(folder.rglob("*")) == before and (folder.parent / "generated_report.png").is_file()
    assert "6 generated volumes" in page and "measured " not in without_scripts(page)
    captions = re.findall(r"<b>requested ([\d.]+)\smL</b>", page)
    assert [float(text) for text in captions] == sorted(REQUESTED_ML)


def test_ages_of_another_table_are_joined_and_are_in_years(tmp_path):
    ages = [61.0, 52.0, 73.0, 44.0, 65.0, 56.0]
    names = [f"sub-{i}" for i in range(6)]
    generated = make_cohort(tmp_path / "generated", names, REQUESTED_ML, MEASURED_ML, age=ages)
    predicted = pd.DataFrame({"participant_id": names[::-1], "age": [age + 2 for age in ages[::-1]], "ventricles_ml": 2.0})
    predicted.to_csv(tmp_path / "ages.tsv", sep="\t", index=False)
    output = tmp_path / "report.html"
    report.main([str(generated[0]), "--measured", str(generated[1]), str(tmp_path / "ages.tsv"), "--output", str(output)])
    page = output.read_text()
    n, r, slope, bias, mae = cells(page, "Generated: age")
    assert (n, bias, mae) == ("6", "+2.0 years", "2.0 years") and r.startswith("1.000") and slope.startswith("1.00")
    ventricles = "Generated: lateral ventricles by"  # of two tools, none is left out
    assert cells(page, f"{ventricles} generated.tsv")[3] == "+1.0 mL"
    assert cells(page, f"{ventricles} ages.tsv")[1] == "measured values are all 2: a correlation needs values that differ"
    assert re.search(r"requested 40.0\smL, measured 42.0\smL by generated.tsv, 2.0\smL by ages.tsv", page)
    assert "Values were measured by generated.tsv and ages.tsv." in page
    assert re.search(r"age 61\syears \(measured 63\syears\)", page)


def test_scans_that_a_measuring_network_may_have_learnt_from_are_no_test_of_it(generated, tmp_path):
    names = [f"sub-{i}" for i in range(12)]
    split = ["train"] * 6 + ["test"] * 6
    measured_ml = [0.0] * 6 + MEASURED_ML
    real = make_cohort(tmp_path / "real", names, [10.0, 20.0, 30.0, 40.0, 50.0, 60.0] + REQUESTED_ML, measured_ml, split=split)
    page = page_of(generated, "--real", real[0], "--real_measured", real[1])
    assert cells(page, "Scans: lateral ventricles")[0] == "6" and cells(page, "Scans: lateral ventricles")[4] == "1.0 mL"
    assert "6 measured scans of the training split are left out" in page
    table = (real[0] / "participants.tsv").read_text()
    (real[0] / "participants.tsv").write_text(table.replace("test", "train"))
    page = page_of(generated, "--real", real[0], "--real_measured", real[1])
    assert cells(page, "Scans: lateral ventricles")[0] == "12" and "left out" not in page


def test_the_page_says_on_top_that_its_real_scans_are_simulated(generated, tmp_path):
    cohort, _ = make_cohort(tmp_path / "cohort", [f"sub-{i}" for i in range(4)], REQUESTED_ML[:4], MEASURED_ML[:4])
    (cohort / "dataset_description.json").write_text(json.dumps({"Name": "A cohort", "Simulated": True}))
    evaluation = write_section(tmp_path / "evaluation")
    page = page_of(generated, "--real", cohort, "--evaluation", evaluation, "--viewer", "0")
    top, rest = page.split("<main>")
    assert "simulated heads, not scans of persons" in top and "not scans of persons" not in rest
    assert "no number on this page says what the model does with scans of people" in top


def test_a_request_that_leaves_a_covariate_open_is_no_pair(tmp_path):
    open_request = [40.0, np.nan, 30.0, 20.0, 60.0, 50.0]
    page = page_of(make_cohort(tmp_path / "generated", [f"sub-{i}" for i in range(6)], open_request, MEASURED_ML))
    assert cells(page, "Generated: lateral ventricles")[0] == "5"


def test_small_spreads_keep_their_decimals(tmp_path):
    ratios = [0.71, 0.72, 0.74, 0.75, 0.78, 0.79]
    folder, _ = make_cohort(tmp_path / "generated", [f"sub-{i}" for i in range(6)], REQUESTED_ML, MEASURED_ML, bpf=ratios)
    table = pd.DataFrame({"participant_id": [f"sub-{i}" for i in range(6)], "bpf": [ratio + 0.004 for ratio in ratios]})
    table.to_csv(tmp_path / "bpf.tsv", sep="\t", index=False)
    assert cells(page_of((folder, tmp_path / "bpf.tsv")), "Generated: bpf")[3] == "+0.004"


def test_long_names_next_to_the_rows_of_pictures_are_not_cut(tmp_path):
    folder = make_labelled(tmp_path / "generated", [f"sub-0009withalongname1of2v{i}" for i in range(2)])
    report.main([str(folder), "--viewer", "0", "--output", str(tmp_path / "report.html")])
    picture = np.asarray(Image.open(tmp_path / "report.png").convert("L"))
    assert picture[:, 0].min() == picture[:, -1].min() == 255  # white


def test_label_maps_are_drawn_beside_their_volumes(tmp_path):
    folder = make_labelled(tmp_path / "synthetic", ["sub-01", "sub-01v01"])
    report.main([str(folder)])
    page = (tmp_path / "synthetic_report.html").read_text()
    assert "has the anatomy of its map" in page and "2 heads were generated from label maps." in page
    pictures = [(image["alt"], image["width"], image["height"]) for image in Elements(page).named("img")]
    kinds = ("label map", "axial, coronal and sagittal plane")
    assert pictures == [(f"{name}: {kind}", "74", "28") for name in ("sub-01", "sub-01v01") for kind in kinds]
    volumes = json.loads(re.search(r'id="volumes">(.*?)</script>', page)[1])
    assert volumes[0]["labels"]["names"] == ["background", "left hippocampus", "right hippocampus", "label 2035"]
    colours = np.transpose(volumes[0]["labels"]["colours"]).tolist()
    assert colours[1] == colours[2] != colours[3] and colours[0] == [0, 0, 0]
    assert cells(page, "Synthesis, names of the labels") == ["freesurfer"]


def test_all_sessions_of_a_participant_are_shown(generated):
    folder = generated[0]
    (folder / "sub-syn0" / "anat").rename(folder / "sub-syn0" / "old")
    for session in ("1", "2"):
        (folder / "sub-syn0" / f"ses-{session}").mkdir()
        nib.save(phantom(), folder / "sub-syn0" / f"ses-{session}" / f"sub-syn0_ses-{session}_T1w.nii.gz")
    (folder / "sub-syn0" / "old" / "sub-syn0_T1w.nii.gz").unlink()
    with pytest.raises(ValueError, match="sub-syn0 has 2 sessions .*but ventricles_ml, age only once"):
        report.main([str(folder)])
    give_sessions(folder, "sub-syn0", session_id=[1, 2], age=[60, 65], ventricles_ml=[10, 12])
    report.main([str(folder)])
    page = (folder.parent / "generated_report.html").read_text()
    assert "7 generated volumes" in page and "sub-syn0_ses-1: axial" in page and "sub-syn0_ses-2: axial" in page


def test_a_measurement_must_say_which_of_several_volumes_it_is_of(generated):
    folder = generated[0]
    image = folder / "sub-syn0" / "anat" / "sub-syn0_T1w.nii.gz"
    for session in ("1", "2"):
        (folder / "sub-syn0" / f"ses-{session}").mkdir()
        nib.save(phantom(), folder / "sub-syn0" / f"ses-{session}" / f"sub-syn0_ses-{session}_T1w.nii.gz")
    image.unlink()
    give_sessions(folder, "sub-syn0", session_id=[1, 2], age=[60, 65], ventricles_ml=[10, 12])
    with pytest.raises(ValueError, match="sub-syn0 has several volumes"):
        page_of(generated)
    generated[1].write_text(generated[1].read_text().replace("sub-syn0", "sub-syn0_ses-2"))
    page = page_of(generated)
    assert cells(page, "Generated: lateral ventricles")[0] == "6" and "1 could not be measured" in page


def test_the_viewer_comes_with_the_licences_of_all_that_is_in_it(page):
    packages = re.findall(r"^(\S+@[\d.]+) +sha512-", (SCRIPTS / "vendor_niivue.sh").read_text(), re.MULTILINE)
    licences = (SCRIPTS / "report_page" / "viewer" / "niivue.LICENSE.txt").read_text()
    assert len(packages) == 10 and packages[0].startswith("@niivue/niivue")
    assert all(f"==== {package} ====" in licences for package in packages[1:])
    assert "Copyright (c) 2021, Niivue" in page and "Copyright (c) 2023 Arjun Barrett" in page  # NiiVue and fflate


HOSTILE = "</script><img src=x onerror=alert(1)>'\"&$x$"


def test_no_text_of_a_table_or_section_becomes_html(tmp_path, page):
    harmless = page
    sites = [HOSTILE, "b", "c", "d", "e", "f"]
    generated, real = (
        make_cohort(
            tmp_path / kind, [f"sub-{i}" for i in range(6)], REQUESTED_ML, MEASURED_ML, name=HOSTILE, **{HOSTILE: sites}
        )
        for kind in ("generated", "real")
    )
    table = {"header": [HOSTILE, "b"], "rows": [[HOSTILE, HOSTILE]]}
    evaluation = write_section(
        tmp_path / "evaluation",
        title=HOSTILE,
        text=HOSTILE,
        tables=[table],
        figures=[{"file": "plot.png", "caption": HOSTILE}],
    )
    page = page_of(generated, "--evaluation", evaluation, "--real", real[0], "--real_measured", real[1])
    elements = Elements(page)
    assert all(image["src"].startswith("data:image/png;base64,") for image in elements.named("img"))
    assert not [attributes for _, attributes in elements.found if any(name.startswith("on") for name in attributes)]
    assert len(elements.named("script")) == len(Elements(harmless).named("script"))
    assert {"value": HOSTILE, "type": "checkbox", "checked": None} in elements.named("input")


def test_the_policy_lets_the_pages_own_scripts_run_and_no_others(page):
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', page)[1]
    run = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    hashes = {base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in run}
    assert set(re.findall(r"sha256-([^']+)'", re.search("script-src(.*?);", policy)[1])) == hashes and len(hashes) == 3
    assert "unsafe" not in policy and "http" not in policy


def test_sections_stand_in_the_order_of_their_paths_with_their_tables_and_figures(generated, tmp_path):
    write_section(tmp_path / "evaluation" / "b", "second", title="B")
    write_section(tmp_path / "evaluation" / "a", "first")
    page = page_of(generated, "--evaluation", tmp_path / "evaluation", tmp_path / "evaluation" / "b")
    assert page.index("<h2>Table &lt;1&gt;</h2>") < page.index("<h2>B</h2>") and page.count("<h2>B</h2>") == 1
    assert "Do they show what was requested?" in page  # there is no section of the conditioning
    assert "<p>One.</p>" in page and "</summary><p>Two &lt;b&gt;.</p></details>" in page
    assert cells(page, "real &amp; real") == ["0.1"]
    assert "<figcaption>A &lt;plot&gt;</figcaption>" in page


def test_numbers_in_the_tables_of_a_section_are_shown(generated, tmp_path):
    """A whole number ended the command."""
    table = {"header": ["year", 2020], "rows": [["n", 12], ["mean", 0.5], ["p", None]]}
    page = page_of(generated, "--evaluation", write_section(tmp_path / "evaluation", tables=[table]))
    assert ">2020</th>" in page and [cells(page, name) for name in ("n", "mean", "p")] == [["12"], ["0.5"], ["n/a"]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tables": [{"header": ["a"], "rows": ["x"]}]}, "a.section.json: the row x of a table must be a list of texts and"),
        ({"tables": [{"header": ["a"], "rows": [[["x"]]]}]}, "the row .* of a table must be a list of texts and numbers"),
        ({"tables": [{"header": ["a", "b"], "rows": [["1"]]}]}, r"a.section.json: the row \['1'\] has 1 cells, its header 2"),
        ({"figures": [{"file": "absent.png"}]}, "a.section.json: its figure absent.png is not in the same folder"),
        ({"figures": [{"file": "../secret.png"}]}, "a figure must be in the folder of its section"),
        ({"figures": [{"file": "a.section.json"}]}, "its figure a.section.json is not a PNG file"),
        ({"title": None}, "a section needs a title and a text"),
        ({"verdict": 1}, "its verdict must be a text"),
        ({"tables": [{"head": ["a"], "rows": []}]}, "a table needs header and rows, and a figure needs a file"),
        ({"figures": [{}]}, "a table needs header and rows, and a figure needs a file"),
    ],
)
def test_a_section_that_cannot_be_shown_is_named_and_no_page_is_written(generated, tmp_path, changes, message):
    evaluation = write_section(tmp_path / "evaluation", **changes)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        page_of(generated, "--evaluation", evaluation)
    assert not list(tmp_path.glob("*report*"))


def test_a_folder_without_an_evaluation_is_named(generated, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match="absent: no such folder"):
        page_of(generated, "--evaluation", tmp_path / "absent")
    with pytest.raises((ValueError, FileNotFoundError), match=r"generated: no \*.section.json below it"):
        page_of(generated, "--evaluation", generated[0])


def test_a_damaged_volume_is_named_and_an_older_page_stays(generated):
    (generated[0].parent / "report.html").write_text("an older page")
    damaged = generated[0] / "sub-syn3" / "anat" / "sub-syn3_T1w.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:-200])
    with pytest.raises(ValueError, match="sub-syn3_T1w.nii.gz: cannot be read"):
        page_of(generated)
    assert (generated[0].parent / "report.html").read_text() == "an older page" and not list(generated[0].parent.glob(".*"))


def test_all_files_that_are_no_images_are_named(generated):
    (generated[0] / "sub-syn3" / "anat" / "sub-syn3_dseg.nii.gz").write_text("not an image")
    (generated[0] / "sub-syn2" / "anat" / "sub-syn2_T1w.nii.gz").write_bytes(b"")
    with pytest.raises(ValueError, match="(?s)^2 of .*sub-syn2_T1w.nii.gz: .*is empty.*sub-syn3_dseg.nii.gz: is not"):
        page_of(generated)


def test_scans_are_in_the_viewer_only_on_request(generated, tmp_path):
    real = make_cohort(tmp_path / "real", [f"sub-{i}" for i in range(6)], REQUESTED_ML, MEASURED_ML)
    page = page_of(generated, "--real", real[0], "--viewer", 3)
    assert "3 of 6 generated volumes are inside this page" in page and page.count('type="application/gzip"') == 3
    page = page_of(generated, "--real", real[0], "--viewer", 3, "--viewer_scans", 1)
    assert "3 of 6 generated volumes, 1 of 6 scans are inside" in page and page.count('type="application/gzip"') == 4


def test_without_a_viewer_the_page_is_small_and_keeps_its_filters(generated):
    page = page_of(generated, "--viewer", 0)
    assert len(page) < 1e6 and "niivue" not in page.lower() and 'id="filters"' in page and page.count("<script>") == 1


# --- The verdict, and both bundles on one page ----------------------------------------------------------------------


def answers_of(page):
    """The questions and answers at the top of the page, with the id that the question links to, or None."""
    top = page.split("<main>")[0]
    pairs = re.findall(r'<dt>(?:<a href="#(.*?)">)?(.*?)(?:</a>)?</dt>(.*?)\n', top)
    return {question: (anchor, re.sub("<.*?>", "", answer)) for anchor, question, answer in pairs}


def test_the_page_opens_with_six_answers_and_each_links_to_its_section(generated, tmp_path):
    folder = write_section(tmp_path / "evaluation", "samples", title="Quality", verdict="The FID is 3 <mL>.")
    for place, name in (("evaluation", "reader_study"), ("other", "reader_study")):
        write_section(tmp_path / place, name, title=f"Study {place}", verdict=f"Readers of {place} guess.")
    page = page_of(generated, "--evaluation", folder, tmp_path / "other")
    answers = answers_of(page)
    assert len(answers) == 6
    ids = [attributes["id"] for _, attributes in Elements(page).found if "id" in attributes]
    assert all(anchor in ids for anchor, _ in answers.values() if anchor)
    assert "6 heads were generated, with requested lateral ventricles of 10 to 60 mL." in answers["What was made?"][1]
    assert "measured values follow the requests closely" in answers["Do they follow their requests?"][1]
    assert answers["How close are they to scans?"][1] == "The FID is 3 &lt;mL&gt;."
    assert answers["Are they copies of training scans?"] == ("", "Not measured.")
    told = answers["Can they be told from scans?"][1]
    assert told == "Study evaluation: Readers of evaluation guess.Study other: Readers of other guess."
    assert "because nothing was measured: Are they copies of training scans?" in answers["What does this page not show?"][1]
    order = [page.index(f'<section id="{name}">') for name in ("gallery", "viewer", "agreement", "evaluation-0", "limits")]
    assert order == sorted(order)


@pytest.mark.parametrize(
    ("measured_ml", "words"),
    [
        ([20.0, 20.0, 21.0, 20.0, 26.0, 20.0], "do not follow the requests in a way that shows"),
        ([70.0 - value for value in MEASURED_ML], "change against the requests"),
        ([41.0, 22.0, 25.0, 35.0, 55.0, 50.0], "follow the requests loosely"),
    ],
)
def test_the_verdict_names_a_model_that_ignores_its_requests(tmp_path, measured_ml, words):
    generated = make_cohort(tmp_path / "generated", [f"sub-{i}" for i in range(6)], REQUESTED_ML, measured_ml)
    assert words in answers_of(page_of(generated))["Do they follow their requests?"][1]


def test_volumes_from_label_maps_stand_on_the_same_page(generated, tmp_path):
    synthetic = make_labelled(tmp_path / "synthetic", ["sub-01", "sub-01v01"])
    page = page_of(generated, "--synthetic", synthetic, "--viewer", 2)
    assert "2 more were made from label maps" in answers_of(page)["What was made?"][1]
    assert 'id="synthetic"' in page and "sub-01v01: label map" in page
    assert "2 of 6 generated volumes, 2 of 2 volumes from label maps are inside" in page
    assert cells(page, "Synthesis, names of the labels") == ["freesurfer"] and cells(page, "Sampling, steps") == ["7"]


def test_the_viewer_starts_with_a_generated_volume_and_the_scan_most_like_it(generated, tmp_path):
    real = make_cohort(tmp_path / "real", [f"sub-{i}" for i in range(3)], [39.0, 12.0, 70.0], [1.0, 2.0, 3.0])
    page = page_of(generated, "--real", real[0], "--viewer_scans", 3)
    names = [entry["name"] for entry in json.loads(re.search(r'id="volumes">(.*?)</script>', page)[1])]
    left, right = (names[int(start)] for start in re.findall(r'data-start="(\d+)"', page))
    assert (left, right) == ("sub-syn0", "sub-0")  # 40 mL, the fourth of six, and 39 mL
    assert re.search(r"<option value=.*>sub-syn0: age 60.5\syears, sex F, lateral ventricles 40\smL</option>", page)


def test_a_page_of_large_volumes_stays_below_20_mb(tmp_path):
    """A page of heads at 1 mm had 80 MB. Noise cannot be compressed, so that this is the worst case."""
    generated = make_cohort(tmp_path / "generated", [f"sub-{i}" for i in range(6)], REQUESTED_ML, MEASURED_ML)
    noise = np.random.default_rng(0).random((100, 120, 110)).astype(np.float32)
    for path in generated[0].rglob("*_T1w.nii.gz"):
        nib.save(nib.Nifti1Image(noise, np.diag([1.0, 1.0, 1.0, 1.0])), path)
    page = page_of(generated)
    assert "resampled to 1.5 mm" in page and len(page) < 20e6
