import re

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import read_volumes
from measurement.output_table import TEMPLATE_ICV_ML, identity_of

# Of FreeSurfer 7's aseg.stats: the header's measures in their form, the table shortened, the numbers ours.
ASEG_STATS = """\
# Title Segmentation Statistics
# generating_program mri_segstats
# Measure BrainSeg, BrainSegVol, Brain Segmentation Volume, 1169408.000000, mm^3
# Measure BrainSegNotVent, BrainSegVolNotVent, Brain Segmentation Volume Without Ventricles, 1150000.000000, mm^3
# Measure BrainSegVol-to-eTIV, BrainSegVol-to-eTIV, Ratio of BrainSegVol to eTIV, 0.823275, unitless
# Measure EstimatedTotalIntraCranialVol, eTIV, Estimated Total Intracranial Volume, 1420000.500000, mm^3
# NRows 5
# ColHeaders  Index SegId NVoxels Volume_mm3 StructName normMean normStdDev normMin normMax normRange
  1   4      5077     5581.1  Left-Lateral-Ventricle            27.3055    15.4437     0.0000    88.0000    88.0000
  2   5       132      195.5  Left-Inf-Lat-Vent                 53.1970     9.2625    37.0000    76.0000    39.0000
  3  16     21320    20000.0  Brain-Stem                        84.7268    12.0079    25.0000   140.0000   115.0000
  4  43      3051     3370.2  Right-Lateral-Ventricle           35.5257    16.2240     0.0000    81.0000    81.0000
  5  44       186      270.7  Right-Inf-Lat-Vent                46.6720    11.2473    14.0000    78.0000    64.0000
"""


@pytest.fixture
def read(tmp_path):
    """Rows of a file with this content."""

    def write_and_read(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        return list(read_volumes.read_source(path))

    return write_and_read


def synthseg_row(**changes):
    """SynthSeg's columns in its order (labels table.txt), mm3: each part of the brain 50 000, each ventricle part 5 000."""
    parts = ["cerebral white matter", "cerebral cortex", "lateral ventricle", "inferior lateral ventricle"]
    parts += ["cerebellum white matter", "cerebellum cortex", "thalamus", "caudate", "putamen", "pallidum"]
    left, right = ([f"{side} {part}" for part in parts] for side in ("left", "right"))
    row = {"subject": "sub-03_T1w", "total intracranial": 1_500_000.0}
    row |= dict.fromkeys(
        [*left, "3rd ventricle", "4th ventricle", "brain-stem", "left hippocampus", "left amygdala", "csf"], 5e4
    )
    row |= dict.fromkeys(["left accumbens area", "left ventral DC", *right, "right hippocampus", "right amygdala"], 5e4)
    row |= dict.fromkeys(["right accumbens area", "right ventral DC", "ctx-lh-bankssts", "ctx-rh-insula"], 5e4)
    row |= {name: 5000.0 for name in row if name.endswith("lateral ventricle")}
    return row | changes


def csv_of(*rows):
    return pd.DataFrame(rows).to_csv(index=False)


def test_synthseg_volumes_become_millilitres(read):
    [row] = read("volumes.csv", csv_of(synthseg_row()))
    assert row["participant_id"] == "sub-03" and row["tool"] == "SynthSeg"
    assert row["ventricles_ml"] == 4 * 5
    assert row["brain_ml"] == 25 * 50  # 12 parts on each side and the brain stem; no CSF, no parcels of the cortex again
    assert row["icv_ml"] == 1500
    assert row["brain_normalised_ml"] == pytest.approx(1250 * TEMPLATE_ICV_ML / 1500)


def test_synthseg_of_one_image_has_a_nameless_first_column(read):
    [row] = read("volumes.csv", csv_of(synthseg_row()).replace("subject,", ",", 1))
    assert row["participant_id"] == "sub-03" and row["icv_ml"] == 1500


def test_synthseg_1_without_intracranial_volume_is_refused(read):
    row = synthseg_row()
    del row["total intracranial"]
    [row] = read("volumes.csv", csv_of(row))
    assert "no total intracranial. SynthSeg 2.0 or later" in row["error"]


def test_aseg_stats_by_hand(read):
    [row] = read("bert/stats/aseg.stats", ASEG_STATS)
    assert row["participant_id"] == "bert" and row["tool"] == "FreeSurfer"
    assert row["ventricles_ml"] == pytest.approx(5.5811 + 0.1955 + 3.3702 + 0.2707)
    assert row["brain_ml"] == pytest.approx(1150 + 20)  # FreeSurfer's measure leaves the brain stem out
    assert row["icv_ml"] == pytest.approx(1420.0005)


def test_a_folder_of_recon_all_subjects_is_read(tmp_path, read):
    read("subjects/sub-02/stats/aseg.stats", ASEG_STATS)
    read("subjects/sub-01_ses-a/stats/aseg.stats", ASEG_STATS)
    (tmp_path / "subjects" / "fsaverage").mkdir()
    rows = read_volumes.read_all([tmp_path / "subjects"])
    assert [row["participant_id"] for row in rows] == ["sub-01", "sub-02"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("1150000.000000, mm^3", "1150.000000, ml", "BrainSegVolNotVent is in ml, expected mm.3"),
        ("1150000.000000", "lots", "BrainSegVolNotVent must be a number, decimals after a point, got 'lots'"),
        ("Brain-Stem", "Stem", "no Brain-Stem"),
        ("EstimatedTotalIntraCranialVol, eTIV,", "IntraCranialVol, ICV,", "FreeSurfer before 5.2"),
        ("# ColHeaders", "# Headers", "is this an aseg.stats"),
        ("5581.1", "0.0", "Left-Lateral-Ventricle would be 0 mm3: the segmentation failed"),
        ("5581.1", "5.5811", "Right-Lateral-Ventricle would be 3.37 mL, but 0.00558 mL on the other side"),
        ("1420000.5", "1420.5", "icv_ml would be 1.4205 mL, .*1000 times too small"),
    ],
)
def test_unusable_stats_are_refused_by_name(read, old, new, message):
    [row] = read("sub-01/stats/aseg.stats", ASEG_STATS.replace(old, new))
    assert re.search(message, row["error"])
    assert "sub-01/stats/aseg.stats" in row["error"] and np.isnan(row["brain_ml"])


