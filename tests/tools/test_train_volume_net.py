import runpy

import nibabel
import numpy as np
import pytest
import torch
import train_volume_net as training
from measurement import domain_randomisation as drawing
from measurement.label_values import read_label_values
from measurement.volume_net import SHAPE, build_network
from shared.mni_box import affine


def ellipsoid(centre, half, shape=SHAPE):
    axes = np.meshgrid(*[np.arange(n) for n in shape], indexing="ij")
    return sum(((axis - c) / h) ** 2 for axis, c, h in zip(axes, centre, half, strict=True)) < 1


def demo_labels():
    labels = np.zeros(SHAPE, np.uint8)
    for half, value in ((36, 17), (33, 16), (31, 1), (29, 2), (25, 4)):
        labels[ellipsoid((40, 56, 36), (half, half + 14, half), SHAPE)] = value
    labels[ellipsoid((33, 56, 40), (5, 14, 5))] = 6
    labels[ellipsoid((47, 56, 40), (5, 14, 5))] = 7
    return labels


@pytest.fixture(scope="module")
def anatomy(tmp_path_factory):
    path = tmp_path_factory.mktemp("labels") / "sub-0_dseg.nii.gz"
    nibabel.save(nibabel.Nifti1Image(demo_labels(), affine(2, "RAS")), path)
    return drawing.read_anatomy(path)


def ventricles_ml(tissue):
    index = list(drawing.TISSUES).index("ventricles")
    return float((tissue == index).float().mean(0).sum() * 8e-3)


@pytest.mark.parametrize("table", ["freesurfer", "demo"])
def test_every_class_of_the_label_tables_is_painted(table):
    assert set(read_label_values(table)) <= set(drawing.TISSUE_OF)


def test_vessels_are_not_painted_as_lesions_of_the_white_matter():
    """Values 30 and 62, Left-vessel and Right-vessel in FreeSurferColorLUT.txt, stood among the lesions."""
    tissue = list(drawing.TISSUES)[drawing.TISSUE_OF["vessel"]]
    assert drawing.TISSUES[tissue][0] == "csf"


def test_demo_labels_keep_their_place_and_volume(anatomy):
    expected = np.isin(demo_labels(), (6, 7)).repeat(2, 0).repeat(2, 1).repeat(2, 2)
    found = anatomy.tissue == list(drawing.TISSUES).index("ventricles")
    np.testing.assert_array_equal(found.numpy(), expected)


def test_distance_is_negative_inside_the_ventricles_in_mm(anatomy):
    assert anatomy.distance_mm[33, 56, 40] == pytest.approx(-9, abs=1)  # half width 5 voxels of 2 mm
    assert anatomy.distance_mm[40, 90, 40] > 30


@pytest.mark.parametrize("target_ml", [12.0, 25.0, 60.0])
def test_ventricles_grow_and_shrink_to_the_asked_volume(anatomy, target_ml):
    centre_mm = torch.stack(torch.meshgrid(*[torch.arange(n) * 2.0 + 1 for n in SHAPE], indexing="ij"))
    position = drawing.grow_ventricles(anatomy, centre_mm, target_ml)
    distance = drawing.sample(anatomy.distance_mm[None], position)[0]
    assert float((distance < 0).sum()) * 8e-3 == pytest.approx(target_ml, rel=0.15)
    far = anatomy.distance_mm > drawing.GROWTH_REACH_MM
    assert torch.equal(position[:, far], centre_mm[:, far])


def test_class_fractions_sum_to_one_and_keep_volumes(anatomy):
    tissue = drawing.draw_tissue(anatomy, np.random.default_rng(0))
    fractions = drawing.class_fractions(tissue)
    assert fractions.shape == (5, *SHAPE)
    torch.testing.assert_close(fractions.sum(0), torch.ones(SHAPE))
    assert float(fractions[4].sum() * 8e-3) == pytest.approx(ventricles_ml(tissue), rel=1e-4)


@pytest.mark.parametrize("native_mm", [2, 4])
def test_images_are_finite_and_scaled(anatomy, native_mm):
    rng = np.random.default_rng(1)
    image = drawing.draw_image(drawing.draw_tissue(anatomy, rng), rng, native_mm=native_mm)
    assert image.shape == SHAPE and torch.isfinite(image).all()
    assert image.min() >= 0 and image.max() == 1


