"""What holds for every method: low precision, state dicts, many resolutions, and refusing what cannot work."""

import copy

import pytest
import torch

from pretrain.methods import METHODS, Progress, build_method
from pretrain.methods.base import check_view_sizes
from pretrain.methods.multicrop import multicrop_cross_entropy, spread
from pretrain.optim import OPTIMIZERS, build_optimizer, set_hyperparameters
from sslight.core.errors import InputError
from tests.pretrain.golden import relative_error
from tests.pretrain.tiny import config, views
from tools.plain_methods import pairwise_cross_entropy

needs_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="the trap is of the CPU's kernels")


def steps(method, optimizer, first, last, dtype=None):
    losses = []
    for step in range(first, last):
        progress = Progress(step, steps_per_epoch=3, total_epochs=3)
        set_hyperparameters(optimizer, 0.3 / (step + 1), 0.01, constant_lr=0.3)
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            result = method(views(step), progress)
        result["loss"].backward()
        method.after_backward(progress)
        optimizer.step()
        method.after_step(progress)
        losses.append(result["loss"].item())
    return losses, result


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", METHODS)
def test_resuming_is_exact(name, optimizer):
    """Centre, queue, pointer and fill lie in the state dict: 9 steps equal 5, a reload into a fresh method, and 4."""
    cfg = config(name, SOLVER__OPTIMIZER=optimizer)
    torch.manual_seed(0)
    whole = build_method(cfg)
    part = copy.deepcopy(whole)
    losses, _ = steps(whole, build_optimizer(cfg, whole, whole.constant_rate()), 0, 9)
    optimizer = build_optimizer(cfg, part, part.constant_rate())
    steps(part, optimizer, 0, 5)
    fresh = build_method(cfg)
    fresh.load_state_dict(copy.deepcopy(part.state_dict()), strict=True)
    fresh_optimizer = build_optimizer(cfg, fresh, fresh.constant_rate())
    fresh_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert steps(fresh, fresh_optimizer, 5, 9)[0] == losses[5:]
    assert all(torch.equal(value, fresh.state_dict()[key]) for key, value in whole.state_dict().items())


@pytest.mark.parametrize("name", METHODS)
def test_results_are_detached_scalars_and_the_loss_is_float32_under_autocast(name):
    torch.manual_seed(0)
    method = build_method(config(name))
    full, _ = steps(copy.deepcopy(method), build_optimizer(config(name), torch.nn.Linear(1, 1)), 0, 1)
    low, result = steps(method, build_optimizer(config(name), method), 0, 1, torch.bfloat16)
    assert result["loss"].dtype == torch.float32
    assert low[0] == pytest.approx(full[0], rel=0.05, abs=0.01)  # abs: a mean cosine may lie near 0
    assert result["feature"].shape == (4, method.backbone.feature_dim) and not result["feature"].requires_grad
    assert all(
        value.ndim == 0 and not value.requires_grad for key, value in result.items() if key not in ("loss", "feature")
    )
    assert 0 < result["feature_std"] <= 1