def test_two_subjects_in_one_file_are_refused(read):
    """The row had the last subject's volumes, and the first subject was lost."""
    [row] = read("all.stats", ASEG_STATS + ASEG_STATS.replace("5581.1", "5581.2"))
    assert "all.stats: Left-Lateral-Ventricle is 5581.1 and 5581.2, as in two subjects' files joined" in row["error"]
    [row] = read("all.stats", ASEG_STATS + ASEG_STATS)
    assert row["error"] == "" and row["brain_ml"] == pytest.approx(1170)


@pytest.mark.parametrize(("volume", "refused"), [(4.9, True), (100, False)])
def test_a_side_in_another_unit_is_refused_and_an_unequal_head_is_read(read, volume, refused):
    [row] = read("volumes.csv", csv_of(synthseg_row(**{"left lateral ventricle": volume})))
    assert bool(row["error"]) == refused
    assert not refused or "right lateral ventricle would be 5 mL, but 0.0049 mL on the other side" in row["error"]


@pytest.mark.parametrize("separator", ["\t", ",", " "])
def test_asegstats2table_gives_the_volumes_of_aseg_stats(read, separator):
    [stats] = read("sub-01/stats/aseg.stats", ASEG_STATS)
    header = "Measure:volume Left-Lateral-Ventricle Left-Inf-Lat-Vent Brain-Stem Right-Lateral-Ventricle Right-Inf-Lat-Vent"
    header += " BrainSegVolNotVent EstimatedTotalIntraCranialVol"
    line = "/data/subjects/sub-01/ 5581.1 195.5 20000.0 3370.2 270.7 1150000.0 1420000.5"
    [row] = read("table.txt", f"{header}\n{line}\n".replace(" ", separator))
    same = ("participant_id", *read_volumes.VOLUMES, "brain_normalised_ml", "tool")
    assert [row[name] for name in same] == pytest.approx([stats[name] for name in same])


