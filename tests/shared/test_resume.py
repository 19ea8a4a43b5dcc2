import pytest
import torch
from ignite.engine import Engine

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
