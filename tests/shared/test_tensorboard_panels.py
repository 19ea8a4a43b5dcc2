import torch
from ignite.engine import Engine
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from brain_ldm_bundle.scripts.shared.tensorboard_panels import Curves, Panels, three_planes


def test_the_three_planes_stand_upright_with_the_nose_to_the_left():
    """The model's arrays are stored from right to left, back to front and bottom to top."""
    volume = torch.zeros(6, 10, 8)
    volume[:, :, 7] = 0.5  # top of the head
    volume[:, 9, :] = 1.0  # nose
    volume[0, :, :] = 0.25  # the subject's right
    picture = three_planes(volume)[0]
    axial, coronal, sagittal = picture[:, 1:7], picture[:, 9:15], picture[:, 17:27]
    assert picture.shape == (10, 6 + 6 + 10 + 6)
    assert (axial[0, 1:] == 1).all()  # front at the top
    assert (axial[1:, 0] == 0.25).all()  # the subject's right at the picture's left
    assert (coronal[0, 1:] == 0.5).all()  # top at the top; two rows of padding below
    assert (coronal[1:8, 0] == 0.25).all()
    assert (sagittal[:8, 0] == 1).all()  # nose to the left
    assert (sagittal[0, 1:] == 0.5).all()


def test_panels_are_drawn_every_few_epochs(tmp_path):
    volumes = {"samples": torch.rand(2, 1, 4, 6, 8)}
    trainer = Engine(lambda engine, batch: None)
    Panels(str(tmp_path), lambda: volumes, every=2).attach(trainer)
    trainer.run([0], max_epochs=5)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [image.step for image in events.Images("samples")] == [2, 4]


def test_curves_leave_no_file_before_their_first_value(tmp_path):
    """A run that was refused after its handlers were made left event files."""
    curves = Curves(str(tmp_path / "logs"), epoch_log=False)
    trainer = Engine(lambda engine, batch: [{"loss": 2.0 * batch}])
    curves.attach(trainer)
    assert not (tmp_path / "logs").exists()
    trainer.run([1, 2], max_epochs=1)
    events = EventAccumulator(str(tmp_path / "logs")).Reload()
    [name] = events.Tags()["scalars"]
    assert [(one.step, one.value) for one in events.Scalars(name)] == [(1, 2.0), (2, 4.0)]