def test_mm3_in_a_column_of_millilitres_is_refused_with_its_row(read):
    good, bad = read("a.tsv", "participant_id\tventricles_ml\nsub-1\t25.5\nsub-2\t20000\n")
    assert good["ventricles_ml"] == 25.5 and np.isnan(good["icv_ml"])
    [own] = read("a.tsv", "participant_id\tventricles_ml\tbrain_normalised_ml\nsub-1\t25.5\t1500\n")
    assert own["brain_normalised_ml"] == 1500  # it cannot be computed here
    assert good["flags"] == "brain_ml_missing,icv_ml_missing"
    assert "a.tsv row 3 (sub-2): ventricles_ml would be 20000 mL" in bad["error"] and "looks like mm3" in bad["error"]


@pytest.mark.parametrize("name", ["Average", "mean", "total"])
def test_a_row_that_sums_up_others_is_no_participant(read, name):
    good, bad = read("a.tsv", f"participant_id\tventricles_ml\nsub-1\t25.5\n{name}\t25.5\n")
    assert good["error"] == "" and f"a.tsv row 3 ({name}): this row sums up others, and is left out" in bad["error"]


def test_a_table_of_another_kind_is_refused_with_its_columns(read):
    with pytest.raises(ValueError, match="no table of SynthSeg.*columns are name, thickness"):
        read("a.csv", "name,thickness\nx,2\n")


def test_a_table_without_rows_is_refused(read):
    with pytest.raises(ValueError, match="only a header"):
        read("a.tsv", "participant_id\tventricles_ml\n")


def shown(rows, *names):
    """Some cells of each row; a refused row shows its error."""
    return [row["error"] or tuple(row[name] for name in names) for row in rows]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("separator", ["\t", ", ", ";", "  "])
def test_columns_are_found_in_any_case_and_with_blanks(tmp_path, encoding, separator):
    """Columns after a comma and a blank were lost, and Participant_ID was a KeyError."""
    table = "Participant_ID|Ventricles_mL|BRAIN_ML|icv_ml\nsub-01|30|1200|1500\nsub-02|NA|1100|1400\n"
    (tmp_path / "a.csv").write_text(table.replace("|", separator), encoding=encoding)
    first, second = read_volumes.read_source(tmp_path / "a.csv")
    assert [first[name] for name in read_volumes.VOLUMES] == [30, 1200, 1500] and first["flags"] == ""
    assert second["flags"] == "ventricles_ml_missing"


def test_an_index_column_is_not_taken_for_participants(read):
    table = pd.DataFrame([synthseg_row(subject="sub-03"), synthseg_row(subject="sub-04")])
    assert [row["participant_id"] for row in read("a.csv", table.to_csv())] == ["sub-03", "sub-04"]
    table = table.rename(columns={"subject": "whoever"})
    with pytest.raises(ValueError, match="a.csv: its first column numbers the rows. Call the column of participants"):
        read("a.csv", table.to_csv())
    assert [row["participant_id"] for row in read("a.csv", table.to_csv(index=False))] == ["sub-03", "sub-04"]


@pytest.mark.parametrize(
    ("name", "scan"),
    [
        ("sub-01", ("sub-01", None)),
        ("sub-01_ses-02", ("sub-01", "ses-02")),
        ("sub-01_ses-02.long.sub-01", ("sub-01", "ses-02")),
        ("sub-01_ses-02.long.sub-01_base", ("sub-01", "ses-02")),
        ("sub-01_ses-m60_run-1_T1w.nii.gz", ("sub-01", "ses-m60")),
        ("/data/sub-01/ses-02/anat/sub-01_ses-02_T1w.nii.gz", ("sub-01", "ses-02")),
        ("/data/sub-01/ses-02/anat/T1w.nii.gz", ("sub-01", "ses-02")),
        ("/data/sub-01/ses-02", ("sub-01", "ses-02")),
        ("/data/ses-9/sub-01/T1w.nii.gz", ("sub-01", None)),
        ("/data/sub-99_study/bert/", ("bert", None)),
        ("OAS30001_MR_d0129", ("OAS30001_MR_d0129", None)),
    ],
)
def test_names_hold_participant_and_session(name, scan):
    assert identity_of(name) == scan