def test_ventricles_are_dark_and_white_matter_bright_in_t1w(anatomy):
    rng = np.random.default_rng(2)
    tissue = drawing.draw_tissue(anatomy, rng)
    image = drawing.draw_image(tissue, rng, ordinary=True, native_mm=2)
    pure = drawing.class_fractions(tissue) == 1
    assert image[pure[4]].median() < 0.6 * image[pure[3]].median()


def test_volume_loss_is_the_log_of_the_volumes_ratio():
    target = torch.zeros(1, 5, *SHAPE)
    target[:, 0] = 1
    target[:, :, :40] = torch.tensor([0, 0.2, 0.4, 0.3, 0.1])[:, None, None, None]
    assert training.volume_loss(target, target) == 0
    doubled = target.clone()
    doubled[:, :, 40:] = target[:, :, :40]  # everything twice
    assert float(training.volume_loss(doubled, target)) == pytest.approx(np.log(2), rel=0.01)


def test_same_seed_same_subject(anatomy):
    first, second = (drawing.draw_tissue(anatomy, np.random.default_rng(3)) for _ in range(2))
    assert torch.equal(first, second)


def test_unknown_label_values_are_named(tmp_path):
    labels = demo_labels()
    labels[0, 0, 0] = 19
    nibabel.save(nibabel.Nifti1Image(labels, affine(2, "RAS")), tmp_path / "x_dseg.nii.gz")
    with pytest.raises(ValueError, match=r"x_dseg.nii.gz: label values .*19\] are not in"):
        drawing.read_anatomy(tmp_path / "x_dseg.nii.gz")


def test_every_fourth_map_is_held_out(tmp_path):
    for i in range(4):
        (tmp_path / f"sub-{i}_dseg.nii.gz").touch()
    use, held_out = training.find_label_maps(tmp_path)
    assert [path.name[4] for path in use] == ["0", "1", "2"]
    assert [path.name[4] for path in held_out] == ["3"]


def test_too_few_label_maps_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="found 0 label maps"):
        training.find_label_maps(tmp_path)


def test_the_command_ends_with_one_sentence_about_wrong_input(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.excepthook", None)  # the command sets it
    monkeypatch.setattr("sys.argv", ["train_volume_net.py", "--labels", str(tmp_path), "--steps", "1"])
    with pytest.raises(FileNotFoundError, match="found 0 label maps"):
        runpy.run_path(training.__file__, run_name="__main__")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "-5"], "--steps: must be a whole number of at least 0, got '-5'"),
        (["--steps", "1", "--seed", "-1"], "--seed: must be a whole number of at least 0"),
        (["--steps", "1", "--output", "w.json"], "w.json: this is the name of the description"),
        (["--steps", "1", "--test", "nowhere"], "nowhere/participants.tsv: no such table"),
        (["--steps", "1", "--start", "start.pt"], "start.json: no such file"),
    ],
)
def test_mistakes_are_refused_before_the_training(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    for number in range(4):
        nibabel.save(nibabel.Nifti1Image(demo_labels(), affine(2, "RAS")), f"{number}_dseg.nii.gz")
    before = set(tmp_path.iterdir())
    monkeypatch.setattr("sys.argv", ["train_volume_net.py", "--labels", ".", "--output", "w.pt", *options])
    with pytest.raises((SystemExit, OSError)) as error:
        training.main()
    assert message in f"{error.value} {capsys.readouterr().err}"
    assert set(tmp_path.iterdir()) == before


def test_training_changes_and_saves_the_weights(anatomy, tmp_path):
    torch.manual_seed(0)
    network = build_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    training.train(network, [[anatomy]], steps=2, seed=0, output=tmp_path / "net.pt", peak_rate=1e-3)
    stored = torch.load(tmp_path / "net.pt", weights_only=True)
    assert stored.keys() == before.keys()
    assert any(not torch.equal(stored[name], before[name]) for name in before)
    assert not list(tmp_path.glob("*.part"))
