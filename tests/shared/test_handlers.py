"""Handlers keep a long run safe: they set seeds by epoch, resume, keep the best weights, and stop at NaN."""

import math
import os
import signal
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler
from monai.engines import SupervisedEvaluator
from monai.handlers import MeanAbsoluteError, ValidationHandler, from_engine

from brain_ldm_bundle.scripts.shared.handlers import (
    BestWeights,
    EpochSeed,
    MovingAverage,
    Progress,
    StopAtNonFinite,
    ValidateStart,
    validation_interval,
)
from brain_ldm_bundle.scripts.shared.recipe import WithRecipe, encode
from brain_ldm_bundle.scripts.shared.resume import Resume
from brain_ldm_bundle.scripts.shared.weights import read_recipe


def trainer(network, optimizer, handlers, batches=3, noise=True):
    """A regression on noise of torch's own generator: without equal seeds two runs differ."""

    def step(engine, batch):
        optimizer.zero_grad()
        target = torch.randn(4) if noise else torch.ones(4)
        loss = (network(torch.full((4, 2), float(batch))).squeeze() - target).square().mean()
        loss.backward()
        optimizer.step()
        return [{"loss": loss.item()}]

    engine = Engine(step)
    engine.data_loader = SimpleNamespace(dataset=[])
    for handler in handlers:
        handler.attach(engine)
    return engine, list(range(batches))


def fresh():
    torch.manual_seed(0)
    network = torch.nn.Linear(2, 1)
    return network, torch.optim.Adam(network.parameters(), lr=0.1)


def train(path, max_epochs, stop_at=None, **options):
    """Weights after training; `stop_at` is an iteration at which this process is sent SIGTERM."""
    network, optimizer = fresh()
    resume = Resume(path, {"network": network, "optimizer": optimizer}, **options)
    engine, data = trainer(network, optimizer, [EpochSeed(7), resume])

    def interrupt(engine):
        if engine.state.iteration == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    # First of all handlers of an iteration, as a signal that came during it.
    engine._event_handlers[Events.ITERATION_COMPLETED].insert(0, (interrupt, (engine,), {}))
    engine.run(data, max_epochs=max_epochs)
    return network.weight.detach().clone()


def test_two_and_two_epochs_are_four_bit_for_bit(tmp_path):
    whole = train(tmp_path / "whole.pt", 4)
    train(tmp_path / "halves.pt", 2)
    assert torch.equal(train(tmp_path / "halves.pt", 4), whole)


@pytest.mark.parametrize("stop_at", [3, 4])  # the end of an epoch, and its middle
def test_sigterm_saves_and_ends_with_143_and_the_next_run_continues(tmp_path, stop_at):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        train(tmp_path / "resume.pt", 4, stop_at=stop_at)
    assert end.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before
    state = torch.load(tmp_path / "resume.pt", weights_only=True)
    assert 3 * state["epoch"] + state["iteration_of_epoch"] == stop_at
    whole, resumed = train(tmp_path / "whole.pt", 4), train(tmp_path / "resume.pt", 4)
    assert torch.equal(resumed, whole) == (stop_at == 3)  # within an epoch, the rest of it sees other random draws


@pytest.mark.parametrize("resume_is_first", [True, False])
def test_what_handlers_change_is_saved_whatever_their_order(tmp_path, resume_is_first):
    """Listed first, it saved the state from before the last change, and a bar after it counted from 0."""

    def run(max_epochs):
        network, optimizer = fresh()
        resume, progress = Resume(tmp_path / "resume.pt", {"network": network}), Progress("stage")
        first, second = (resume, progress) if resume_is_first else (progress, resume)
        engine, data = trainer(network, optimizer, [first])
        engine.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: torch.nn.init.constant_(network.bias, 5.0))
        second.attach(engine)
        engine.run(data, max_epochs=max_epochs)
        return progress.bar

    run(1)
    assert torch.load(tmp_path / "resume.pt", weights_only=True)["network"]["bias"] == 5
    bar = run(3)
    assert (bar.initial, bar.n) == (3, 9)


def test_a_finished_stage_does_nothing_when_run_again(tmp_path):
    once = train(tmp_path / "resume.pt", 2)
    assert torch.equal(train(tmp_path / "resume.pt", 2), once)


def test_a_long_epoch_is_saved_within(tmp_path):
    network, optimizer = fresh()
    resume = Resume(tmp_path / "resume.pt", {"network": network}, every_minutes=0)
    positions = []
    engine, data = trainer(network, optimizer, [resume])
    resume.save, save = lambda e: (save(e), positions.append(e.state.iteration)), resume.save
    engine.run(data, max_epochs=1)
    assert positions[:2] == [1, 2]


