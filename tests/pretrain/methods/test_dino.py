"""DINO against the published program's numbers and against an independent slow version."""

import copy

import pytest
import torch

from pretrain.methods import Progress, build_method
from pretrain.optim import build_optimizer, cosine, linear, set_hyperparameters
from tests.pretrain.golden import golden, relative_error
from tests.pretrain.tiny import config, views
from tools.plain_methods import (
    PlainLARS,
    cosine_table,
    dino_center,
    dino_targets,
    pairwise_cross_entropy,
    plain_ema,
)


def test_loss_gradient_and_centre_equal_the_published_ones():
    data = golden()
    method = build_method(config("dino", DINO__OUTPUT_DIM=64, DINO__WARMUP_TEACHER_TEMP_EPOCHS=50))
    for i in range(3):
        student = torch.tensor(data[f"dino_student_{i}"], requires_grad=True)
        teacher = torch.tensor(data[f"dino_teacher_{i}"])
        loss = method.loss(student, teacher, views=8, epoch=int(data[f"dino_epoch_{i}"]))["loss"]
        loss.backward()
        method.update_center()
        assert relative_error(loss, data[f"dino_loss_{i}"]) < 1e-5
        assert relative_error(student.grad, data[f"dino_grad_{i}"]) < 1e-5
        assert relative_error(method.center, data[f"dino_center_after_{i}"]) < 1e-5


def test_teacher_entropy_is_that_of_the_targets():
    torch.manual_seed(0)
    method = build_method(config("dino"))
    teacher = torch.randn(8, 48)
    targets = torch.cat(dino_targets([teacher.double()], method.center.double(), 0.04))
    expected = torch.special.entr(targets).sum(-1).mean()
    ours = method.loss(torch.randn(8, 48), teacher, views=2, epoch=0)["teacher_entropy"]
    # A difference of float32 terms near 4 / 0.04 = 100: their rounding, 1e-5, is left whatever the difference is.
    assert ours.item() == pytest.approx(expected.item(), rel=0, abs=2e-5)


@pytest.mark.parametrize("local", [3, 0])
def test_training_equals_the_slow_version(local):
    """9 LARS steps over 3 epochs: frozen last layer, rising temperature, moving teacher and centre; all parameters."""
    cfg = config("dino", DINO__NORM_LAST_LAYER=False, VIEWS__LOCAL_NUMBER=local)
    torch.manual_seed(0)
    method = build_method(cfg)
    student, teacher = copy.deepcopy(method.student), copy.deepcopy(method.teacher)
    optimizer, slow_optimizer = build_optimizer(cfg, method), PlainLARS(student)
    momenta, center = cosine_table(0.996, 1.0, 9), torch.zeros(1, 48)
    for step in range(9):
        batch, epoch = views(step, local=local), step // 3
        progress = Progress(step, steps_per_epoch=3, total_epochs=3)
        set_hyperparameters(optimizer, 0.3, 0.01)
        result = method(batch, progress)
        optimizer.zero_grad()
        result["loss"].backward()
        method.after_backward(progress)
        optimizer.step()
        method.after_step(progress)

        teacher_logits = [teacher_forward(teacher, view).detach() for view in batch[:2]]
        targets = dino_targets(teacher_logits, center, [0.04, 0.07, 0.07][epoch])
        loss = pairwise_cross_entropy(targets, [teacher_forward(student, view) for view in batch], 0.1, 0.4, 0.6)
        student.zero_grad()
        loss.backward()
        if epoch == 0:
            student.head.last_layer.weight_v.grad = student.head.last_layer.weight_g.grad = None
        slow_optimizer.step(0.3, 0.01)
        plain_ema(teacher, student, momenta[step])
        center = dino_center(center, teacher_logits, 0.9)

        assert result["loss"].item() == pytest.approx(loss.item(), rel=1e-5, abs=2e-6)
    assert relative_error(method.center, center) < 1e-5
    for ours, slow in ((method.student, student), (method.teacher, teacher)):
        for name, value in slow.named_parameters():
            assert relative_error(ours.get_parameter(name), value) < 1e-4, name


def teacher_forward(network, view):
    """One network on one view, with the weight norm written out."""
    bottleneck = network.head.mlp(network.backbone(view))
    bottleneck = bottleneck / bottleneck.norm(dim=-1, keepdim=True)
    layer = network.head.last_layer
    return bottleneck @ (layer.weight_g * layer.weight_v / layer.weight_v.norm(dim=1, keepdim=True)).t()


def test_accumulated_forwards_equal_the_whole_batch():
    """Two forwards of half the batch give the gradients and the centre of one forward of all (no batch norm)."""
    torch.manual_seed(0)
    whole = build_method(config("dino"))
    parts = copy.deepcopy(whole)
    batch, progress = views(0, batch=8), Progress(0, 3, 3)
    whole(batch, progress)["loss"].backward()
    for micro in range(2):
        half = [view[4 * micro : 4 * micro + 4] for view in batch]
        (parts(half, Progress(0, 3, 3, micro))["loss"] / 2).backward()
    for name, parameter in whole.student.named_parameters():
        if parameter.requires_grad:
            ours = parts.student.get_parameter(name).grad
            torch.testing.assert_close(ours, parameter.grad, rtol=1e-4, atol=1e-6)
    for method in (whole, parts):
        method.after_step(progress)
    torch.testing.assert_close(parts.center, whole.center, rtol=1e-5, atol=1e-7)


def test_only_the_student_drops_paths_and_the_teacher_gets_no_gradient():
    method = build_method(config("dino", MODEL__BACKBONE_ARCH="vit_tiny", MODEL__DROP_PATH_RATE=0.1))
    rates = [block.drop_path1.drop_prob for block in method.student.backbone.blocks[1:]]
    assert rates == pytest.approx([0.1 * i / 11 for i in range(1, 12)])
    assert not [m for m in method.teacher.modules() if type(m).__name__ == "DropPath"]
    assert not any(parameter.requires_grad for parameter in method.teacher.parameters())


def test_schedule_of_momentum_and_temperature_are_read_at_the_step_and_epoch():
    """The teacher after one step is momentum * teacher + (1 - momentum) * student with the step's own momentum."""
    method = build_method(config("dino"))
    with torch.no_grad():
        method.student.head.mlp[0].weight.add_(1.0)
    before, student = method.teacher.head.mlp[0].weight.clone(), method.student.head.mlp[0].weight
    method(views(0), Progress(5, 3, 3))
    method.after_step(Progress(5, 3, 3))
    momentum = cosine(5, 9, 0.996, 1.0)
    torch.testing.assert_close(method.teacher.head.mlp[0].weight, momentum * before + (1 - momentum) * student)
    assert linear(1, 2, 0.04, 0.07) == 0.07