def test_sessions_of_a_table_stay_apart(tmp_path, monkeypatch):
    """The second session was refused as the same participant twice."""
    names = ["sub-01_ses-01", "/out/sub-01/ses-02/anat/sub-01_ses-02_T1w.nii.gz", "sub-02_ses-01.long.sub-02"]
    (tmp_path / "v.csv").write_text(csv_of(*(synthseg_row(subject=name) for name in names)))
    (tmp_path / "own.tsv").write_text("participant_id\tSession_ID\tventricles_ml\nsub-03\t1\t20\nsub-03\tses-2\t25\n")
    arguments = [str(tmp_path / "v.csv"), str(tmp_path / "own.tsv"), "--output", str(tmp_path / "out.tsv")]
    monkeypatch.setattr("sys.argv", ["read_volumes.py", *arguments])
    assert read_volumes.main() == 0
    table = pd.read_csv(tmp_path / "out.tsv", sep="\t")
    assert list(table.columns[:3]) == ["participant_id", "session_id", "file"]
    assert list(table["participant_id"] + " " + table["session_id"]) == [
        *("sub-01 ses-01", "sub-01 ses-02", "sub-02 ses-01", "sub-03 ses-1", "sub-03 ses-2"),
    ]
    table.assign(qc="good").to_csv(tmp_path / "out.tsv", sep="\t", index=False)
    with pytest.raises(ValueError, match="out.tsv: this output has the column 'qc', which would be lost"):
        read_volumes.main()


def test_the_longitudinal_run_of_a_session_replaces_the_others(tmp_path, read):
    for name in ("sub-01", "sub-01_ses-1", "sub-01_ses-2", "sub-01_ses-1.long.sub-01", "sub-01_ses-2.long.sub-01", "sub-02"):
        read(f"subjects/{name}/stats/aseg.stats", ASEG_STATS)
    rows = read_volumes.read_all([tmp_path / "subjects"])
    assert shown(rows, "participant_id", "session_id") == [("sub-01", "ses-1"), ("sub-01", "ses-2"), ("sub-02", None)]
    assert ".long." in rows[0]["file"]


def test_runs_of_freesurfer_without_volumes_are_named(tmp_path, read, capsys):
    read("subjects/sub-01/stats/aseg.stats", ASEG_STATS)
    for name in ("sub-01", "sub-02", "fsaverage5"):
        (tmp_path / "subjects" / name / "mri").mkdir(parents=True)
    assert shown(read_volumes.read_all([tmp_path / "subjects"]), "participant_id") == [("sub-01",)]
    assert "left out, without stats/aseg.stats: sub-02. Has" in capsys.readouterr().err


def test_volumes_of_a_subject_whose_last_run_stopped_get_a_flag(tmp_path, read):
    read("fs/s1/stats/aseg.stats", ASEG_STATS)
    (tmp_path / "fs" / "s1" / "scripts").mkdir()
    (tmp_path / "fs" / "s1" / "scripts" / "recon-all.error").touch()
    read("fs/s2/stats/aseg.stats", ASEG_STATS)
    read("fs/s3/stats/aseg.stats", ASEG_STATS)
    (tmp_path / "fs" / "s3" / "scripts").mkdir()
    (tmp_path / "fs" / "s3" / "scripts" / "IsRunning.lh+rh").touch()  # a cluster ended the run
    flags = [row["flags"] for row in read_volumes.read_source(tmp_path / "fs")]
    assert flags == ["recon_all_stopped", "", "recon_all_stopped"]


def test_a_link_without_its_file_is_named_and_others_are_read(tmp_path, read):
    read("fs/s2/stats/aseg.stats", ASEG_STATS)
    (tmp_path / "fs" / "s1" / "stats").mkdir(parents=True)
    (tmp_path / "fs" / "s1" / "stats" / "aseg.stats").symlink_to("../annex/objects/x")
    first, second = read_volumes.read_all([tmp_path / "fs"])
    assert re.search("s1/stats/aseg.stats: is a link to ../annex/objects/x, which does not exist. Fetch", first["error"])
    assert not second["error"]


def test_a_link_to_another_subject_is_no_second_scan(tmp_path, read):
    read("fs/s1/stats/aseg.stats", ASEG_STATS)
    (tmp_path / "fs" / "s2").symlink_to("s1")
    with pytest.raises(ValueError, match="s2/stats/aseg.stats and .*s1/stats/aseg.stats are one file, .* Remove the link"):
        list(read_volumes.read_source(tmp_path / "fs"))


