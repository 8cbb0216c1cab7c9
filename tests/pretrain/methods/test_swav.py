"""SwAV against the published program's numbers and against an independent slow version."""

import copy

import pytest
import torch

from pretrain.methods import Progress, build_method
from pretrain.methods.swav import sinkhorn
from pretrain.optim import build_optimizer, set_hyperparameters
from tests.pretrain import tiny
from tests.pretrain.golden import golden, relative_error
from tests.pretrain.tiny import config
from tools import plain_methods as plain


def golden_method(queue: int):
    cfg = config("swav", SWAV__PROTOTYPES=30, SWAV__OUTPUT_DIM=16, SWAV__QUEUE_LENGTH=queue)
    method = build_method(cfg)
    with torch.no_grad():
        method.network.head.prototypes.weight.copy_(torch.tensor(golden()["swav_prototypes"]))
    return method


def test_loss_gradient_and_queue_equal_the_published_ones():
    """Call 0 without a queue, 1 and 2 while it fills, 3 with it."""
    data, method = golden(), golden_method(queue=8)
    for i in range(4):
        embedding = torch.tensor(data[f"swav_embedding_{i}"])
        logits = (embedding @ method.network.head.prototypes.weight.T).detach().requires_grad_()
        loss = method.loss(embedding, logits, views=8, use_queue=i > 0)["loss"]
        loss.backward()
        assert relative_error(loss, data[f"swav_loss_{i}"]) < 1e-5
        assert relative_error(logits.grad, data[f"swav_grad_{i}"]) < 1e-5
        if i:
            assert relative_error(method.queue, data[f"swav_queue_after_{i}"]) < 1e-5


def test_queue_fill_survives_a_state_dict():
    """A resumed method goes on as the uninterrupted one: same loss on the call that first uses the queue."""
    data, method = golden(), golden_method(queue=8)
    inputs = [torch.tensor(data[f"swav_embedding_{i}"]) for i in range(4)]
    for embedding in inputs[1:3]:
        method.loss(embedding, embedding @ method.network.head.prototypes.weight.T, 8, use_queue=True)
    resumed = golden_method(queue=8)
    resumed.load_state_dict(method.state_dict())
    logits = inputs[3] @ method.network.head.prototypes.weight.T
    losses = [m.loss(inputs[3], logits, 8, use_queue=True)["loss"].item() for m in (method, resumed)]
    assert losses[0] == losses[1]
    assert losses[1] == pytest.approx(float(data["swav_loss_3"]), rel=1e-5)


def test_sinkhorn_balances_prototypes():
    """Every sample and every prototype carries equal mass in the limit; 3 iterations are the plain version's."""
    scores = torch.nn.functional.normalize(torch.randn(40, 16)) @ torch.nn.functional.normalize(torch.randn(8, 16)).T
    balanced = sinkhorn(scores, 0.05, 200)
    torch.testing.assert_close(balanced.sum(1), torch.ones(40))
    torch.testing.assert_close(balanced.sum(0), torch.full((8,), 5.0), rtol=1e-3, atol=1e-3)
    assert relative_error(sinkhorn(scores, 0.05, 3), plain.sinkhorn(scores, 0.05, 3)) < 1e-5


@pytest.mark.parametrize(("queue", "local"), [(9, 3), (0, 3), (9, 0)])
def test_training_equals_the_slow_version(queue, local):
    """12 LARS steps in 4 epochs; a queue of 8 (9 rounded down) starts in epoch 1, fills in two steps, is then used."""
    cfg = config("swav", SWAV__QUEUE_LENGTH=queue, VIEWS__LOCAL_NUMBER=local)
    torch.manual_seed(0)
    method = build_method(cfg)
    network = copy.deepcopy(method.network)
    optimizer, slow_optimizer = build_optimizer(cfg, method), plain.PlainLARS(network)
    slow_queue = plain.SwAVQueue(8, 16)
    for step in range(12):
        batch, progress = tiny.views(step, local=local), Progress(step, steps_per_epoch=3, total_epochs=4)
        set_hyperparameters(optimizer, 0.3, 0.01)
        result = method(batch, progress)
        optimizer.zero_grad()
        result["loss"].backward()
        method.after_backward(progress)
        optimizer.step()
        method.after_step(progress)

        weight = network.head.prototypes.weight
        weight.data = weight.data / weight.data.norm(dim=1, keepdim=True)
        embedding = [network.head.projection.mlp(network.backbone(view)) for view in batch]
        embedding = [z / z.norm(dim=1, keepdim=True) for z in embedding]
        logits = [z @ weight.t() for z in embedding]
        if queue and progress.epoch >= 1:
            targets = slow_queue.targets(embedding, logits, weight.detach(), 0.05, 3)
        else:
            targets = [plain.sinkhorn(logit.detach(), 0.05, 3) for logit in logits[:2]]
        loss = plain.pairwise_cross_entropy(targets, logits, 0.1, 0.4, 0.6)
        network.zero_grad()
        loss.backward()
        if progress.epoch == 0:
            weight.grad = None
        slow_optimizer.step(0.3, 0.01)

        assert result["loss"].item() == pytest.approx(loss.item(), rel=1e-5, abs=2e-6)
    assert slow_queue.in_use == bool(queue)
    if queue:
        assert relative_error(method.queue, slow_queue.rows) < 1e-5
    for name, value in network.named_parameters():
        assert relative_error(method.network.get_parameter(name), value) < 1e-4, name


def test_queue_length_is_rounded_down_to_the_global_batch(caplog):
    published = config("swav", SWAV__QUEUE_LENGTH=3840, TRAIN__BATCH_SIZE=128, TRAIN__ACCUMULATE=8)
    assert build_method(published).queue.shape == (2, 3072, 16)
    assert not caplog.records
    assert build_method(config("swav", SWAV__QUEUE_LENGTH=3)).queue.shape == (2, 0, 16)
    assert "without a queue" in caplog.text
