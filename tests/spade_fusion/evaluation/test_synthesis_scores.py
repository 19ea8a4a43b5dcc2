import csv
import json
import math

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import ROOT
from ignite.engine import Engine
from monai.bundle import run
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.metrics import SSIMMetric
from skimage.metrics import structural_similarity

from spade_fusion_bundle.scripts.data.preprocessing import map_and_scan
from spade_fusion_bundle.scripts.evaluation import synthesis_scores as scores
from spade_fusion_bundle.scripts.evaluation.synthesis_scores import METHODS, SCORES, brain_scores, flicker, ssim_map
from spade_fusion_bundle.scripts.evaluation.trivial_answers import paint
from spade_fusion_bundle.scripts.generation.synthesis import Synthesiser
from spade_fusion_bundle.scripts.model.networks import SpadeFusion
from spade_fusion_bundle.scripts.shared.files import save_weights
from spade_fusion_bundle.scripts.shared.label_table import LabelTable
from spade_fusion_bundle.scripts.shared.ssim import SSIM

INTENSITIES = torch.tensor([0.0, 0.9, 0.3, 0.6])


def smooth_noise(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand((1, 1, *(side + 2 for side in shape)), generator=generator)
    return torch.nn.functional.avg_pool3d(noise, 3, stride=1)


def block_mask(shape, *sides):
    mask = torch.zeros((1, 1, *shape), dtype=torch.bool)
    mask[(0, 0, *(slice(*side) for side in sides))] = True
    return mask


def head(seed=0):
    """Classes (1, 32, 64, 32): a box of skull around two tissues, different in all directions, background around."""
    classes = torch.zeros(1, 32, 64, 32, dtype=torch.uint8)
    classes[:, 4:27, 6:55, 5:25] = 1
    classes[:, 7:24, 10 : 50 + seed, 8:22] = 2
    classes[:, 10:14, 20:30, 12:20] = 3
    return classes


def tiny_network():
    torch.manual_seed(0)
    network = SpadeFusion(num_labels=4, ngf=2, hidden=8, fusion_channels=4, fusion_layers=2)
    with torch.no_grad():  # fresh, it paints everything with nearly the same grey and the fusion is the mean
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_mse_and_psnr_count_the_voxels_of_the_brain_alone():
    target = torch.linspace(0, 0.5, 60).reshape(1, 1, 3, 4, 5)
    mask = block_mask((3, 4, 5), (0, 2), (1, 3), (2, 4))  # 8 voxels
    prediction = target.clone()
    prediction[0, 0, 0, 1, 2] += 0.4
    prediction[0, 0, 1, 2, 3] += 0.2
    prediction[0, 0, 2, 3, 4] += 0.5  # outside
    found = brain_scores(prediction, target, mask)
    assert tuple(found) == SCORES
    assert found["mse"] == pytest.approx((0.16 + 0.04) / 8)  # 0.025
    assert found["psnr_db"] == pytest.approx(-10 * math.log10(0.025))  # 16.02 dB


@pytest.mark.parametrize("sides", [((8, 20), (7, 25), (9, 16)), ((0, 12), (9, 34), (3, 28))], ids=["inside", "at the border"])
def test_ssim_agrees_with_an_independent_implementation(sides):
    target = smooth_noise(26, 34, 28)
    prediction = 0.3 * target + 0.6 * smooth_noise(26, 34, 28, seed=1)
    mask = block_mask((26, 34, 28), *sides)
    # Background, 0, continues beyond the border of the volumes.
    wide = [np.pad(volume[0, 0].double().numpy(), 12) for volume in (prediction, target)]
    _, full = structural_similarity(*wide, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
                                    full=True)  # fmt: skip
    full = torch.from_numpy(full[12:-12, 12:-12, 12:-12].copy())[None, None]
    torch.testing.assert_close(ssim_map(prediction, target).double(), full, atol=1e-3, rtol=0)  # float32
    assert brain_scores(prediction, target, mask)["ssim"] == pytest.approx(float(full[mask].mean()), abs=1e-5)
    assert float(full[mask].mean()) < 0.95 and abs(float(full[mask].mean() - full.mean())) > 1e-3  # the test can fail


def test_the_ssim_of_validations_is_that_of_monai():
    target = torch.cat([smooth_noise(16, 24, 13), smooth_noise(16, 24, 13, seed=1)])
    prediction = 0.5 * target + 0.5 * target.flip(4)
    expected = SSIMMetric(spatial_dims=3, data_range=1.0)(prediction, target)
    assert expected.shape == (2, 1) and expected.max() < 0.9 and abs(expected[0] - expected[1]) > 1e-3
    torch.testing.assert_close(SSIM(spatial_dims=3)(prediction, target), expected, atol=5e-5, rtol=0)  # float32


def test_flicker_names_the_plane_whose_slices_jump():
    x, y, z = torch.meshgrid(*(torch.arange(side, dtype=torch.float32) for side in (4, 5, 6)), indexing="ij")
    target = (x + y + z)[None, None] / 100
    prediction = (3 * x + y + 0.5 * z)[None, None] / 100
    ratios = flicker(prediction, target, torch.ones(1, 1, 4, 5, 6, dtype=torch.bool))
    assert ratios == pytest.approx({"axial": 0.5, "coronal": 1.0, "sagittal": 3.0})


def test_flicker_counts_pairs_of_neighbours_that_are_both_in_the_brain():
    target = torch.arange(6.0).reshape(1, 1, 6, 1, 1).expand(1, 1, 6, 2, 2) / 10
    target = target + torch.tensor([[0.0, 0.2], [0.1, 0.3]])
    prediction = target.clone()
    prediction[:, :, 3] = 0.9  # outside, and so are the steps into it
    mask = torch.ones(target.shape, dtype=torch.bool)
    mask[:, :, 3] = False
    assert flicker(prediction, target, mask) == pytest.approx({"axial": 1.0, "coronal": 1.0, "sagittal": 1.0})
    assert flicker(prediction, target, torch.ones_like(mask))["sagittal"] > 1.1


def test_a_perfect_prediction_has_ssim_1_and_an_infinite_psnr():
    target = smooth_noise(12, 14, 13)
    found = brain_scores(target.clone(), target, block_mask((12, 14, 13), (2, 9), (3, 10), (1, 8)))
    assert found == pytest.approx(
        {"ssim": 1, "mse": 0, "psnr_db": math.inf, "flicker_axial": 1, "flicker_coronal": 1, "flicker_sagittal": 1}
    )


def with_one(volume, value):
    volume = volume.clone()
    volume[0, 0, 1, 2, 3] = value
    return volume


VOLUME, OTHER, MASK = smooth_noise(6, 8, 7), smooth_noise(6, 8, 7, seed=1), block_mask((6, 8, 7), (1, 5), (2, 6), (1, 6))


@pytest.mark.parametrize(
    ("prediction", "target", "mask", "message"),
    [
        (with_one(VOLUME, torch.nan), OTHER, MASK, "synthetic volume: 1 voxels are not finite"),
        (VOLUME, with_one(OTHER, torch.inf), MASK, "real scan: 1 voxels are not finite"),
        (VOLUME, OTHER, torch.zeros_like(MASK), "the brain mask is empty: no label of the map is a brain class"),
        (torch.where(MASK, 0.25, VOLUME), OTHER, MASK, "synthetic volume: the intensity is 0.25 in the whole brain"),
        (VOLUME, torch.where(MASK, 0.5, OTHER), MASK, "real scan: the intensity is 0.5 in the whole brain"),
        (VOLUME, OTHER, block_mask((6, 8, 7), (1, 5), (2, 6), (3, 4)), "no two neighbouring axial slices"),
        (VOLUME, OTHER[:, :, :1].expand(1, 1, 6, 8, 7), MASK, "the same in all sagittal slices of the brain"),
    ],
)
def test_what_cannot_be_scored_is_refused(prediction, target, mask, message):
    with pytest.raises(ValueError, match=message):
        brain_scores(prediction, target, mask)


@pytest.mark.parametrize("merge", ["whole", "patches"])
def test_every_method_is_what_its_name_says(merge):
    network, classes = tiny_network(), head()[None]
    volumes = dict(zip(METHODS, scores.EveryMethod(Synthesiser(merge), INTENSITIES)(classes, network).split(1, dim=1)))
    with torch.inference_mode():
        planes = network.slice_volumes(classes)
        assert torch.equal(volumes["fusion"], Synthesiser(merge)(classes, network))
    for number, plane in enumerate(("axial", "coronal", "sagittal")):
        assert torch.equal(volumes[plane], planes[:, number : number + 1])
    np.testing.assert_allclose(volumes["mean"][0, 0], planes[0].numpy().mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(volumes["median"][0, 0], np.median(planes[0].numpy(), axis=0))
    assert torch.equal(volumes["label_mean"], paint(classes, INTENSITIES))
    assert len(torch.stack(list(volumes.values())).flatten(1).unique(dim=0)) == 7


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A run of the tiny network over two heads whose scans are smooth noise on painted labels: its folder and the scans."""
    folder, pairs = tmp_path_factory.mktemp("evaluated"), []
    for number in range(2):
        classes = head(number)
        noise = 0.1 * smooth_noise(32, 64, 32, seed=number)[0]
        image = (paint(classes, INTENSITIES) + noise).clamp(0, 1) * (classes > 0)
        pairs.append(
            {"label": classes, "image": image, "participant_id": f"sub-{number}", "scan_file": f"/data/sub-{number}_T1w.nii.gz"}
        )
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(pairs), batch_size=1),
        network=tiny_network(),
        inferer=scores.EveryMethod(Synthesiser(), INTENSITIES),
        prepare_batch=map_and_scan,
        decollate=False,
        val_handlers=[scores.Scores(folder, brain=(2, 3))],
    )
    evaluator.run()
    return folder, pairs


def test_the_table_has_a_row_for_each_scan_and_method(evaluated):
    folder, pairs = evaluated
    rows = read(folder / "scores.tsv")
    assert [(row["participant_id"], row["method"]) for row in rows] == [(f"sub-{n}", m) for n in range(2) for m in METHODS]
    assert list(rows[0]) == ["participant_id", "file", "method", *SCORES] and rows[0]["file"] == "sub-0_T1w.nii.gz"
    classes, image = pairs[1]["label"][None], pairs[1]["image"][None]
    with torch.inference_mode():
        expected = brain_scores(tiny_network()(classes), image, (classes == 2) | (classes == 3))
    found = next(row for row in rows if (row["participant_id"], row["method"]) == ("sub-1", "fusion"))
    assert {name: float(found[name]) for name in SCORES} == pytest.approx(expected, rel=1e-4)


def test_a_scan_that_cannot_be_scored_is_named_with_its_method(tmp_path):
    handler = scores.Scores(tmp_path, brain=[2])
    engine = Engine(lambda engine, batch: batch)
    handler.attach(engine)
    target = smooth_noise(6, 8, 7)
    predictions = torch.cat([target, torch.full_like(target, 0.5), *[target] * 5], dim=1)
    output = {"image": torch.full(target.shape, 2, dtype=torch.uint8), "label": target, "pred": predictions}
    output |= {"participant_id": ["sub-7"], "scan_file": ["seven.nii.gz"]}
    with pytest.raises(ValueError, match=r"sub-7 \(seven.nii.gz\), coronal: synthetic volume: the intensity is 0.5"):
        engine.run([output])
    assert not (tmp_path / "scores.tsv").exists()


def test_an_empty_split_is_refused_with_what_there_is():
    with pytest.raises(ValueError, match=r"no scans in the split 'test' \(training: 1, test: 0\). Choose another with --split"):
        scores.held_out({"training": [{}], "test": []}, "test", {})


def test_scans_that_were_trained_on_are_no_test():
    then, others = ({"image": f"sub-{number}_T1w.nii.gz", "voxels_sha256": f"{number}" * 16} for number in (1, 2))
    recipe = {"seen_voxels": [then["voxels_sha256"]]}
    assert scores.held_out({"test": [others]}, "test", recipe) == [others]
    with pytest.raises(ValueError, match=r"1 of 2 scans in the split 'test', such as sub-1_T1w.nii.gz, are among those"):
        scores.held_out({"test": [others, then]}, "test", recipe)


BUNDLE = ROOT / "spade_fusion_bundle"
TABLE = [
    {"class": 0, "name": "background", "midline": [0], "brain": False},
    {"class": 1, "name": "skull", "midline": [70], "brain": False},
    {"class": 2, "name": "grey matter", "left": [3], "right": [42], "brain": True},
    {"class": 3, "name": "white matter", "left": [2], "right": [41], "brain": True},
]


def write_dataset(folder):
    """Six heads on a grid of 8 mm, LIA as FreeSurfer's."""
    rows = ["participant_id\tsplit"]
    for number, split in enumerate(["train", "train", "fusion", "validation", "test", "test"]):
        classes = head(number)
        scan = paint(classes, INTENSITIES) + 0.1 * smooth_noise(32, 64, 32, seed=number)[0]
        values = torch.tensor([0, 70, 3, 2])[classes.long()]
        affine = np.diag([8.0, 8.0, 8.0, 1.0])
        affine[:3, 3] = -128, -256, -128
        name = f"sub-{number}"
        for volume, path in ((800 * scan, f"{name}/anat/{name}_T1w"), (values, f"derivatives/fs/{name}/anat/{name}_dseg")):
            path = folder / f"{path}.nii.gz"
            path.parent.mkdir(parents=True)
            image = nib.Nifti1Image(volume[0].numpy().astype(np.int16), affine)
            image = image.as_reoriented(nib.orientations.axcodes2ornt("LIA"))
            image.set_sform(image.affine, code="scanner")
            nib.save(image, path)
        rows.append(f"{name}\t{split}")
    (folder / "participants.tsv").write_text("\n".join(rows) + "\n")
    (folder / "dataset_description.json").write_text('{"Name": "boxes", "BIDSVersion": "1.9.0"}')
    return folder


def settings(tmp_path):
    """Weights as training leaves them, a data set, and where a run writes."""
    network = tiny_network()
    sizes = {"num_labels": 4, "ngf": 2, "hidden": 8, "fusion_channels": 4, "fusion_layers": 2}
    network.recipe = {"labels": LabelTable("own", TABLE).to_dict(), "spacing_mm": 8.0, "network": sizes}
    save_weights(network.state_dict(), tmp_path / "models" / "model.pt")
    folders = {f"{name}_dir": str(tmp_path / name) for name in ("models", "cache", "output")}
    return {"dataset_dir": str(write_dataset(tmp_path / "bids")), "use_device": "cpu"} | folders


@pytest.fixture
def evaluate(tmp_path, monkeypatch, forget_scripts):
    """configs/evaluate.json as `monai.bundle run` finds it from a folder that is not the bundle's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(BUNDLE)
    return lambda **given: run(config_file=str(BUNDLE / "configs" / "evaluate.json"), **given)


def test_the_config_scores_the_held_out_scans(evaluate, tmp_path):
    evaluate(**settings(tmp_path))
    rows = read(tmp_path / "output" / "scores.tsv")
    assert [row["participant_id"] for row in rows] == ["sub-4"] * 7 + ["sub-5"] * 7
    summary = json.loads((tmp_path / "output" / "summary.json").read_text())
    assert summary["n"] == 2
    # The intensities come from the training scans, so the baseline is close; the noise on the scans keeps it from more.
    assert summary["methods"]["label_mean"]["psnr_db"]["mean"] > 25 > summary["methods"]["fusion"]["psnr_db"]["mean"]
    section = json.loads((tmp_path / "output" / "synthesis.section.json").read_text())
    assert [figure["file"] for figure in section["figures"]] == ["planes.png", "profiles.png"]
    assert all((tmp_path / "output" / figure["file"]).is_file() for figure in section["figures"])
    assert "2 scans: split test" in section["text"]


def test_the_config_refuses_an_unknown_split_before_anything_is_made(evaluate, tmp_path):
    given = settings(tmp_path)
    with pytest.raises(RuntimeError) as error:
        evaluate(**given, split="testing")
    assert "split is 'testing'. Allowed: test or validation" in messages(error.value)
    assert not (tmp_path / "output").exists()


def test_the_config_names_the_command_that_makes_missing_weights(evaluate, tmp_path):
    with pytest.raises(Exception) as error:
        evaluate(dataset_dir=str(tmp_path), models_dir=str(tmp_path), use_device="cpu")
    assert "python -m monai.bundle run training" in messages(error.value)


def messages(error):
    """Messages of an exception and of its causes: MONAI wraps what a `$` expression raises."""
    return "" if error is None else f"{error}\n{messages(error.__cause__ or error.__context__)}"


def test_scans_are_prepared_as_in_training():
    configs = {name: json.loads((BUNDLE / "configs" / f"{name}.json").read_text()) for name in ("train", "evaluate")}
    assert configs["evaluate"]["preprocessing"] == configs["train"]["preprocessing"]
    for knob in ("validation_fraction", "fusion_fraction", "folds", "seed"):  # the split would be another one
        assert configs["evaluate"][knob] == configs["train"][knob]