def test_ranks_that_do_not_write_leave_no_file(tmp_path):
    train(tmp_path / "resume.pt", 1, writes=False)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    train(tmp_path / "resume.pt", 1)
    network = torch.nn.Linear(3, 1)
    resume = Resume(tmp_path / "resume.pt", {"network": network})
    engine, data = trainer(network, torch.optim.Adam(network.parameters()), [resume])
    with pytest.raises(ValueError, match="made by a run with other settings .*or delete the file to start over"):
        engine.run(data, max_epochs=2)


def test_a_schedule_keeps_its_place_but_takes_its_length_from_the_new_run(tmp_path):
    def run(total_epochs, epochs):
        network, optimizer = fresh()
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=3 * total_epochs)
        engine, data = trainer(network, optimizer, [Resume(tmp_path / "resume.pt", {"optimizer": optimizer, "s": schedule})])
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: schedule.step())
        engine.run(data, max_epochs=epochs)
        return schedule

    run(2, 1)
    longer = run(10, 2)
    assert longer.total_iters == 30 and longer.last_epoch == 6


def test_the_best_weights_stay_when_later_ones_are_worse_or_not_finite(tmp_path):
    network = torch.nn.Linear(1, 1)
    best = BestWeights(tmp_path / "model.pt", network, "loss", larger_is_better=False)

    def evaluate(value, weight):
        torch.nn.init.constant_(network.weight, weight)
        best(SimpleNamespace(state=SimpleNamespace(metrics={"loss": value}, epoch=1)))
        return torch.load(tmp_path / "model.pt", weights_only=True)["weight"].item()

    assert evaluate(0.5, 1.0) == 1.0
    assert evaluate(0.7, 2.0) == 1.0
    assert evaluate(math.nan, 3.0) == 1.0
    assert evaluate(0.4, 4.0) == 4.0
    with pytest.raises(ValueError, match="weight is not finite"):
        evaluate(0.1, math.inf)
    assert torch.load(tmp_path / "model.pt", weights_only=True)["weight"].item() == 4.0

    again = BestWeights(tmp_path / "model.pt", network, "loss", larger_is_better=False)
    again.load_state_dict(best.state_dict())
    again(SimpleNamespace(state=SimpleNamespace(metrics={"loss": 0.45}, epoch=1)))
    assert torch.load(tmp_path / "model.pt", weights_only=True)["weight"].item() == 4.0


def test_what_was_best_before_the_adversarial_phase_does_not_count_in_it(tmp_path):
    network = torch.nn.Linear(1, 1)
    best = BestWeights(tmp_path / "model.pt", network, "ssim", restart_at_epoch=3)

    def written(epoch, ssim):
        torch.nn.init.constant_(network.weight, epoch)
        best(SimpleNamespace(state=SimpleNamespace(metrics={"ssim": ssim}, epoch=epoch)))
        return torch.load(tmp_path / "model.pt", weights_only=True)["weight"].item()

    assert [written(*pair) for pair in [(1, 0.8), (2, 0.9), (3, 0.6), (4, 0.7), (5, 0.65)]] == [1, 2, 3, 4, 4]


def test_other_data_or_spacing_does_not_continue_from_this_checkpoint(tmp_path):
    network, _ = fresh()
    objects = {"network": network}
    for settings in ({"data": "a"}, {"data": "b"}):
        engine, data = trainer(network, torch.optim.Adam(network.parameters()), [])
        Resume(tmp_path / "resume.pt", objects, settings=settings).attach(engine)
        if settings["data"] == "b":
            with pytest.raises(ValueError, match="other settings .*data: other scans"):
                engine.run(data, max_epochs=2)
        else:
            engine.run(data, max_epochs=1)


def test_a_setting_that_only_an_earlier_version_wrote_is_no_difference(tmp_path):
    network, _ = fresh()
    engine, data = trainer(network, torch.optim.Adam(network.parameters()), [])
    Resume(tmp_path / "resume.pt", {"network": network}, settings={"data": "a", "seen": ["b"]}).attach(engine)
    engine.run(data, max_epochs=1)
    engine, data = trainer(network, torch.optim.Adam(network.parameters()), [])
    Resume(tmp_path / "resume.pt", {"network": network}, settings={"data": "a", "seen_voxels": ["c"]}).attach(engine)
    engine.run(data, max_epochs=2)
    assert engine.state.epoch == 2