@pytest.mark.parametrize("name", METHODS)
def test_feature_is_of_the_first_view_that_the_trained_network_sees(name):
    """Global view 1; MoCo's query: global view 2."""
    method = build_method(config(name))
    batch = views(0)
    result = method(batch, Progress(0, 3, 3))
    torch.testing.assert_close(result["feature"], method.backbone(batch[int(name == "moco")]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_only_what_is_to_be_trained_gets_a_gradient_and_all_of_it_does(name):
    method = build_method(config(name))
    method(views(0), Progress(0, 3, 3))["loss"].backward()
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in method.parameters())
    trained = next(iter(method.networks.values())).split(".")[0]
    assert {key.split(".")[0] for key, parameter in method.named_parameters() if parameter.requires_grad} == {trained}


@pytest.mark.parametrize("name", METHODS)
def test_networks_name_the_backbones(name):
    method = build_method(config(name))
    for prefix in method.networks.values():
        backbone = method.get_submodule(prefix.rstrip("."))
        assert backbone.arch == "test_vit"
        assert {prefix + key for key in backbone.state_dict()} <= method.state_dict().keys()


def test_loss_equals_the_loop_over_pairs():
    """Value and gradient, with two to ten views; equal probabilities and one-hot targets included."""
    torch.manual_seed(0)
    for count in (2, 3, 8, 12):
        logits = (3 * torch.randn(count, 18, 40)).requires_grad_()
        targets = torch.stack([torch.randn(18, 40).softmax(-1), torch.eye(40)[:18]])
        slow = logits.detach().clone().requires_grad_()
        loss = multicrop_cross_entropy(targets, logits, 0.1, 0.4, 0.6)
        expected = pairwise_cross_entropy(list(targets), list(slow), 0.1, 0.4, 0.6)
        loss.backward()
        expected.backward()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        assert relative_error(logits.grad, slow.grad) < 1e-5


def test_spread_tells_collapse_from_health():
    healthy = torch.nn.functional.normalize(torch.randn(2000, 64), dim=1)
    assert spread(healthy).item() == pytest.approx(1.0, abs=0.02)
    assert spread(healthy[:1].expand(50, -1)).item() == pytest.approx(0.0, abs=1e-6)


def test_an_unknown_method_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="did you mean 'moco'"):
        build_method(config("moco2"))


@pytest.mark.parametrize("arch", ["swin_tiny_patch4_window7_224", "levit_128s"])
def test_a_backbone_for_one_image_size_is_refused_before_training(arch):
    with pytest.raises(InputError, match=f"'{arch}' does not take views of 128 px"):
        build_method(config("dino", MODEL__BACKBONE_ARCH=arch))


@needs_cpu
def test_bf16_on_a_cpu_refuses_strides_over_one_pixel():
    """ResNet18 strides over a 1x1 map at 16 px, not at 32; a ViT never does."""
    small = dict(MODEL__BACKBONE_ARCH="resnet18", TRAIN__AMP="bf16", VIEWS__GLOBAL_SIZE=32, VIEWS__LOCAL_SIZE=16)
    with pytest.raises(InputError, match="layer4.0.conv1.*16 px"):
        build_method(config("swav", **small))
    build_method(config("swav", **{**small, "VIEWS__LOCAL_NUMBER": 0}))
    build_method(config("swav", **{**small, "TRAIN__AMP": "none"}))
    build_method(config("swav", TRAIN__AMP="bf16", VIEWS__GLOBAL_SIZE=32, VIEWS__LOCAL_SIZE=16))


@needs_cpu
def test_what_the_bf16_check_lets_through_has_right_gradients():
    """Every strided convolution of ResNet18 at 32 px: bf16 weight gradients within 5% of float32's."""
    torch.manual_seed(0)
    method = build_method(config("swav", MODEL__BACKBONE_ARCH="resnet18"))
    check_view_sizes(method.backbone, {32}, bf16_on_cpu=True)
    inputs = {}
    convs = {
        name: module
        for name, module in method.backbone.named_modules()
        if isinstance(module, torch.nn.Conv2d) and module.stride[0] > 1
    }
    hooks = [
        module.register_forward_hook(lambda m, x, y, name=name: inputs.__setitem__(name, (x[0], y.shape)))
        for name, module in convs.items()
    ]
    method.backbone(torch.randn(4, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    for name, conv in convs.items():
        x, shape = inputs[name][0].detach(), inputs[name][1]
        upstream, gradients = torch.randn(shape), []
        for enabled in (False, True):
            conv.weight.grad = None
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                y = conv(x.to(memory_format=torch.channels_last))
            (y.float() * upstream).sum().backward()
            gradients.append(conv.weight.grad)
        assert relative_error(gradients[1], gradients[0]) < 0.05, name