def test_a_negative_structure_is_refused(read):
    [row] = read("volumes.csv", csv_of(synthseg_row(**{"left inferior lateral ventricle": -9000.0})))
    assert "left inferior lateral ventricle would be -9000 mm3: the segmentation failed" in row["error"]


@pytest.mark.parametrize(("given", "flags"), [(1400, ""), (1210, "brain_normalised_ml_differs")])
def test_a_normalised_brain_that_is_not_the_computed_one_gets_a_flag(read, given, flags):
    """1100 mL x 1902 / 1500 are 1394.8 mL."""
    table = f"participant_id\tventricles_ml\tbrain_ml\ticv_ml\tbrain_normalised_ml\nsub-1\t20\t1100\t1500\t{given}\n"
    [row] = read("own.tsv", table)
    assert row["flags"] == flags and row["brain_normalised_ml"] == pytest.approx(1394.8)


def test_a_template_of_several_sessions_is_refused(tmp_path, read):
    for name in ("sub-01", "sub-01_ses-1"):
        read(f"subjects/{name}/stats/aseg.stats", ASEG_STATS)
    with pytest.raises(ValueError, match="sub-01 in .* and sub-01 ses-1 in .* may be one scan. .* template"):
        read_volumes.read_all([tmp_path / "subjects"])


def test_a_session_that_contradicts_the_name_is_refused(read):
    [row] = read("a.tsv", "participant_id\tsession_id\tventricles_ml\nsub-1_ses-2\tses-3\t25\n")
    assert "row 2 (sub-1_ses-2): session_id is ses-3, but the name is of ses-2" in row["error"]


@pytest.mark.parametrize("file", ["sub-2/anat/sub-2_T1w.nii.gz", "sub-1/ses-4/anat/sub-1_ses-4_T1w.nii.gz"])
def test_a_file_of_another_scan_is_refused(read, file):
    """Rows that were shifted against each other in a spreadsheet were read."""
    [row] = read("a.tsv", f"participant_id\tsession_id\tventricles_ml\tfile\nsub-1\tses-3\t25\t{file}\n")
    assert f"its file is {file}, another scan's" in row["error"]


def test_flags_of_a_table_stay(read):
    header, cells = "participant_id\tventricles_ml\tbrain_ml\ticv_ml\tflags", "sub-1\t30\t1170\t1500\trecon_all_stopped"
    [row] = read("a.tsv", f"{header}\n{cells}\n")
    assert row["flags"] == "recon_all_stopped"


def test_volumes_that_recon_all_got_from_synthseg_are_its_subjects(tmp_path, read):
    """FreeSurfer 8 calls each image orig.mgz."""
    for name in ("sub-01", "sub-02"):
        read(f"subjects/{name}/stats/synthseg.vol.csv", csv_of(synthseg_row(subject="orig.mgz")))
    rows = read_volumes.read_all(sorted(tmp_path.rglob("*.csv")))
    assert [row["participant_id"] for row in rows] == ["sub-01", "sub-02"]


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ("30\t1170\t950", "brain_ml and ventricles_ml are 1200 mL together, more than icv_ml, 950 mL"),
        ("2.0\t78\t100", "brain_ml would be 78 mL"),
        ("-3\t1170\t1500", "ventricles_ml would be -3 mL"),
        ("30\t0\t1500", "brain_ml would be 0 mL"),
        ("30\t1170\t1.5", "icv_ml would be 1.5 mL.*like L for mL"),
        ("30\t1170,5\t1500", "brain_ml must be a number, decimals after a point, got '1170,5'"),
        ("30\tinf\t1500", "brain_ml must be a number"),
        ("30\t1170", "3 cells for 4 columns"),
        ('30\t"1170\t1500', "cannot be read"),
    ],
)
def test_a_row_that_no_head_has_is_refused_and_the_others_are_read(read, cells, message):
    rows = read("a.tsv", f"participant_id\tventricles_ml\tbrain_ml\ticv_ml\nsub-0\t30\t1170\t1500\nsub-1\t{cells}\n")
    assert rows[0]["error"] == "" and rows[0]["icv_ml"] == 1500
    assert re.search(f"a.tsv row 3.*{message}", rows[1]["error"])


