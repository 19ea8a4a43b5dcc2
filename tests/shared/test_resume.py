from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine, Events

from brain_ldm_bundle.scripts.shared.handlers import BestWeights
from brain_ldm_bundle.scripts.shared.resume import Resume


@pytest.mark.parametrize("writes", [True, False])
def test_a_training_that_could_not_save_its_state_is_refused_at_its_start(tmp_path, writes):
    """It ended after its first epoch."""
    (tmp_path / "models").touch()
    steps = []
    engine = Engine(lambda engine, batch: steps.append(batch))
    Resume(tmp_path / "models" / "resume" / "network.pt", {}, writes=writes).attach(engine)
    if writes:
        with pytest.raises(OSError, match="Not a directory while writing .*models/resume/network.pt"):
            engine.run([1, 2])
        assert steps == []
    else:  # another rank
        engine.run([1, 2])


def test_a_state_without_its_epoch_is_refused_with_the_remedy(tmp_path):
    torch.save({"settings": {}}, tmp_path / "network.pt")
    engine = Engine(lambda engine, batch: None)
    Resume(tmp_path / "network.pt", {}).attach(engine)
    with pytest.raises(ValueError, match=r"network.pt was made by .* \('epoch'\)\. .* or delete the file to start over"):
        engine.run([1])


def test_a_damaged_state_is_refused_with_its_own_remedy(tmp_path):
    (tmp_path / "network.pt").write_bytes(b"half of a state")
    engine = Engine(lambda engine, batch: None)
    Resume(tmp_path / "network.pt", {}).attach(engine)
    with pytest.raises(ValueError, match=r"network.pt: this state .* is damaged. Delete it to start the stage over"):
        engine.run([1])


@pytest.mark.parametrize("before", [True, False])
def test_of_two_runs_in_one_folder_the_second_stops_before_its_validation(tmp_path, before):
    path, validated = tmp_path / "network.pt", []
    run, other = (Engine(lambda engine, batch: None) for _ in range(2))
    if before:  # both continue from the same state
        Resume(path, {}).attach(first := Engine(lambda engine, batch: None))
        first.run([1], max_epochs=1)
    for engine in (run, other):
        Resume(path, {}).attach(engine)
        engine.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: validated.append(engine is other))
    run.add_event_handler(Events.ITERATION_STARTED(once=1 + before), lambda _: other.run([1], max_epochs=2))
    with pytest.raises(ValueError, match="network.pt: another run writes this file, too. Wait for it, or give another"):
        run.run([1], max_epochs=2)
    assert validated and all(validated)  # by the other run alone


def test_lost_weights_are_written_again_or_refused_with_the_remedy(tmp_path):
    """A finished stage ended with exit status 0 and without weights, and the next stage sent the user back to it."""
    weights = tmp_path / "model.pt"

    def train(epochs):
        best = BestWeights(weights, torch.nn.Linear(1, 1), "score")
        engine = Engine(lambda engine, batch: None)

        def validate(engine):
            best(SimpleNamespace(state=SimpleNamespace(metrics={"score": 1 / engine.state.epoch}, epoch=engine.state.epoch)))

        engine.add_event_handler(Events.EPOCH_COMPLETED, validate)
        Resume(tmp_path / "resume" / "network.pt", {"best": best}).attach(engine)
        engine.run([1], max_epochs=epochs)

    train(1)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"model.pt: these weights are missing.* or delete .*network.pt to train the"):
        train(1)
    train(2)  # although its score is lower
    assert weights.is_file()
    train(2)