def test_another_wording_of_a_setting_is_no_difference_but_another_value_is(tmp_path):
    def settings(source, limit, text):
        return {"_desc_": text, "covariates": [{"name": "age", "source": source, "range": [44, limit]}]}

    def start(*values):
        network = torch.nn.Linear(2, 1)
        resume = Resume(tmp_path / "resume.pt", {"network": network}, settings=settings(*values))
        engine, data = trainer(network, torch.optim.SGD(network.parameters(), 0.1), [resume])
        engine.run(data, max_epochs=1)

    start("the paper", 82, "settings that travel")
    start("Table 1 of the paper", 82, "stored settings")
    with pytest.raises(ValueError, match="made by a run with other settings .covariates: .*'range': .44, 82"):
        start("the paper", 90, "settings that travel")


def test_a_lower_learning_rate_is_taken_up_on_resuming(tmp_path):
    """A run that diverged says "lower the learning rate and run again": the checkpoint's rate must not win."""

    def run(lr, epochs):
        network, optimizer = fresh()
        optimizer.param_groups[0]["lr"] = lr
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        objects = {"network": network, "optimizer": optimizer, "schedule": schedule}
        engine, data = trainer(network, optimizer, [Resume(tmp_path / "resume.pt", objects)])
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: schedule.step())
        engine.run(data, max_epochs=epochs)
        return optimizer.param_groups[0]["lr"]

    assert run(0.1, 1) == 0.1
    assert run(0.001, 2) == 0.001


def test_after_a_short_run_the_average_is_of_what_was_learnt_not_of_the_start():
    network, optimizer = fresh()
    average = MovingAverage(network, momentum=1e-4)
    engine, data = trainer(network, optimizer, [average], batches=100, noise=False)
    start = network.weight.detach().clone()
    engine.run([1] * 100, max_epochs=1)
    left = (average.ema_model.weight - network.weight).norm() / (start - network.weight).norm()
    assert left < 0.1  # with a constant momentum it would be 0.99


def test_the_average_of_many_tensors_is_the_one_of_ignite():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    engine = Engine(lambda engine, batch: [torch.nn.init.normal_(value) for value in network.parameters()])
    ours, theirs = MovingAverage(network, momentum=0.9), EMAHandler(network, momentum=0.9)
    for name, handler in (("ours", ours), ("theirs", theirs)):
        handler.attach(engine, name)
    engine.run([1] * 5)
    for average, expected in zip(ours.ema_model.state_dict().values(), theirs.ema_model.state_dict().values()):
        torch.testing.assert_close(average, expected, atol=1e-6, rtol=0)
    assert not torch.equal(ours.ema_model[0].weight, network[0].weight)


def test_a_loss_that_is_not_finite_ends_the_run_before_it_is_saved(tmp_path):
    network, optimizer = fresh()
    optimizer.param_groups[0]["lr"] = math.inf
    engine, data = trainer(network, optimizer, [StopAtNonFinite(), Resume(tmp_path / "resume.pt", {"network": network})])
    with pytest.raises(RuntimeError, match=r"loss of iteration 2 \(epoch 1\) is not finite"):
        engine.run(data, max_epochs=1)
    assert not (tmp_path / "resume.pt").exists()


def test_one_bar_counts_the_steps_of_all_epochs(capsys):
    network, optimizer = fresh()
    progress = Progress("stage")
    engine, data = trainer(network, optimizer, [progress], noise=False)
    engine.run(data, max_epochs=2)
    assert progress.bar.total == progress.bar.n == 6
    assert "stage" in capsys.readouterr().err


def test_ranks_and_epochs_draw_different_numbers():
    def draw(rank, epoch):
        EpochSeed(7, rank)(SimpleNamespace(state=SimpleNamespace(epoch=epoch), data_loader=SimpleNamespace(dataset=[])))
        return torch.rand(()).item()

    assert draw(0, 1) == draw(0, 1)
    assert len({draw(rank, epoch) for rank in range(3) for epoch in range(3)}) == 9


def test_the_last_epoch_is_always_validated():
    assert [validation_interval(5, epochs) for epochs in (1, 3, 5, 9, 30, 31)] == [1, 3, 5, 3, 5, 1]


class Slope(WithRecipe):
    """y = weight * x, to which 1 is right."""

    def __init__(self, weight):
        super().__init__()
        self.weight, self.recipe = torch.nn.Parameter(torch.tensor(float(weight))), {"seen_voxels": ["new"]}

    def forward(self, x):
        return self.weight * x