def test_ventricles_in_percent_are_refused(read):
    rows = "".join(f"sub-{number}\t{value}\n" for number, value in enumerate((1.2, 2.5, 3.4, 6.1)))
    with pytest.raises(ValueError, match="a.tsv: the median of ventricles_ml is 2.95, which looks like percent of the head"):
        read("a.tsv", f"participant_id\tventricles_ml\n{rows}")
    [row] = read("a.tsv", "participant_id\tventricles_ml\nsub-1\t4.1\n")
    assert "ventricles_ml_unusual" in row["flags"]


# --- Segmentations


SHAPE = (40, 56, 48)  # 4 mm voxels of 0.064 mL


def synthseg_map():
    """Blocks of known size: 100 ventricle voxels in each label, brain 2 x 6000, CSF 3000."""
    labels = np.zeros(SHAPE, np.int32)
    labels[5:35, 10:50, 10:20] = 3
    labels[5:20, 30:50, 10:20] = 42
    labels[5:35, 10:30, 20:30] = 24
    labels[5:35, 30:50, 20:30] = 16
    flat = labels.ravel()
    for start, label in ((0, 4), (100, 5), (200, 43), (300, 44), (400, 14)):
        flat[np.flatnonzero(flat == 3)[start : start + 100]] = label
    return labels


def saved(labels, path, spacing_mm=4.0, codes="RAS"):
    """The map stored in the order of `codes`."""
    image = nib.Nifti1Image(labels, np.diag([spacing_mm] * 3 + [1.0]))
    ornt = nib.orientations.axcodes2ornt(codes)
    image = image.as_reoriented(nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), ornt))
    nib.save(image if not str(path).endswith(".mgz") else nib.MGHImage(np.asarray(image.dataobj), image.affine), path)
    return path


def count(labels, *values):
    return np.isin(labels, values).sum() * 0.064


@pytest.mark.parametrize(("name", "codes"), [("sub-05_dseg.nii.gz", "RAS"), ("sub-05.mgz", "LIA")])
def test_segmentation_of_synthseg_is_counted(tmp_path, name, codes):
    labels = synthseg_map()
    [row] = read_volumes.read_source(saved(labels, tmp_path / name, codes=codes))
    assert row["participant_id"] == "sub-05" and row["tool"] == "SynthSeg segmentation"
    assert row["ventricles_ml"] == pytest.approx(400 * 0.064, rel=1e-5)
    assert row["brain_ml"] == pytest.approx(count(labels, 3, 42, 16), rel=1e-5)  # without the third ventricle
    assert row["icv_ml"] == pytest.approx((labels != 0).sum() * 0.064, rel=1e-5)


def test_aseg_has_no_intracranial_volume(tmp_path):
    labels = synthseg_map()
    labels[labels == 24] = 2
    labels[20:35][labels[20:35] == 2] = 41
    flat = labels.ravel()
    flat[np.flatnonzero(flat == 2)[:50]] = 31
    (tmp_path / "sub-06" / "mri").mkdir(parents=True)
    [row] = read_volumes.read_source(saved(labels, tmp_path / "sub-06" / "mri" / "aseg.mgz"))
    assert row["participant_id"] == "sub-06" and row["tool"] == "FreeSurfer segmentation"
    assert np.isnan(row["icv_ml"]) and np.isnan(row["brain_normalised_ml"]) and row["flags"].endswith(",icv_ml_missing")
    assert row["brain_ml"] == pytest.approx(count(labels, 2, 3, 41, 42, 16), rel=1e-5)  # without the choroid plexus


def test_volumes_follow_the_spacing_of_the_affine(tmp_path):
    [four] = read_volumes.read_source(saved(synthseg_map(), tmp_path / "a.nii.gz"))
    [three] = read_volumes.read_source(saved(synthseg_map(), tmp_path / "b.nii.gz", spacing_mm=3.6))
    assert three["ventricles_ml"] / four["ventricles_ml"] == pytest.approx(0.9**3, rel=1e-5)


def without(*values, of=None):
    """The map in which the first `values` are gone: parts of the brain stem or, with `of`, of that label."""
    labels = synthseg_map()
    labels[np.isin(labels, values)] = of or 16
    return labels


