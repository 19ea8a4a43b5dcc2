import csv
import json
import re
import shutil
import weakref
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from brain_ldm.evaluation.test_feature_extractors import write_regressor
from monai.bundle import ConfigParser, run
from scipy import ndimage
from tiny import SPACING_MM, write_dataset

from brain_ldm_bundle.scripts.data.bids import find_volumes
from brain_ldm_bundle.scripts.evaluation.diversity import KERNEL_SIGMA, KERNEL_SIZE, mean_over_pairs, multi_scale_ssim
from brain_ldm_bundle.scripts.evaluation.feature_extractors import Extractor
from brain_ldm_bundle.scripts.evaluation.gradient_ssim import GradientSSIMMetric
from brain_ldm_bundle.scripts.evaluation.table1 import BLUR, HELD_OUT, MEAN, SampleEvaluation
from brain_ldm_bundle.scripts.evaluation.table1_report import FLOOR
from brain_ldm_bundle.scripts.model.networks import DiffusionUNet
from brain_ldm_bundle.scripts.shared.files import save_weights


def changed(dataset, folder, change):
    """A copy of a data set of which each image went through `change`, an array of 0 to 1."""
    shutil.copytree(dataset, folder)
    for path in folder.glob("sub-*/anat/*.nii.gz"):
        image = nib.load(path)
        array = np.clip(change(image.get_fdata() / 230, np.random.default_rng(int(path.name[4:8]))), 0, 1)
        new = nib.Nifti1Image(np.round(array * 255).astype(np.uint8), image.affine)
        new.set_sform(image.affine, code="mni")
        new.header.set_slope_inter(np.nextafter(np.float32(1 / 255), np.float32(0)), 0)
        nib.save(new, path)
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Blobs, and sets made of other blobs, that are like them or wrong in one way."""
    folder = tmp_path_factory.mktemp("sets")
    real = write_dataset(folder / "real", training=24, validation=0)
    return real, {
        "alike": changed(real, folder / "alike", lambda x, rng: x * (1 + 0.02 * rng.standard_normal())),
        "blurred": changed(real, folder / "blurred", lambda x, rng: ndimage.gaussian_filter(x, 1)),
        "brighter": changed(real, folder / "brighter", lambda x, rng: 0.1 + x),
        "shifted": changed(real, folder / "shifted", lambda x, rng: np.roll(x, 3, axis=1)),
        "faint": changed(real, folder / "faint", lambda x, rng: 0.5 * x),
    }


def load_as_written(item):
    return {"image": torch.from_numpy(nib.load(item["image"]).get_fdata(dtype=np.float32))[None]}


def load_stretched(item):
    image = load_as_written(item)["image"]
    return {"image": image / image.max()}


def low_resolution(volume):
    """A stand-in for a network's features: sharpness, and a coarse picture."""
    sharpness = volume.diff(dim=3).abs().mean() * 20
    return torch.cat([sharpness[None], torch.nn.functional.adaptive_avg_pool3d(volume[0], (2, 3, 2)).flatten() * 3])[None]


def evaluation(real, samples, folder, **given):
    checked = real.parent / "checked_images.json"
    scans = find_volumes(real, SPACING_MM, checked)
    settings = {
        "samples": samples,
        "data": {"training": scans[:18], "validation": scans[18:]},
        "reference_split": "training",
        "preprocessing": load_stretched,
        "sample_preprocessing": load_as_written,
        "extractor": lambda: Extractor(low_resolution, "stand-in", standardise=True),
        "spacing_mm": SPACING_MM,
        "pairs": 12,
        "feature_dimensions": None,
        "seed": 0,
        "device": torch.device("cpu"),
        "output_dir": folder,
        "cache_file": checked,
    }
    return SampleEvaluation(**settings | given)


