"""The learning rate falls at the end of a training."""

from spade_fusion_bundle.scripts.training.learning_rate import linear_decay


def test_the_learning_rate_falls_linearly_over_the_last_epochs():
    assert [linear_decay(200, 100)(epoch) for epoch in (0, 100, 150, 199, 200)] == [1, 1, 0.5, 0.01, 0]
    assert [linear_decay(4, 0)(epoch) for epoch in (0, 3)] == [1, 1]
    # a short run with the default of a long one: it began at a tenth of the rate
    assert linear_decay(10, 100)(0) == 1 and linear_decay(10, 100)(5) == 0.5
