import numpy as np
import pytest
import torch
from ignite.engine import Engine
from matplotlib.figure import Figure
from PIL import Image

from spade_fusion_bundle.scripts.evaluation import figures
from spade_fusion_bundle.scripts.evaluation.synthesis_scores import METHODS

SHAPE = (20, 24, 18)


def brain():
    mask = np.zeros(SHAPE, bool)
    mask[4:15, 6:19, 3:12] = True  # centre at 9, 12, 7
    return mask


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, with all that is in them."""
    saved = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **options: (saved.append(self), save(self, *args, **options)))
    return saved


def test_the_centre_is_the_centre_of_mass():
    mask = brain()
    assert figures.brain_centre(mask) == (9, 12, 7)
    mask[15:, 18, 11] = True
    assert figures.brain_centre(mask) == (9, 12, 7)
    with pytest.raises(ValueError, match="the brain mask is empty"):
        figures.brain_centre(np.zeros(SHAPE, bool))


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_pictures_are_in_radiological_convention(plane):
    volume = np.zeros(SHAPE)
    right, left, front, back, top, bottom = 1, 2, 3, 4, 5, 6
    volume[-1, 12, 9], volume[0, 12, 9] = right, left  # RAS: x grows to the subject's right
    volume[10, -1, 9], volume[10, 0, 9] = front, back
    volume[10, 12, -1], volume[10, 12, 0] = top, bottom
    picture = figures.radiological(volume, plane, {"axial": 9, "coronal": 12, "sagittal": 10}[plane])
    at_left, at_right, above, below = {
        "axial": (right, left, front, back),
        "coronal": (right, left, top, bottom),
        "sagittal": (front, back, top, bottom),
    }[plane]
    assert at_left in picture[:, 0] and at_right in picture[:, -1]
    assert above in picture[0] and below in picture[-1]


def test_profiles_run_through_the_centre_in_millimetres(tmp_path, drawn):
    grid = np.indices(SHAPE)
    real = (grid[0] + 24 * grid[1] + 3 * grid[2]) / 1000
    figures.draw_profiles(tmp_path / "p.png", {"scan": real, "fusion": 0.5 * real}, brain(), (2.0, 1.0, 3.0), "sub-1")
    through = (real[:, 12, 7], real[9, :, 7], real[9, 12, :])
    for axis, (axes, spacing_mm, values) in enumerate(zip(drawn[0].axes, (2, 1, 3), through)):
        lines = {line.get_label(): line.get_data() for line in axes.lines}
        assert set(lines) == {"scan", "fusion"}
        np.testing.assert_allclose(lines["scan"][0], spacing_mm * (np.arange(SHAPE[axis]) - (9, 12, 7)[axis]))
        np.testing.assert_allclose(lines["scan"][1], values)
        np.testing.assert_allclose(lines["fusion"][1], values / 2)
    names = [axes.get_xlabel() for axes in drawn[0].axes]
    assert [name.split(",")[0] for name in names] == ["left to right", "back to front", "bottom to top"]
    assert all("mm" in name for name in names)
    assert "sub-1" in drawn[0].get_supxlabel() and "not for clinical use" in drawn[0].get_supxlabel()


def test_the_planes_are_true_to_scale_and_marked_as_synthetic(tmp_path, drawn):
    classes = np.zeros(SHAPE, int)
    classes[2:18, 1:23, 2:16] = 1  # 32 x 22 x 42 mm
    classes[brain()] = 2
    volumes = {"scan": classes / 2, "fusion": classes / 4, "median": classes / 3, "other": classes / 5}
    figures.draw_planes(tmp_path / "p.png", classes, volumes, brain(), (2.0, 1.0, 3.0), "sub-1")
    grid = np.array(drawn[0].axes).reshape(3, 4)
    assert [axes.get_title() for axes in grid[0]] == ["labels", "scan", "median", "fusion"]
    extents_mm = [tuple(axes.images[0].get_extent()) for axes in grid[:, 1]]
    assert extents_mm == [(0, 32, 0, 22), (0, 32, 0, 42), (0, 22, 0, 42)]
    np.testing.assert_allclose(
        grid[2, 3].images[0].get_array(), figures.radiological(classes[2:18, 1:23, 2:16] / 4, "sagittal", 7)
    )
    assert "Synthetic, not for clinical use" in drawn[0].get_supxlabel()


def test_neighbouring_classes_differ_in_colour_and_background_is_black():
    colours = figures._class_colours(30)
    assert tuple(colours[0]) == (0, 0, 0, 1)
    brightness = colours[1:, :3] @ (0.299, 0.587, 0.114)
    assert np.abs(np.diff(brightness)).min() > 0.1


def test_every_way_of_joining_the_planes_has_a_line_and_a_column():
    assert {"mean", "median", "fusion"} <= set(figures.LINES) and set(METHODS) <= set(figures.COLUMNS)


def test_a_simulated_scan_is_called_so(tmp_path, drawn):
    """The figures of the demo once said that their scan was not synthetic, and nothing else."""
    (tmp_path / "dataset_description.json").write_text('{"Simulated": true}')
    classes = torch.from_numpy(np.where(brain(), 2, 1).astype(np.uint8))[None, None]
    output = {"image": classes, "label": classes / 2, "pred": (classes / 3).expand(1, len(METHODS), *SHAPE)}
    engine = Engine(lambda engine, batch: batch)
    figures.FiguresOfFirst(tmp_path / "out", brain=(2,), spacing_mm=2.0).attach(engine)
    engine.run([output | {"participant_id": ["sub-7"], "scan_file": [str(tmp_path / "sub-7_T1w.nii.gz")]}])
    assert drawn[0].axes[1].get_title() == "simulated scan" and "labels and simulated scan." in drawn[0].get_supxlabel()
    assert "simulated scan" in [text.get_text() for text in drawn[1].legends[0].get_texts()]
    assert drawn[1].get_supxlabel().endswith("all but the simulated scan")


def test_the_words_below_a_figure_are_within_it(tmp_path, drawn):
    """ "Synthetic" began to the left of the picture."""
    classes = np.where(brain(), 1, 0)
    volumes = dict.fromkeys(["scan", *METHODS], np.zeros(SHAPE))
    figures.draw_planes(tmp_path / "a.png", classes, volumes, brain(), [4.0] * 3, "sub-01", "simulated scan")
    figures.draw_profiles(tmp_path / "b.png", volumes, brain(), [4.0] * 3, "sub-01_" + 150 * "x y ", "simulated scan")
    for figure in drawn:
        [words] = [text for text in figure.texts if "Synthetic" in text.get_text()]
        box = words.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0


def test_the_first_scan_alone_is_drawn(tmp_path, drawn):
    classes = torch.from_numpy(np.where(brain(), 2, 1).astype(np.uint8))[None, None]
    output = {"image": classes, "label": classes / 2, "pred": (classes / 3).expand(1, len(METHODS), *SHAPE)}
    engine = Engine(lambda engine, batch: batch)
    figures.FiguresOfFirst(tmp_path, brain=(2,), spacing_mm=2.0).attach(engine)
    engine.run([output | {"participant_id": [name], "scan_file": [f"{name}_T1w.nii"]} for name in ("sub-7", "sub-8")])
    assert len(drawn) == 2 and sorted(path.name for path in tmp_path.iterdir()) == ["planes.png", "profiles.png"]
    assert drawn[0].get_suptitle() == "sub-7"
    assert "all but labels and scan" in drawn[0].get_supxlabel() and "all but the scan" in drawn[1].get_supxlabel()
    for path in tmp_path.iterdir():
        assert Image.open(path).text["Comment"] == "Synthetic, not for clinical use"


def test_segmentations_are_drawn_beside_the_scan_in_the_same_place_and_colours(tmp_path, drawn):
    scan = np.random.default_rng(0).random(SHAPE)
    truth, made = brain() * 2, brain() * 3
    maps = {"own label map": truth, "trained on: real": made}
    names = ["background", "skull", "left cortex", "right cortex", "brain stem"]
    figures.draw_segmentations(tmp_path / "s.png", scan, maps, brain(), names, (2.0, 1.0, 3.0), "sub-1")
    grid = np.array(drawn[0].axes).reshape(2, 3)
    assert [axes.get_title() for axes in grid[0]] == ["scan", "own label map", "trained on:\nreal"]
    assert [tuple(axes.images[0].get_extent()) for axes in grid[:, 1]] == [(0, 40, 0, 24), (0, 40, 0, 54)]  # mm
    for row, (plane, index) in zip(grid, {"axial": 7, "coronal": 12}.items()):  # the brain's centre is 9, 12, 7
        for axes, volume in zip(row, (scan, truth, made)):
            np.testing.assert_array_equal(axes.images[0].get_array(), figures.radiological(volume, plane, index))
        assert row[1].images[0].get_clim() == row[2].images[0].get_clim() == (-0.5, 4.5)
    (legend,) = drawn[0].legends
    assert "not for clinical use" in legend.get_title().get_text() and drawn[0].get_suptitle() == "sub-1"
    assert [text.get_text() for text in legend.get_texts()] == ["left cortex", "right cortex"]  # the others are not to be seen
    for patch, volume in zip(legend.get_patches(), (truth, made)):
        image = grid[0, 1].images[0]
        assert patch.get_facecolor() == tuple(image.cmap(image.norm(volume.max())))
