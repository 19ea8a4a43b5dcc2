"""The page of report.py: its numbers equal agreement.py, and nothing is hidden."""

import hashlib
import json
import re
import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import report
from cohorts.cohort import read_cohort
from PIL import Image
from report_page import overview
from report_page.agreement_table import tool_accuracy
from tiny_report import (
    MEASURED_ML,
    REQUESTED_ML,
    Elements,
    cells,
    give_sessions,
    make_cohort,
    make_labelled,
    page_of,
    phantom,
    requested_cohort,
    without_scripts,
    write_section,
)


@pytest.fixture
def generated(tmp_path):
    return requested_cohort(tmp_path / "generated")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of `generated` without options, for the tests that only read it."""
    return page_of(requested_cohort(tmp_path_factory.mktemp("page") / "generated"))


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
    assert "cohort&gt;" not in page and "<cohort>" not in page  # the data set's own name is no news to a reader
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


def test_the_requests_are_no_measurements(generated):
    with pytest.raises(ValueError, match="participants.tsv: holds what was requested. Measure the volumes: "):
        page_of((generated[0], generated[0] / "participants.tsv"))


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
    assert re.search(r"requested 40.0\smL, measured 42.0\smL</b>", page)  # a card shows the first tool
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


def test_voxels_of_another_size_are_named_on_the_page_and_on_the_screen(generated, tmp_path, capsys):
    cohort, _ = make_cohort(tmp_path / "cohort", [f"sub-{i}" for i in range(4)], REQUESTED_ML[:4], MEASURED_ML[:4])
    assert "cannot be compared" not in page_of(generated, "--real", cohort, "--viewer", "0")
    for path in cohort.glob("sub-*/anat/*.nii.gz"):
        image = nib.load(path)
        nib.save(nib.Nifti1Image(image.get_fdata(dtype=np.float32), image.affine @ np.diag([2, 2, 2, 1])), path)
    assert "Their sharpness cannot be compared" in page_of(generated, "--real", cohort, "--viewer", "0")
    assert f"{generated[0]} has voxels of " in capsys.readouterr().err


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
    assert "has the anatomy of its map" in page and "2 synthetic heads were generated from label maps." in page
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


def test_the_picture_shows_heads_by_volume_and_by_age_and_scans_that_are_alike(tmp_path):
    ages = [61.0, 52.0, 73.0, 44.0, 65.0, 56.0]
    folder, measured = make_cohort(tmp_path / "generated", [f"sub-{i}" for i in range(6)], REQUESTED_ML, MEASURED_ML, age=ages)
    real, _ = make_cohort(tmp_path / "real", [f"sub-{i}" for i in range(6)], REQUESTED_ML[::-1], MEASURED_ML, age=ages[::-1])
    cohorts = {"generated": read_cohort(folder, [measured]), "cohort": read_cohort(real)}
    shown = overview.columns(cohorts)
    assert [(column.kind, column.quantity) for column in shown] == [
        (kind, quantity) for quantity in ("ventricles_ml", "age") for kind in ("generated", "cohort")
    ]
    for column in shown:
        values = cohorts[column.kind].expected.loc[column.volumes, column.quantity].tolist()
        assert values == sorted(values) and len(values) == overview.ROWS_IN_PICTURE
    for heads, scans in (shown[:2], shown[2:]):  # the cohort holds a scan of every requested value
        assert [5 - int(name.removeprefix("sub-")) for name in scans.volumes] == [
            int(name.removeprefix("sub-")) for name in heads.volumes
        ]


def test_the_picture_shows_a_label_map_beside_its_volume_and_the_scan_of_the_map(tmp_path):
    synthetic = make_labelled(tmp_path / "synthetic", ["sub-02", "sub-03"])  # both from the map of sub-01
    real, _ = make_cohort(tmp_path / "real", ["sub-01", "sub-02"], [10.0, 20.0], [10.0, 20.0])
    cohorts = {"synthetic": read_cohort(synthetic), "cohort": read_cohort(real)}
    assert overview.from_map(cohorts) == {"synthetic": "sub-02", "cohort": "sub-01"}
    assert overview.from_map({"generated": cohorts["cohort"]}) == {}


def test_only_volumes_from_label_maps_are_shown_as_such(generated, tmp_path):
    """The brain LDM's own folder passed as --synthetic, and a segmentation beside its volumes as their origin."""
    with pytest.raises(ValueError, match="are one folder"):
        page_of(generated, "--synthetic", generated[0])
    other = shutil.copytree(generated[0], tmp_path / "other")
    with pytest.raises(ValueError, match="other/sub-syn0/.*_T1w.nii.gz: was not made from a label map"):
        page_of(generated, "--synthetic", other)
    for path in other.rglob("*_T1w.json"):
        path.write_text(json.dumps({"Covariates": {}}))
        shutil.copy(path.with_name(path.name.replace(".json", ".nii.gz")), path.with_name(f"{path.name[:8]}_dseg.nii.gz"))
    with pytest.raises(ValueError, match="was not made from a label map"):
        page_of(generated, "--synthetic", other)


def test_scans_are_found_behind_the_first_generated_volume(generated):
    last = sorted(generated[0].rglob("*_T1w.json"))[-1]
    last.write_text(json.dumps({"Manufacturer": "X"}))
    with pytest.raises(ValueError, match=f"{last.name[:8]}_T1w.nii.gz: is a scan"):
        page_of(generated)


def test_the_page_says_first_that_volumes_are_edits_of_scans(generated):
    """An edit shows the head of a person; with strength 1, noise makes a new one."""
    edits = {"Strength": 0.6}, {"Strength": 1}, {"Strength": 1, "Method": "inversion"}
    for path, edit in zip(sorted(generated[0].rglob("*_T1w.json")), edits):
        path.write_text(json.dumps({"EditedImage": "sub-7_T1w.nii.gz"} | edit))
    page = page_of(generated)
    note = "2 of 6 generated volumes are edits of scans, and may identify persons."
    assert 0 < page.index(note) < page.index('<dl id="verdict">')
    assert page.count("edit of sub-7_T1w.nii.gz") == 2 and "sub-7_T1w.nii.gz" in cells(page, "Sampling, edited scan")[0]


def test_sections_that_answer_no_question_are_folded(generated, tmp_path):
    folder = write_section(tmp_path / "evaluation", "samples", title="Answer")
    write_section(folder, "segmentation", title="Detail")
    page = page_of(generated, "--evaluation", folder, "--viewer", 0)
    answer, detail = (page.split(f"<h2>{title}</h2>")[1].split("</section>")[0] for title in ("Answer", "Detail"))
    assert answer.index("<table") < answer.index("<details>") < answer.index("Two ")
    assert detail.index("<details>") < detail.index("<table")
