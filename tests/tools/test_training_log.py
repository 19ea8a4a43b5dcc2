from PIL import Image
from report_page import training_log
from torch.utils.tensorboard import SummaryWriter


def write(folder, first, last):
    with SummaryWriter(str(folder)) as writer:
        for step in range(first, last + 1):
            writer.add_scalar("loss", 1 / step, step)


def test_a_resumed_training_is_one_curve_in_which_the_later_run_counts(tmp_path):
    folder = tmp_path / "tensorboard" / "diffusion"
    write(folder / "a", 1, 30)
    write(folder / "b", 21, 60)
    steps, loss = training_log.read_scalars(sorted(folder.rglob("events*")))["loss"].T
    assert steps.tolist() == list(range(1, 61))
    assert abs(loss[-1] - 1 / 60) < 1e-6


def test_every_stage_has_a_row(tmp_path):
    heights = []
    for stage in ("autoencoder", "diffusion"):
        write(tmp_path / "tensorboard" / stage, 1, 5)
        (tmp_path / "curves.png").write_bytes(training_log.draw_curves(tmp_path))
        heights.append(Image.open(tmp_path / "curves.png").height)
    assert heights[1] == 2 * heights[0]


def test_a_folder_without_curves_draws_nothing(tmp_path):
    assert training_log.draw_curves(tmp_path) is None
