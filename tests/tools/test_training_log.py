import io

import pytest
from PIL import Image
from report_page import training_log
from report_page.plots import PLOT_SCALE
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


def test_every_stage_has_a_plot_that_fits_a_phone(tmp_path):
    for stage in ("autoencoder", "diffusion"):
        write(tmp_path / "tensorboard" / stage, 1, 5)
    plots = training_log.draw_curves(tmp_path)
    assert [title.split(":")[0] for title, _ in plots] == ["Autoencoder", "Diffusion model"]
    assert all(Image.open(io.BytesIO(png)).width * PLOT_SCALE <= 328 for _, png in plots)  # a phone's 360, less the margins


def test_a_folder_that_is_no_training_is_refused(tmp_path):
    """A page without a misspelt training looked like a page of a training that was not asked for."""
    with pytest.raises(FileNotFoundError, match="no tensorboard/.* in it. Give output_dir of a training"):
        training_log.draw_curves(tmp_path)
