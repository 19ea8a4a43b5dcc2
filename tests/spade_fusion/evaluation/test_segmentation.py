"""The segmentation experiment: no network is tested on its training data, and the arms differ in their data only."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import ROOT
from ignite.engine import Engine
from monai.bundle import ConfigParser, run
from monai.data import Dataset
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from monai.optimizers import WarmupCosineSchedule
from PIL import Image
from tiny_spade import SHAPE, SPACING_MM, label_map, write_dataset

from spade_fusion_bundle.scripts.data.derivative import Derivative
from spade_fusion_bundle.scripts.evaluation import segmentation, segmentation_summary
from spade_fusion_bundle.scripts.evaluation import trivial_answers as baseline
from spade_fusion_bundle.scripts.evaluation.segmentation import ArmTrainer, DiceScores
from spade_fusion_bundle.scripts.generation import label_maps
from spade_fusion_bundle.scripts.shared.files import sha256
from spade_fusion_bundle.scripts.shared.label_table import LabelTable
from spade_fusion_bundle.scripts.shared.tables import read_table

ENTRIES = [
    {"class": 0, "name": "background", "midline": [0], "brain": False},
    {"class": 1, "name": "white matter", "left": [2], "right": [41], "midline": [251], "brain": True},
    {"class": 2, "name": "skull", "midline": [70], "brain": False},
    {"class": 3, "name": "brain stem", "midline": [16], "brain": True},
]
TABLE = LabelTable("own", ENTRIES).sided()  # left, right, midline white matter, skull, brain stem


# Classes and data


def test_sides_are_kept_apart():
    assert TABLE.names == [
        "background", "left white matter", "right white matter", "midline white matter", "skull", "brain stem"
    ]  # fmt: skip
    assert TABLE.classes(np.array([0, 2, 41, 251, 70, 16]), "").tolist() == [0, 1, 2, 3, 4, 5]
    assert TABLE.mirror.tolist() == [0, 2, 1, 3, 4, 5] and TABLE.brain == (1, 2, 3, 5)


@pytest.mark.parametrize("name", ["freesurfer", "demo"])
def test_every_value_of_a_shipped_table_keeps_its_structure(name, spade_bundle):
    table = LabelTable.from_file("configs/labels.json", name)
    apart = table.sided()
    values = np.flatnonzero(table._class_of < table.num_classes) + table._lowest
    values = values[values != 0]
    assert len(values) >= table.num_classes - 1
    for before, after in zip(table.classes(values, ""), apart.classes(values, "")):
        assert apart.names[after].removeprefix("left ").removeprefix("right ").removeprefix("midline ") == table.names[before]
        assert (after in apart.brain) == (before in table.brain)


def write_synthetic(folder, sources):
    """Write what inference would write for label maps {"sub-01": path of its map}."""
    for participant, path in sources.items():
        anat = folder / participant / "anat"
        anat.mkdir(parents=True)
        source = nib.load(path)
        values = np.asarray(source.dataobj)
        grey = (values / 17).astype(np.float32)
        nib.save(nib.Nifti1Image(grey, source.affine), anat / f"{participant}_T1w.nii.gz")
        shutil.copy(path, anat / f"{participant}_dseg.nii.gz")
        sidecar = {"LabelMapSHA256": sha256(path), "SourceParticipant": participant, "Variant": 0}
        (anat / f"{participant}_T1w.json").write_text(json.dumps(sidecar))
    return folder


def map_of(dataset, participant):
    return dataset / "derivatives" / "blobs" / participant / "anat" / f"{participant}_dseg.nii.gz"


@pytest.fixture
def cohort(tmp_path):
    """Three heads to train, one of them for fusion, one to test; synthetic ones of the first two."""
    dataset = write_dataset(tmp_path / "bids", ("train", "train", "fusion", "test"))
    write_synthetic(tmp_path / "synthetic", {name: map_of(dataset, name) for name in ("sub-01", "sub-02")})
    return tmp_path


def item(dataset, participant):
    return {"image": "", "label": str(map_of(dataset, participant)), "participant_id": participant}


def test_synthetic_volumes_come_with_their_own_maps(cohort):
    items = segmentation.synthetic_pairs(cohort / "synthetic", [item(cohort / "bids", "sub-04")])
    assert [one["source"] for one in items] == ["sub-01", "sub-02"]
    assert items[1]["label"].endswith("synthetic/sub-02/anat/sub-02_dseg.nii.gz")


def test_what_inference_writes_of_the_training_maps_is_taken_and_of_all_maps_refused(cohort):
    """Deformed variants of a test map are refused too. The test uses the parts of inference without the network."""
    table = LabelTable.from_file(ROOT / "spade_fusion_bundle" / "configs" / "labels.json", "demo")

    def infer(folder, split):
        derivative = Derivative(folder, table)
        rows = label_maps.rows(label_maps.find_maps(cohort / "bids", folder, split), variants=2)
        for row in label_maps.pending(rows, derivative, table, {"WeightsSHA256": "ab"}):
            values = np.asarray(nib.load(row["image"]).dataobj)
            derivative.write(row, values / 17, values)
        return folder

    test = [item(cohort / "bids", "sub-04")]
    items = segmentation.synthetic_pairs(infer(cohort / "training", "train"), test)
    assert [one["participant_id"] for one in items] == ["sub-01", "sub-01v01", "sub-02", "sub-02v01"]
    assert [one["source"] for one in items] == ["sub-01", "sub-01", "sub-02", "sub-02"]
    with pytest.raises(ValueError, match="2 of 8 synthetic volumes") as caught:
        segmentation.synthetic_pairs(infer(cohort / "all", None), test)
    assert "sub-04v01_T1w.nii.gz: made from the label map of sub-04" in str(caught.value)


def test_synthetic_volumes_of_test_maps_are_refused(cohort):
    with pytest.raises(ValueError, match="1 of 2 synthetic volumes .* come from maps of the test scans") as caught:
        segmentation.synthetic_pairs(cohort / "synthetic", [item(cohort / "bids", "sub-02")])
    assert "sub-02_T1w.nii.gz: made from the label map of sub-02" in str(caught.value)


def test_a_test_map_is_known_again_under_another_name_and_a_test_person_with_another_map(cohort):
    dataset, sidecar = cohort / "bids", cohort / "synthetic" / "sub-02" / "anat" / "sub-02_T1w.json"
    renamed = cohort / "somebody_dseg.nii.gz"
    shutil.copy(map_of(dataset, "sub-02"), renamed)
    with pytest.raises(ValueError, match="sub-02_T1w.nii.gz: made from the label map of sub-99"):
        segmentation.synthetic_pairs(cohort / "synthetic", [{"label": str(renamed), "participant_id": "sub-99"}])
    sidecar.write_text(json.dumps({"LabelMapSHA256": "0" * 64, "SourceParticipant": "sub-04"}))  # segmented again
    with pytest.raises(ValueError, match="made from a map of sub-04. If this is another person, rename the maps"):
        segmentation.synthetic_pairs(cohort / "synthetic", [item(dataset, "sub-04")])


def test_volumes_of_two_models_are_not_mixed(cohort):
    for name, weights in (("sub-01", "a"), ("sub-02", "b")):
        sidecar = cohort / "synthetic" / name / "anat" / f"{name}_T1w.json"
        sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"WeightsSHA256": 64 * weights}))
    with pytest.raises(ValueError, match="several models made its volumes: .* with the weights aaaaaaaaaaaa, .*bbbbbbbbbbbb"):
        segmentation.synthetic_pairs(cohort / "synthetic", [item(cohort / "bids", "sub-04")])


def test_volumes_that_do_not_say_where_they_come_from_are_refused(cohort):
    (cohort / "synthetic" / "sub-01" / "anat" / "sub-01_T1w.json").unlink()
    (cohort / "synthetic" / "sub-02" / "anat" / "sub-02_dseg.nii.gz").unlink()
    with pytest.raises(ValueError, match="2 of 2 synthetic volumes in .* cannot be used") as caught:
        segmentation.synthetic_pairs(cohort / "synthetic", [item(cohort / "bids", "sub-04")])
    assert "its sidecar does not say from which map it was made" in str(caught.value)
    assert "no label map sub-02_dseg.nii.gz next to it" in str(caught.value)


def test_a_map_at_another_place_than_its_volume_is_refused(cohort):
    path = cohort / "synthetic" / "sub-01" / "anat" / "sub-01_dseg.nii.gz"
    image = nib.load(path)
    moved = image.affine.copy()
    moved[0, 3] += 8
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), moved), path)
    with pytest.raises(ValueError, match="1 of 2 synthetic volumes .*\n.*sub-01_dseg.nii.gz has another affine"):
        segmentation.synthetic_pairs(cohort / "synthetic", [item(cohort / "bids", "sub-04")])


def test_without_synthetic_volumes_the_command_that_makes_them_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="inference.json --label_maps DIR --split train"):
        segmentation.synthetic_pairs(tmp_path, [])
    with pytest.raises(ValueError, match="add --synthetic_dir"):
        segmentation.synthetic_pairs(None, [])


def test_the_real_arm_learns_from_all_that_nobody_is_tested_on(cohort):
    one, two, three, four = (item(cohort / "bids", f"sub-0{number}") for number in range(1, 5))
    data = {"training": [one], "fusion": [two], "validation": [three], "test": [four]}
    shares = segmentation.choose_scans(data, "test", cohort / "synthetic")
    assert shares["real"] == [one, two] and shares["test"] == [four] and len(shares["synthetic"]) == 2
    with pytest.raises(ValueError, match=r"no scans in the split 'validation' \(training: 1, fusion: 1, validation: 0"):
        segmentation.choose_scans(data | {"validation": []}, "validation", cohort / "synthetic")
    with pytest.raises(ValueError, match="split 'training': the networks are trained on the other splits"):
        segmentation.choose_scans(data, "training", cohort / "synthetic")


@pytest.mark.parametrize("patch_size", [[40, 56, 36], [0, 8, 8], [8, 8]])
def test_patches_that_cannot_be_halved_are_refused(patch_size):
    segmentation.refuse_sizes([40, 56, 8], [2, 2, 2])
    with pytest.raises(ValueError, match=r"three multiples of 8 are needed for strides \[2, 2, 2\]"):
        segmentation.refuse_sizes(patch_size, [2, 2, 2])


# Scores


def scored(label, prediction, table=TABLE):
    """Rows of one scan, by structure; classes (D, H, W)."""
    scores = DiceScores("real", table)
    engine = Engine(lambda engine, batch: batch)
    scores.attach(engine)
    image = torch.zeros(1, 1, *label.shape)
    prediction = prediction if prediction.ndim == 5 else prediction[None, None]
    names = {"participant_id": ["sub-1"], "scan_file": ["/data/one.nii.gz"], "map_file": ["one"]}
    engine.run([{"image": image, "label": label[None, None], "pred": prediction} | names])
    return {row["structure"]: row for row in scores.rows}


def by_hand():
    label = torch.zeros(3, 4, 5, dtype=torch.uint8)
    label[0, :, 0] = 1  # 4 voxels
    label[1, :, 1] = 5  # 4 voxels
    label[2, 0, 2:4] = 4  # 2 voxels
    prediction = torch.zeros_like(label)
    prediction[0, 1:, 0] = 1  # 3 of the 4
    prediction[0, :, 4] = 1  # 4 elsewhere
    prediction[2, 0, 2:4] = 4
    prediction[2, 3, :2] = 3  # the map has no midline white matter
    return label, prediction


def test_dice_by_hand():
    rows = scored(*by_hand())
    assert rows["left white matter"]["dice"] == pytest.approx(2 * 3 / (4 + 7))
    assert rows["brain stem"]["dice"] == 0 and rows["skull"]["dice"] == 1
    assert rows["left white matter"]["voxels"] == 4 and rows["skull"]["voxels"] == 2
    assert rows["midline white matter"]["dice"] is None and rows["right white matter"]["dice"] is None
    assert [name for name, row in rows.items() if row["brain"]] == [TABLE.names[number] for number in (1, 2, 3, 5)]
    assert rows["skull"]["file"] == "one.nii.gz"


def test_logits_are_scored_by_their_largest_class():
    label, prediction = by_hand()
    logits = torch.nn.functional.one_hot(prediction.long(), 6).movedim(-1, 0)[None] * 3.0 - 5
    assert scored(label, logits) == scored(label, prediction)


@pytest.mark.parametrize(
    ("label", "prediction", "message"),
    [
        (torch.ones(3, 4, 5), torch.full((1, 6, 3, 4, 5), torch.nan), r"sub-1 \(/data/one.nii.gz\), real: .* not finite"),
        (torch.zeros(3, 4, 5), torch.ones(3, 4, 5), "the label map one is empty at this spacing"),
    ],
)
def test_what_cannot_be_scored_is_refused(label, prediction, message):
    with pytest.raises(ValueError, match=message):
        scored(label.to(torch.uint8), prediction)


# Training


def trainer(**settings):
    network = lambda: UNet(3, 1, 6, [2, 4], [2])  # noqa: E731
    loss = DiceCELoss(to_onehot_y=True, softmax=True)
    given = {"lr_scheduler": lambda optimizer: WarmupCosineSchedule(optimizer, 1, 4), "steps": 4, "batch_size": 2}
    given |= {"optimizer": lambda parameters: torch.optim.AdamW(parameters, lr=0.1), "num_workers": 0, "seed": 3}
    return ArmTrainer(network, loss, **given | settings, device=torch.device("cpu"), amp=False)


class Counted(Dataset):
    """Volumes of noise; counts how often each is drawn."""

    def __init__(self, number):
        noise = torch.rand(number, 1, 8, 16, 8, generator=torch.Generator().manual_seed(number))
        super().__init__([{"image": one, "label": (one > 0.5).to(torch.uint8)} for one in noise])
        self.drawn = [0] * number

    def __getitem__(self, index):
        self.drawn[index] += 1
        return super().__getitem__(index)


def test_every_arm_gets_the_same_number_of_steps_whatever_its_size():
    few, many = Counted(3), Counted(20)
    train = trainer()
    train("few", few), train("many", many)
    assert sorted(few.drawn) == [2, 3, 3]  # 4 steps of 2
    assert sum(many.drawn) == 8 and max(many.drawn) == 1


def test_an_arm_does_not_depend_on_those_before_it():
    train, data = trainer(), Counted(3)
    first = train("real", data).state_dict()
    train("synthetic", Counted(5))
    again = train("real", data).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    untrained = trainer(optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-9, weight_decay=0))("real", data)
    assert not all(torch.equal(first[key], value) for key, value in untrained.state_dict().items())


def test_a_diverged_loss_ends_the_run():
    data = Counted(2)
    data.data[0]["image"][:] = torch.nan
    with pytest.raises(RuntimeError, match="the loss of iteration 1 .* is not finite"):
        trainer()("real", data)


# The trivial answer


def save_pairs(folder, maps, offsets_mm):
    items = []
    for number, (values, offset_mm) in enumerate(zip(maps, offsets_mm)):
        affine = np.eye(4)
        affine[0, 3] = offset_mm
        path = folder / f"{number}.nii.gz"
        nib.save(nib.Nifti1Image(values.astype(np.uint8), affine), path)
        items.append(
            {"image": torch.from_numpy(values / 10.0)[None], "classes": torch.from_numpy(values)[None], "label": str(path)}
        )
    return items


def prepared(item):
    return {"image": item["image"], "label": item["classes"].to(torch.uint8)}


MAPS = [np.zeros((2, 3, 4), int) for _ in range(3)]
MAPS[0][0, 0], MAPS[1][0, 0], MAPS[2][0, 0] = 1, 1, 4  # most are 1
MAPS[2][1, 2, 3] = 4  # most are background


def test_where_grids_agree_the_trivial_answer_is_the_most_frequent_class_of_a_place(tmp_path):
    items = save_pairs(tmp_path, MAPS, (5, 5, 5))
    name, answer = baseline.most_frequent(items[:3], items[:1], prepared, 6)
    assert name == "trivial: by position"
    expected = torch.zeros(1, 1, 2, 3, 4, dtype=torch.long)
    expected[0, 0, 0, 0] = 1
    assert torch.equal(answer(torch.rand(1, 1, 2, 3, 4)), expected)


def test_where_grids_differ_it_is_the_most_frequent_class_of_an_intensity(tmp_path):
    items = save_pairs(tmp_path, MAPS, (5, 5, 9))
    name, answer = baseline.most_frequent(items, items, prepared, 6)
    assert name == "trivial: by intensity"
    image = torch.tensor([0.0, 0.1, 0.4, 0.4, 1.0, 0.1]).reshape(1, 1, 1, 2, 3)
    assert answer(image).flatten().tolist() == [0, 1, 4, 4, 0, 1]  # what no scan has is background


def test_the_grid_is_compared_in_the_orientation_of_the_experiment(tmp_path):
    image = nib.Nifti1Image(np.zeros((2, 3, 4), np.uint8), np.diag([2.0, 2, 2, 1]))
    flipped = image.as_reoriented(nib.orientations.axcodes2ornt("LIA"))
    nib.save(image, tmp_path / "ras.nii.gz")
    nib.save(flipped, tmp_path / "lia.nii.gz")
    assert flipped.shape != image.shape
    (shape, affine), (other_shape, other_affine) = (baseline._grid(str(tmp_path / f"{name}.nii.gz")) for name in ("ras", "lia"))
    assert shape == other_shape == (2, 3, 4)
    np.testing.assert_allclose(affine, other_affine)


# The tables


def written(folder, dice):
    """Summarise invented Dice scores: for each arm, the scores of left white matter and brain stem on each scan."""
    names = ("left white matter", "brain stem", "skull")
    scores = []
    for arm, scans in dice.items():
        one = DiceScores(arm, TABLE)
        for number, values in enumerate(scans):
            for structure, value in zip(names, (*values, 0.5)):
                row = {"arm": arm, "participant_id": f"sub-{number}", "file": f"{number}.nii.gz", "structure": structure}
                one.rows.append(row | {"brain": structure != "skull", "voxels": 7, "dice": value})
        one.first = {"image": np.zeros((4, 5, 6)), "label": np.ones((4, 5, 6), int), "pred": np.ones((4, 5, 6), int)}
        scores.append(one)
    synthetic = [{"source": "sub-a"}, {"source": "sub-a"}, {"source": "sub-b"}]
    test = [{"participant_id": f"sub-{number}"} for number in range(len(scans))]
    return segmentation_summary.write(
        folder, scores, {"real": [{}] * 5, "synthetic": synthetic, "test": test}, "/data/x", "validation", 9, 2.0
    )


DICE = {
    "synthetic": [(0.5, 0.7), (0.6, 0.6), (0.4, 0.6)],
    "real": [(0.8, 0.8), (0.9, None), (0.7, 0.7)],
    "both": [(0.9, 0.9), (0.9, None), (0.9, 0.9)],
    "trivial: by position": [(0.3, 0.3), (0.2, 0.2), (0.1, 0.1)],
}


def test_the_tables_hold_mean_spread_number_and_paired_differences(tmp_path, capsys):
    summary = written(tmp_path, DICE)
    assert summary == json.loads((tmp_path / "segmentation.json").read_text())
    arms = summary["arms"]
    assert arms["real"]["mean_dice"] == pytest.approx({"n": 3, "mean": 0.8, "std": 0.1})  # 0.8, 0.9, 0.7
    assert arms["real"]["structures"]["brain stem"]["n"] == 2 and arms["real"]["structures"]["skull"]["brain"] is False
    assert arms["both"]["volumes"] == {"synthetic": 3, "real": 5} and arms["synthetic"]["volumes"] == {"synthetic": 3}
    first = summary["differences"][0]
    assert (first["arm"], first["minus"], first["wins"]) == ("synthetic", "real", 0)
    assert first["mean"] == pytest.approx((0.6 + 0.6 + 0.5 - 2.4) / 3) and first["p"] == 0.25 and first["p_holm"] == 1
    section = json.loads((tmp_path / "segmentation.section.json").read_text())
    means, comparisons, structures = section["tables"]
    assert means["rows"][2] == ["trained on: both", "3 synthetic + 5 real", "0.900 ± 0.000", "3"]
    assert comparisons["rows"][0][2:] == ["0 of 3", "0.25", "1.00"] and len(comparisons["rows"]) == 5
    assert [row[0] for row in structures["rows"]] == ["left white matter", "brain stem"]  # no skull
    for part in (
        "3 real scans of the split validation at 2 mm",
        "from the maps of 2 subjects",
        "9 steps",
        "p cannot be below 0.25",
        "one grid",
    ):
        assert part in section["text"]
    assert Image.open(tmp_path / section["figures"][0]["file"]).size[0] > 1000
    rows = read_table(tmp_path / "segmentation.tsv")
    assert len(rows) == 4 * 3 * 3
    assert rows[13]["dice"] == "n/a" and rows[13]["arm"] == "real" and rows[13]["structure"] == "brain stem"
    assert "trained on: both" in capsys.readouterr().out


def test_one_test_scan_has_no_spread_and_no_test(tmp_path):
    summary = written(tmp_path, {arm: scans[:1] for arm, scans in DICE.items()})
    assert summary["arms"]["both"]["mean_dice"]["std"] is None and summary["differences"][0]["p"] is None
    assert "One scan allows neither" in json.loads((tmp_path / "segmentation.section.json").read_text())["text"]


def test_a_scan_without_a_brain_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"sub-1 \(1.nii.gz\): its label map has no brain structure"):
        written(tmp_path, {arm: [(0.5, 0.5), (None, None)] for arm in DICE})
    assert not list(tmp_path.iterdir())


# The whole command


def test_the_command_tells_what_each_arm_is_worth(cohort, spade_bundle):
    settings = {
        "dataset_dir": str(cohort / "bids"), "synthetic_dir": str(cohort / "synthetic"), "output_dir": str(cohort / "out"),
        "cache_dir": str(cohort / "cache"), "use_device": "cpu", "spacing_mm": SPACING_MM, "patch_size": list(SHAPE),
        "channels": [4, 8], "strides": [2], "steps": 2, "warmup_steps": 1, "batch_size": 1,
    }  # fmt: skip
    run(config_file=["configs/segmentation.json", "configs/demo_segmentation.json"], **settings)
    summary = json.loads((cohort / "out" / "segmentation.json").read_text())
    assert list(summary["arms"]) == ["synthetic", "real", "both", "trivial: by position"] and summary["n"] == 1
    assert summary["arms"]["both"]["volumes"] == {"synthetic": 2, "real": 3}
    # The heads are alike, but stored in three orientations: in RAS order alone the most frequent label fits the fourth.
    assert summary["arms"]["trivial: by position"]["structures"]["left cerebral cortex"]["mean"] > 0.5
    truth = label_map(11)
    rows = {(row["arm"], row["structure"]): row for row in read_table(cohort / "out" / "segmentation.tsv")}
    assert int(rows["real", "right cerebral cortex"]["voxels"]) == (truth == 3).sum()
    section = json.loads((cohort / "out" / "segmentation.section.json").read_text())
    assert (cohort / "out" / section["figures"][0]["file"]).is_file() and "1 real scan of the split test" in section["text"]


def test_the_command_refuses_leaked_maps_before_anything_is_trained(cohort, spade_bundle):
    write_synthetic(cohort / "synthetic", {"sub-04": map_of(cohort / "bids", "sub-04")})
    folders = {f"{name}_dir": str(cohort / name) for name in ("synthetic", "output", "cache")}
    with pytest.raises(RuntimeError) as caught:
        run(
            config_file=["configs/segmentation.json", "configs/demo_segmentation.json"],
            dataset_dir=str(cohort / "bids"), use_device="cpu", **folders
        )  # fmt: skip
    error = caught.value
    while error.__cause__:
        error = error.__cause__
    assert "1 of 3 synthetic volumes" in str(error) and "sub-04_T1w.nii.gz: made from the label map of sub-04" in str(error)
    assert not (cohort / "output").exists()


def test_scans_are_prepared_once_and_not_at_every_draw(cohort, spade_bundle):
    """MONAI once took a Compose of two as random from its start, so the cache held paths."""
    parser = ConfigParser(ConfigParser.load_config_file("configs/segmentation.json"))
    parser.update(json.loads(Path("configs/demo_segmentation.json").read_text()))
    folders = {"dataset_dir": str(cohort / "bids"), "synthetic_dir": str(cohort / "synthetic"), "cache_dir": str(cohort / "c")}
    parser.update({**folders, "spacing_mm": SPACING_MM, "patch_size": list(SHAPE)})
    for kept in parser.get_parsed_content("arms")["both"].datasets[1]._cache:
        assert torch.is_tensor(kept["image"]) and torch.is_tensor(kept["label"])


def test_the_split_is_that_of_training():
    folder = ROOT / "spade_fusion_bundle" / "configs"
    configs = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("train", "segmentation")}
    for knob in ("validation_fraction", "seed"):
        assert configs["segmentation"][knob] == configs["train"][knob]