@pytest.mark.parametrize(
    ("labels", "spacing_mm", "message"),
    [
        (without(4, 5), 4, "right lateral ventricle would be 12.8 mL, but 0 mL on the other side: the segmentation failed"),
        (without(42), 4, "left cerebral cortex would be .* mL, but 0 mL on the other side"),
        (without(5, 42, 43, 44, of=3), 4, ""),  # both sides have the numbers of the left
        (np.where(synthseg_map() == 24, 25, synthseg_map()), 4, ""),  # a lesion on one side
        (without(4, 5), 2.9, ""),  # 4.9 mL
    ],
)
def test_a_map_that_lacks_one_side_of_a_structure_is_refused(tmp_path, labels, spacing_mm, message):
    """A map without left ventricle counted half of the ventricles, without a word."""
    [row] = read_volumes.read_source(saved(labels, tmp_path / "sub-07_dseg.nii.gz", spacing_mm))
    assert re.search(message, row["error"]) if message else row["error"] == "" and row["brain_ml"] > 0


@pytest.mark.parametrize(
    ("lacking", "flags"),
    [((), ""), ((16,), "no_brain_stem"), ((7, 8, 46, 47), "no_cerebellar_cortex,no_cerebellar_white_matter")],
)
def test_a_map_that_lacks_a_large_structure_has_a_flag(tmp_path, lacking, flags):
    """A map without cerebellum counted 120 mL less brain, without a word."""
    labels = synthseg_map()
    for number, value in enumerate((2, 41, 8, 47, 7, 46, 10, 49, 11, 50, 12, 51, 17, 53, 28, 60)):
        labels[5 + number, 30:40, 20:30] = value
    labels[np.isin(labels, lacking)] = 24
    [row] = read_volumes.read_source(saved(labels, tmp_path / "sub-05_dseg.nii.gz", spacing_mm=4.2))
    assert row["error"] == "" and ",".join(flag for flag in row["flags"].split(",") if flag.startswith("no_")) == flags


def test_samseg_has_an_intracranial_volume_without_skull_and_eyes(tmp_path):
    labels = synthseg_map()
    head = labels != 0
    labels[:2], labels[2:3] = 258, 165
    assert not head[:3].any()
    [row] = read_volumes.read_source(saved(labels, tmp_path / "sub-05_dseg.nii.gz"), "samseg")
    assert row["tool"] == "SAMSEG segmentation" and row["error"] == ""
    assert row["icv_ml"] == pytest.approx(head.sum() * 0.064, rel=1e-5)


def test_other_numbers_are_counted_by_their_own_table(tmp_path):
    """18 is a ventricle of UNesT, and the amygdala in FreeSurfer."""
    labels = np.select(
        [synthseg_map() == value for value in (3, 42, 4, 43, 5, 44, 16, 14)], [36, 35, 21, 20, 19, 18, 7, 1]
    ).astype(np.int32)
    [row] = read_volumes.read_source(saved(labels, tmp_path / "sub-05_dseg.nii.gz"), "unest")
    assert row["tool"] == "UNesT segmentation" and np.isnan(row["icv_ml"])
    assert row["ventricles_ml"] == pytest.approx(count(labels, 18, 19, 20, 21), rel=1e-5)
    assert row["brain_ml"] == pytest.approx(count(labels, 36, 35, 7), rel=1e-5)


def test_the_sidecar_of_a_map_names_its_tool(tmp_path):
    """A map of MeshNet was called FreeSurfer's, whose volumes differ."""
    path = saved(without(24), tmp_path / "sub-05_dseg.nii.gz")
    (tmp_path / "sub-05_dseg.json").write_text('{"SegmentedBy": "MeshNet"}')
    [row] = read_volumes.read_source(path)
    assert row["tool"] == "MeshNet segmentation" and np.isnan(row["icv_ml"])


def with_value(value, dtype=np.int32):
    labels = synthseg_map().astype(dtype)
    labels[7, 12, 12:14] = value
    return labels


