"""Batch statistics are measured again with the weights that are kept."""

import torch
from ignite.engine import Engine
from monai.engines import Evaluator

from spade_fusion_bundle.scripts.model.networks import SpadeGenerator
from spade_fusion_bundle.scripts.training.batch_norm import ReestimateBatchNorm


def test_the_batch_statistics_are_those_of_a_pass_over_slices():
    """Earlier statistics do not matter: the new ones are means over batches with the present weights."""
    torch.manual_seed(0)
    generator = SpadeGenerator(3, ngf=2, hidden=4)
    batches = [{"label": torch.randint(0, 3, (4, 1, 32, 64), dtype=torch.uint8)} for _ in range(3)]
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
        for batch in batches * 10:
            generator.train()(batch["label"])  # so that spectral norm has settled, and statistics are of long ago
        generator.stem.bias.add_(1.0)
    layer = generator.blocks[0].norm1.base_norm
    stale = layer.running_mean.clone()
    weights = {name: parameter.clone() for name, parameter in generator.named_parameters()}

    seen = []
    hook = layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    engine = Engine(lambda engine, batch: None)
    ReestimateBatchNorm(generator, batches, 3, torch.device("cpu")).attach(engine)
    engine.run([0])
    hook.remove()

    assert len(seen) == 3 and not generator.training
    torch.testing.assert_close(layer.running_mean, torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(layer.running_var, torch.stack([x.var((0, 2, 3)) for x in seen]).mean(0), atol=1e-5, rtol=1e-4)
    assert (layer.running_mean - stale).abs().min() > 0.5
    assert layer.momentum == 0.1
    assert all(torch.equal(parameter, weights[name]) for name, parameter in generator.named_parameters())


def test_statistics_may_take_more_batches_than_an_epoch_has():
    generator = SpadeGenerator(3, ngf=2, hidden=4)
    batches = [{"label": torch.zeros(2, 1, 32, 64, dtype=torch.uint8)}]
    engine = Engine(lambda engine, batch: None)
    ReestimateBatchNorm(generator, batches, 5, torch.device("cpu"))(engine)
    assert generator.blocks[0].norm1.base_norm.num_batches_tracked == 5


def test_weights_to_fine_tune_keep_their_statistics_until_the_first_step():
    generator = SpadeGenerator(3, ngf=2, hidden=4)
    batches = [{"label": torch.zeros(2, 1, 32, 64, dtype=torch.uint8)}]
    evaluator = Evaluator(torch.device("cpu"), batches, iteration_update=lambda engine, batch: {})
    ReestimateBatchNorm(generator, batches, 1, torch.device("cpu")).attach(evaluator)
    tracked = []
    for epoch in (0, 1):
        evaluator.run(epoch)
        tracked.append(int(generator.blocks[0].norm1.base_norm.num_batches_tracked))
    assert tracked == [0, 1]
