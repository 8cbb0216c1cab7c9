"""MoCo-v2 against the published program's numbers and against an independent slow version."""

import copy

import pytest
import torch

from pretrain.methods import Progress, build_method
from pretrain.methods.moco import contrastive_loss
from pretrain.optim import build_optimizer, set_hyperparameters
from sslight.core.errors import InputError
from tests.pretrain import tiny
from tests.pretrain.golden import golden, relative_error
from tests.pretrain.tiny import config
from tools import plain_methods as plain


def test_loss_and_gradient_equal_the_published_ones():
    data = golden()
    method = build_method(config("moco", MOCO__QUEUE_LENGTH=32))
    method.queue.copy_(torch.tensor(data["moco_queue"]))
    positive, negative = method.logits(torch.tensor(data["moco_q"]), torch.tensor(data["moco_k"]), views=7)
    positive, negative = positive.requires_grad_(), negative.requires_grad_()
    loss = contrastive_loss(positive, negative, 7, 0.4, 0.6)
    loss.backward()
    assert relative_error(loss, data["moco_loss"]) < 1e-5
    gradient = torch.cat([positive.grad[:, None], negative.grad], dim=1)
    assert relative_error(gradient, data["moco_logit_grad"]) < 1e-5


@pytest.mark.parametrize("local", [3, 0])
def test_training_equals_the_slow_version(local):
    """9 LARS steps; the queue of 20 keys wraps around at the 6th batch of 4."""
    cfg = config("moco", VIEWS__LOCAL_NUMBER=local)
    torch.manual_seed(0)
    method = build_method(cfg)
    query, key = copy.deepcopy(method.encoder_q), copy.deepcopy(method.encoder_k)
    queue, pointer = method.queue.clone(), 0
    torch.testing.assert_close(queue.norm(dim=0), torch.ones(20))
    optimizer, slow_optimizer = build_optimizer(cfg, method), plain.PlainLARS(query)
    for step in range(9):
        batch, progress = tiny.views(step, local=local), Progress(step, steps_per_epoch=3, total_epochs=3)
        set_hyperparameters(optimizer, 0.3, 0.01)
        result = method(batch, progress)
        optimizer.zero_grad()
        result["loss"].backward()
        method.after_backward(progress)
        optimizer.step()
        method.after_step(progress)

        plain.plain_ema(key, query, 0.9)
        with torch.no_grad():
            keys = forward(key, batch[0])
        loss = plain.moco_loss([forward(query, view) for view in batch[1:]], keys, queue, 0.2, 0.4, 0.6)
        query.zero_grad()
        loss.backward()
        slow_optimizer.step(0.3, 0.01)
        queue[:, pointer : pointer + 4] = keys.t()
        pointer = (pointer + 4) % 20

        assert result["loss"].item() == pytest.approx(loss.item(), rel=1e-5, abs=2e-6)
    assert relative_error(method.queue, queue) < 1e-5 and method.queue_ptr.item() == pointer == 16
    for ours, slow in ((method.encoder_q, query), (method.encoder_k, key)):
        for name, value in slow.named_parameters():
            assert relative_error(ours.get_parameter(name), value) < 1e-4, name


def forward(network, view):
    projection = network.head.mlp(network.backbone(view))
    return projection / projection.norm(dim=1, keepdim=True)


def test_accumulated_forwards_equal_the_whole_batch():
    """Two forwards of half the batch: the same gradients, key encoder and queue as one forward of all."""
    torch.manual_seed(0)
    whole = build_method(config("moco"))
    with torch.no_grad():
        whole.encoder_q.head.mlp[0].weight.mul_(1.1)  # so that the momentum update does something
    parts = copy.deepcopy(whole)
    batch, progress = tiny.views(0, batch=8), Progress(0, 3, 3)
    whole(batch, progress)["loss"].backward()
    for micro in range(2):
        half = [view[4 * micro : 4 * micro + 4] for view in batch]
        (parts(half, Progress(0, 3, 3, micro))["loss"] / 2).backward()
    for name, parameter in whole.encoder_q.named_parameters():
        torch.testing.assert_close(parts.encoder_q.get_parameter(name).grad, parameter.grad, rtol=1e-4, atol=1e-6)
    for method in (whole, parts):
        method.after_step(progress)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_a_queue_that_the_batch_does_not_divide_keeps_the_newest_keys():
    method = build_method(config("moco", MOCO__QUEUE_LENGTH=10))
    keys = torch.nn.functional.normalize(torch.randn(24, 16))
    for part in keys.split(8):
        method.enqueue(part)
    ours = {tuple(column) for column in method.queue.T.tolist()}
    assert ours == {tuple(row) for row in keys[-10:].tolist()}


def test_a_queue_shorter_than_a_batch_is_refused():
    with pytest.raises(InputError, match="MOCO.QUEUE_LENGTH 3 "):
        build_method(config("moco", MOCO__QUEUE_LENGTH=3))