def fine_tune(folder, weight, lr, epochs=3, stop_at=None):
    """Train from a weight towards 1 with a validation before and after each epoch; return the weight in the file, `BestWeights`
    and the epochs that were validated.

    `stop_at` is an iteration at which this process is sent SIGTERM.
    """
    network = Slope(weight)
    torch.save({"weight": network.weight.detach(), "_extra_state": encode({"seen_voxels": ["old"]})}, folder / "start.pt")
    optimizer = torch.optim.SGD(network.parameters(), lr=lr)
    best = BestWeights(folder / "model.pt", network, "val_l1", larger_is_better=False)
    pair = {"image": torch.ones(1, 1), "label": torch.ones(1, 1)}
    validated = []
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[pair],
        network=network,
        decollate=False,
        key_val_metric={"val_l1": MeanAbsoluteError(output_transform=from_engine(["pred", "label"]))},
        val_handlers=[best],
    )
    evaluator.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: validated.append(engine.state.epoch))

    def step(engine, batch):
        optimizer.zero_grad()
        loss = (network(torch.ones(1)) - 1).square().mean()
        loss.backward()
        optimizer.step()
        if engine.state.iteration == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return [{"loss": loss.item()}]

    trainer = Engine(step)
    for handler in (
        ValidationHandler(1, evaluator),
        ValidateStart(evaluator, best, folder / "start.pt"),
        Resume(folder / "resume.pt", {"network": network, "optimizer": optimizer, "best": best}),
    ):
        handler.attach(trainer)
    try:
        trainer.run([0] * 4, max_epochs=epochs)
    except SystemExit:
        pass
    return torch.load(folder / "model.pt", weights_only=True)["weight"].item(), best, validated


def test_training_that_only_makes_its_start_worse_leaves_the_start_and_says_so(tmp_path, caplog):
    """Six heads and three epochs turned an SSIM of .721 into .352, which was called the best so far."""
    kept, best, validated = fine_tune(tmp_path, 1.1, lr=2)  # each step goes three times as far beyond 1
    assert kept == pytest.approx(1.1) and best.best_epoch == 0 and validated == [0, 1, 2, 3]
    recipe = read_recipe(tmp_path / "model.pt")
    assert recipe["seen_voxels"] == ["old"]  # the start has not seen the new scans
    selection = recipe["selection"]
    assert (selection["epoch"], selection["metric"]) == (0, "val_l1")
    assert selection["value"] == selection["start"] == pytest.approx(0.1)
    assert "no epoch was better than the start of this training (val_l1 0.10000)" in caplog.text


def test_training_that_helps_replaces_its_start_and_says_from_which_score(tmp_path, caplog):
    weight, best, _ = fine_tune(tmp_path, 1.1, lr=0.1)
    recipe = read_recipe(tmp_path / "model.pt")
    assert abs(weight - 1) < 0.05 and best.best_epoch == recipe["selection"]["epoch"] == 3
    assert recipe["selection"]["start"] == pytest.approx(0.1) and recipe["selection"]["value"] < 0.05
    assert recipe["seen_voxels"] == ["new"]
    assert "no epoch was better" not in caplog.text


@pytest.mark.parametrize("stop_at", [2, 4, 6])  # within the first epoch, at its end, and within the second
def test_a_resumed_run_neither_validates_its_start_again_nor_forgets_it(tmp_path, stop_at):
    fine_tune(tmp_path, 1.1, lr=2, stop_at=stop_at)
    kept, best, validated = fine_tune(tmp_path, 1.1, lr=2)
    assert 0 not in validated and validated[-1] == 3
    assert kept == pytest.approx(1.1) and best.start_value() == pytest.approx(0.1)


def test_the_start_of_fine_tuning_counts_in_the_adversarial_phase_too(tmp_path):
    network = Slope(0)
    best = BestWeights(tmp_path / "model.pt", network, "ssim", restart_at_epoch=3)

    def written(epoch, ssim):
        torch.nn.init.constant_(network.weight, epoch)
        best(SimpleNamespace(state=SimpleNamespace(metrics={"ssim": ssim}, epoch=epoch)))
        return torch.load(tmp_path / "model.pt", weights_only=True)["weight"].item()

    pairs = [(0, 0.7), (1, 0.6), (2, 0.9), (3, 0.65), (4, 0.75), (5, 0.72)]
    assert [written(*pair) for pair in pairs] == [0, 0, 2, 2, 4, 4]


def test_a_lost_file_of_a_kept_start_is_noticed(tmp_path):
    network = Slope(0)
    best = BestWeights(tmp_path / "model.pt", network, "ssim")
    best(SimpleNamespace(state=SimpleNamespace(metrics={"ssim": 0.9}, epoch=0)))
    assert not best.is_lost()
    (tmp_path / "model.pt").unlink()
    assert best.is_lost()
    best.load_state_dict(best.state_dict())
    best(SimpleNamespace(state=SimpleNamespace(metrics={"ssim": 0.1}, epoch=1)))
    assert (tmp_path / "model.pt").is_file()