@pytest.mark.parametrize(
    ("labels", "spacing_mm", "message"),
    [
        (np.zeros(SHAPE, np.int16), 4, "empty, all 107520 voxels are 0"),
        (with_value(999), 4, r"labels 999 \(0.1 mL\) are not in the label table 'freesurfer'. Choose"),
        (with_value(2.5, np.float32), 4, "not integers"),
        (with_value(np.nan, np.float32), 4, "2 voxels are NaN or infinite"),
        (synthseg_map(), 0.004, r"has voxels of \(0.004, 0.004, 0.004\) mm"),
        (synthseg_map(), 0.4, "ventricles_ml would be .* 1000 times too small"),
        (np.stack([synthseg_map()] * 2, -1), 4, r"has 4 dimensions \(40, 56, 48, 2\)"),
        (np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")]), 4, "has voxels of type RGB"),
    ],
)
def test_what_is_no_segmentation_of_a_head_is_refused(tmp_path, labels, spacing_mm, message):
    nib.save(nib.Nifti1Image(labels, np.diag([spacing_mm] * 3 + [1.0])), tmp_path / "sub-07_dseg.nii.gz")
    [row] = read_volumes.read_source(tmp_path / "sub-07_dseg.nii.gz")
    assert re.search(message, row["error"])
    assert "sub-07_dseg.nii.gz" in row["error"]


# --- The command


def test_command_writes_the_columns_of_measure_volumes_and_the_tool(tmp_path, monkeypatch, capsys):
    (tmp_path / "v.csv").write_text(csv_of(synthseg_row(), synthseg_row(subject="sub-04", csf=1, **{"total intracranial": 9})))
    output = tmp_path / "volumes.tsv"
    monkeypatch.setattr("sys.argv", ["read_volumes.py", str(tmp_path / "v.csv"), "--output", str(output)])
    assert read_volumes.main() == 1
    table = pd.read_csv(output, sep="\t")
    columns = ["participant_id", "file", "ventricles_ml", "brain_ml", "icv_ml", "brain_normalised_ml", "flags", "tool"]
    assert table.columns.tolist() == columns
    assert table.participant_id.tolist() == ["sub-03"]
    assert "row 3 (sub-04): icv_ml would be 0.009 mL" in capsys.readouterr().err


def test_nothing_is_written_when_nothing_can_be_used(tmp_path, monkeypatch):
    (tmp_path / "v.csv").write_text(csv_of(synthseg_row(**{"total intracranial": 9})))
    monkeypatch.setattr("sys.argv", ["read_volumes.py", str(tmp_path / "v.csv"), "--output", str(tmp_path / "out.tsv")])
    with pytest.raises(ValueError, match="none of 1 rows can be used"):
        read_volumes.main()
    assert not (tmp_path / "out.tsv").exists()


def test_a_participant_twice_is_refused_with_both_places(tmp_path):
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text(csv_of(synthseg_row()))
    with pytest.raises(ValueError, match="sub-03 in .*a.csv and sub-03 in .*b.csv may be one scan"):
        read_volumes.read_all([tmp_path / "a.csv", tmp_path / "b.csv"])


def test_an_absent_source_or_empty_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        read_volumes.read_all([tmp_path / "absent.csv"])
    with pytest.raises(FileNotFoundError, match=r"no stats/aseg.stats.*Give tables by name"):
        read_volumes.read_all([tmp_path])
    (tmp_path / "a.xlsx").write_bytes(b"")
    with pytest.raises(ValueError, match="not a table"):
        read_volumes.read_all([tmp_path / "a.xlsx"])


def test_a_data_set_whose_maps_are_derivatives_is_refused_with_their_folders(tmp_path):
    for name in ("synthseg", "freesurfer"):
        (tmp_path / "derivatives" / name).mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="Give .*/derivatives/freesurfer or .*/derivatives/synthseg$"):
        list(read_volumes.read_source(tmp_path))


def test_a_segmentation_in_capitals_is_read_and_named_without_its_ending(tmp_path):
    """Its participant was X.NII.GZ."""
    [row] = read_volumes.read_source(saved(synthseg_map(), tmp_path / "sub-1_dseg.nii.gz").rename(tmp_path / "X.NII.GZ"))
    assert (row["participant_id"], row["error"]) == ("X", "")


def test_a_name_keeps_its_points():
    """The participant smith.j became smith."""
    names = {"smith.j": "smith.j", "smith.j.nii.gz": "smith.j", "a.1.long.a_base": "a.1", "101.0": "101"}
    assert {name: identity_of(name)[0] for name in names} == names