@pytest.fixture(scope="module")
def result(sets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    return evaluation(*sets, folder).run(), folder


def test_wrong_sets_are_farther_than_the_floor_and_the_like(result):
    rows = result[0]["sets"]
    assert list(rows) == [FLOOR, HELD_OUT, "alike", "blurred", "brighter", "shifted", "faint", BLUR, MEAN]
    close = max(rows[name]["fid_corrected"] for name in (FLOOR, HELD_OUT, "alike"))
    for name in ("blurred", "brighter", "shifted", "faint", BLUR, MEAN):
        assert rows[name]["fid_corrected"] > close + rows[name]["fid_standard_error"], name
        assert rows[name]["squared_mmd"] > max(rows[FLOOR]["squared_mmd"], rows["alike"]["squared_mmd"]), name
        assert rows[name]["coverage"] < rows["alike"]["coverage"], name


def test_diversity_is_that_of_the_real_scans_or_none(result):
    rows = result[0]["sets"]
    assert rows[MEAN]["ms_ssim"]["mean"] == pytest.approx(1) and rows[MEAN]["gradient_ssim"]["mean"] == pytest.approx(1)
    for key in ("ms_ssim", "gradient_ssim"):
        assert rows["alike"][key]["mean"] == pytest.approx(rows[FLOOR][key]["mean"], abs=0.1)
        assert rows[BLUR][key]["mean"] > rows[FLOOR][key]["mean"]


def test_intensities_tell_what_is_wrong_with_them(result):
    rows = result[0]["sets"]
    assert rows["brighter"]["background"] == pytest.approx(rows["alike"]["background"] + 0.1, abs=0.01)
    assert rows["brighter"]["clipped"] > rows["alike"]["clipped"]
    assert rows["brighter"]["histogram_distance"] > 2 * rows["alike"]["histogram_distance"]


def test_a_faint_set_is_not_made_bright_like_the_scans(result):
    faint, alike = (result[0]["sets"][name] for name in ("faint", "alike"))
    assert faint["background"] == pytest.approx(0.5 * alike["background"], abs=2 / 255)
    assert faint["clipped"] == 0 and faint["histogram_distance"] > 0.3


def test_everything_is_written_for_programs_and_readers(sets, result):
    found, folder = result
    assert json.loads((folder / "samples.json").read_text()) == found
    assert found["extractor"] == "stand-in" and found["reference"] == {"split": "training", "n": 18, "blurred": 18}
    pairs, volumes = (list(csv.DictReader(open(folder / f"samples_{x}.tsv"), delimiter="\t")) for x in ("pairs", "volumes"))
    of_alike = [float(row["ms_ssim"]) for row in pairs if row["set"] == "alike"]
    assert len(of_alike) == 12 and np.mean(of_alike) == pytest.approx(found["sets"]["alike"]["ms_ssim"]["mean"], abs=1e-5)
    assert {row["participant_id"] for row in volumes if row["set"] == HELD_OUT} == {f"sub-00{n}" for n in range(19, 25)}
    section = json.loads((folder / "samples.section.json").read_text())
    assert [table["header"][0] for table in section["tables"]] == ["", "", ""]
    trained_on = "not known: its weights are missing"
    alike = {"folder": str(sets[1]["alike"]), "n": 24, "provenance": {}, "trained_on": trained_on}
    assert found["samples"]["alike"] == alike
    assert section["tables"][2]["rows"][0] == ["alike", "24", "unknown", trained_on, "alike"]  # no place of this computer
    assert section["tables"][0]["rows"][0][:2] == [FLOOR, "9 + 9"]
    for needed in ("stand-in", "18 real scans", "at 8 mm", "along the 2 first principal components", "2 scales", "all scans"):
        assert needed in section["text"], needed
    assert "The row of held-out scans, new scans" in section["text"] and "no row of held-out" not in section["text"]


def interval(mean, error):
    ends = [mean, mean - 1.96 * error, mean + 1.96 * error]
    return pytest.approx(ends, abs=0.1 * 2 * 1.96 * error + 0.001 * max(map(abs, ends)))  # see `with_interval`


def test_each_cell_of_a_row_is_the_number_that_its_column_names(result):
    found, folder = result
    section = json.loads((folder / "samples.section.json").read_text())
    cells = {}
    for table in section["tables"]:
        for line in table["rows"]:
            if line[0] == "alike":
                cells |= dict(zip(table["header"], line, strict=True))
    row = found["sets"]["alike"]
    assert f"{cells['FID, corrected for n [95 %]']} for alike" in section["verdict"]
    assert f"{cells['MS-SSIM [95 %]']} for alike" in section["verdict"]
    assert len({f"{row[key]:.2f}" for key in ("density", "coverage")}) == 2  # or a swap would not show
    numbers = {name: [float(x) for x in re.findall(r"-?[\d.]+", cell)] for name, cell in cells.items() if name}
    assert numbers["volumes"] == [24] and numbers["pairs"] == [12]
    assert numbers["FID"] == pytest.approx([row["fid"]], rel=0.01)
    assert numbers["FID, corrected for n [95 %]"] == interval(row["fid_corrected"], row["fid_standard_error"])
    assert numbers["MS-SSIM [95 %]"] == interval(row["ms_ssim"]["mean"], row["ms_ssim"]["standard_error"])
    assert numbers["4-G-R-SSIM [95 %]"] == interval(row["gradient_ssim"]["mean"], row["gradient_ssim"]["standard_error"])
    mmd = 1000 * np.array([row["squared_mmd"], row["squared_mmd_standard_error"]])
    assert numbers["MMD\u00b2 x 1000 [95 %]"] == interval(*mmd)
    for name, key, scale in (
        ("density", "density", 1),
        ("coverage", "coverage", 1),
        ("grey values", "histogram_distance", 1),
        ("background", "background", 1),
        ("corners", "corners", 100),
        ("clipped", "clipped", 100),
    ):
        assert numbers[name] == pytest.approx([scale * row[key]], abs=0.0051), name


def test_the_scores_of_a_pair_are_those_of_its_two_volumes(sets, result):
    found, folder = result
    pairs = [row for row in csv.DictReader(open(folder / "samples_pairs.tsv"), delimiter="\t") if row["set"] == "alike"]
    paths = [sets[1]["alike"] / pairs[0][x] / "anat" / f"{pairs[0][x]}_T1w.nii.gz" for x in ("first", "second")]
    a, b = ((255 * load_as_written({"image": path})["image"]).round()[None] / 255 for path in paths)
    assert float(pairs[0]["ms_ssim"]) == pytest.approx(float(multi_scale_ssim(a.shape[2:])(a, b)), abs=2e-5)
    assert float(pairs[0]["gradient_ssim"]) == pytest.approx(
        float(GradientSSIMMetric(KERNEL_SIZE, KERNEL_SIGMA)(a, b)), abs=2e-5
    )
    for key in ("ms_ssim", "gradient_ssim"):
        assert found["sets"]["alike"][key]["mean"] == pytest.approx(np.mean([float(row[key]) for row in pairs]), abs=1e-5)


def test_numbers_can_be_had_again_and_other_sets_of_a_size_do_not_change_them(sets, result, tmp_path):
    alone = evaluation(sets[0], {"alike": sets[1]["alike"]}, tmp_path, num_workers=2).run()
    for name in (FLOOR, HELD_OUT, "alike", BLUR, MEAN):
        assert alone["sets"][name] == result[0]["sets"][name]


def test_a_part_of_the_scans_is_blurred_and_the_section_says_so(sets, tmp_path):
    found = evaluation(sets[0], {"alike": sets[1]["alike"]}, tmp_path, blurred_scans=4, pairs=2).run()
    assert found["reference"] == {"split": "training", "n": 18, "blurred": 8}  # four for each of two dimensions
    assert found["sets"][BLUR]["n"] == 8 and found["sets"][FLOOR]["n"] == 18
    assert "(8 of its 18 scans, drawn by the seed, without details)" in (tmp_path / "samples.section.json").read_text()


def test_the_smallest_set_decides_the_components_of_all_rows_unless_they_are_given(sets, result, tmp_path):
    for name in ("sub-0001", "sub-0002", "sub-0003", "sub-0004"):
        shutil.copytree(sets[1]["alike"] / name, tmp_path / "few" / name)
    samples = {"alike": sets[1]["alike"], "few": tmp_path / "few"}
    found = [evaluation(sets[0], samples, tmp_path, feature_dimensions=n, pairs=1).run() for n in (None, 2)]
    assert [one["features"]["dimensions"] for one in found] == [1, 2] and result[0]["features"]["dimensions"] == 2
    fids = [one["sets"]["alike"]["fid"] for one in (*found, result[0])]
    assert fids[0] != pytest.approx(fids[2], rel=0.01) and fids[1] == pytest.approx(fids[2], rel=1e-9)


def test_sessions_of_one_person_stay_together(sets, tmp_path):
    """Two scans of each person: halves of people, pairs of two people, errors that count people."""
    real, samples = sets
    data = {"training": find_volumes(real, SPACING_MM)[:12] + find_volumes(samples["alike"], SPACING_MM)[:12]}
    found = evaluation(real, {"blurred": samples["blurred"]}, tmp_path, data=data, pairs=40).run()["sets"][FLOOR]
    assert (found["n"], found["participants"]) == (24, 12)
    pairs = [row for row in csv.DictReader(open(tmp_path / "samples_pairs.tsv"), delimiter="\t") if row["set"] == FLOOR]
    assert len(pairs) == 40 and all(row["first"] != row["second"] for row in pairs)
    people = [(int(row["first"][4:]), int(row["second"][4:])) for row in pairs]
    of_people = mean_over_pairs(people, np.array([float(row["ms_ssim"]) for row in pairs]))[2]
    assert found["ms_ssim"]["standard_error"] == pytest.approx(of_people, rel=1e-3)
    section = json.loads((tmp_path / "samples.section.json").read_text())
    assert section["tables"][0]["rows"][0][1] == "12 + 12 of 12 participants"
    assert "no row of held-out scans, the control of all corrections: 0 scans of other participants" in section["text"]


def test_volumes_are_let_go_once_they_are_described(sets, tmp_path):
    passed, alive = [], []

    def watching(volume):
        passed.append(weakref.ref(volume))
        alive.append(sum(reference() is not None for reference in passed))
        return low_resolution(volume)

    samples = {"alike": sets[1]["alike"]}
    evaluation(sets[0], samples, tmp_path, extractor=lambda: Extractor(watching, "watching"), pairs=2).run()
    assert len(alive) > 60 and max(alive) <= 3


def test_what_cannot_be_compared_is_refused_before_anything_is_read(sets, tmp_path):
    real, samples = sets
    few = find_volumes(real, SPACING_MM)[:11]

    def unread(item):
        raise AssertionError("read")

    lazy = {"samples": {"alike": samples["alike"]}, "preprocessing": unread, "sample_preprocessing": unread}
    for wrong, message in (
        ({"samples": None}, "samples: expected names and folders"),
        ({"samples": {FLOOR: samples["alike"]}}, "is reserved for another row"),
        ({"samples": {"own": real}}, "own: 24 of 24 volumes are scans of the data set itself"),
        ({"reference_split": "trainig"}, "reference_split must be all, training, validation, got 'trainig'"),
        ({"data": {"training": few}}, "real scans of the split 'training': volumes of 11 participants; at least 12"),
        ({"feature_dimensions": 9}, "feature_dimensions 9: the smallest set .* has 9 participants"),
        ({"feature_dimensions": 2.5}, "feature_dimensions must be a whole number, 1 or more, got 2.5"),
        ({"feature_dimensions": 0}, "feature_dimensions must be a whole number, 1 or more, got 0"),
        ({"pairs": 0}, "pairs must be a whole number, 1 or more, got 0"),
        ({"pairs": 12.5}, "pairs must be a whole number, 1 or more, got 12.5"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluation(**{"real": real, "folder": tmp_path} | lazy | wrong).run()
    assert not list(tmp_path.iterdir())


def test_rows_tell_which_weights_made_them_and_none_mixes_two(sets, tmp_path):
    folder = shutil.copytree(sets[1]["alike"], tmp_path / "ddim")
    sidecar = {"Sampler": "ddim", "Steps": 50, "WeightsSHA256": "0123456789abcdef" * 4}
    files = [Path(str(path).replace(".nii.gz", ".json")) for path in folder.glob("sub-*/anat/*.nii.gz")]
    for file in files:
        file.write_text(json.dumps(sidecar))
    found = evaluation(sets[0], {"LDM": folder}, tmp_path / "out").run()
    assert found["samples"]["LDM"]["provenance"] == sidecar
    section = json.loads((tmp_path / "out" / "samples.section.json").read_text())
    row = dict(zip(section["tables"][2]["header"], section["tables"][2]["rows"][0], strict=True))
    assert row["made by, as their sidecars say"] == "sampler ddim, steps 50, weights 0123456789ab"
    assert row["its model was trained on"] == "not known: its weights are missing"
    files[0].write_text(json.dumps(sidecar | {"Steps": 4}))
    with pytest.raises(ValueError, match="LDM, .*made in different ways"):
        evaluation(sets[0], {"LDM": folder}, tmp_path / "out").check()


def test_features_that_are_not_finite_are_refused_by_set(sets, tmp_path):
    broken = Extractor(lambda volume: low_resolution(volume) * float("nan"), "broken")
    with pytest.raises(ValueError, match=f"features of '{FLOOR}' are NaN or infinite for 18 volumes"):
        evaluation(*sets, tmp_path, extractor=lambda: broken, pairs=1).run()


@pytest.fixture
def settings(sets, tmp_path):
    """For the config: weights that say the spacing, a regressor, sets."""
    torch.manual_seed(0)
    network = DiffusionUNet(num_covariates=4, channels=[8], num_head_channels=[8], num_res_blocks=1, norm_num_groups=4)
    network.recipe = {"spacing_mm": SPACING_MM}
    (tmp_path / "models").mkdir()
    save_weights(network.state_dict(), tmp_path / "models" / "model.pt")
    write_regressor(tmp_path / "models" / "regressor.pt")
    folders = {f"{name}_dir": str(tmp_path / name) for name in ("models", "output", "cache")}
    samples = {"LDM, DDIM 50": str(sets[1]["alike"]), "faint": str(sets[1]["faint"])}
    return {"dataset_dir": str(sets[0]), "samples": samples, "use_device": "cpu", "pairs": 5, **folders}


def test_the_config_compares_sets_whatever_their_names(bundle, settings, tmp_path):
    run("evaluating_samples", config_file="configs/evaluate.json", **settings)
    found = json.loads((tmp_path / "output" / "samples.json").read_text())
    assert list(found["sets"])[1:-2] == ["LDM, DDIM 50", "faint"] and "regressor" in found["extractor"]
    assert found["sets"]["LDM, DDIM 50"]["n"] == 24
    assert found["sets"]["faint"]["clipped"] == 0 < found["sets"][FLOOR]["clipped"]  # taken as it was written
    assert not (tmp_path / "output" / "reconstruction.json").exists()


def test_the_config_refuses_sets_before_it_reconstructs(bundle, settings, tmp_path):
    samples, settings["samples"] = settings["samples"], {"LDM": str(tmp_path / "nowhere")}
    with pytest.raises(RuntimeError) as error:  # of MONAI, around ours
        run("evaluating", config_file="configs/evaluate.json", **settings)
    assert "no such folder of volumes" in str(error.value.__cause__)
    (tmp_path / "models" / "regressor.pt").unlink()
    settings["samples"] = samples
    with pytest.raises(RuntimeError) as error:
        run("evaluating", config_file="configs/evaluate.json", **settings)
    assert "Train it first" in str(error.value.__cause__)
    assert not (tmp_path / "output").exists()


def test_the_audit_takes_volumes_as_they_were_written(bundle, sets):
    parser = ConfigParser()
    parser.read_config("configs/evaluate.json")
    parser["spacing_mm"] = SPACING_MM
    path = next(sets[1]["faint"].glob("sub-*/anat/*.nii.gz"))
    seen = parser.get_parsed_content("audit#transform")({"image": str(path)})["image"]
    assert float(seen.max()) == pytest.approx(nib.load(path).get_fdata().max(), abs=1e-5)
