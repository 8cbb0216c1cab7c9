"""SimSiam against the paper's algorithm written out, in float64; what keeps it from collapsing; its constant rate."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain import train
from pretrain.methods import build_method
from pretrain.optim import build_optimizer
from pretrain.state import Objective, State
from tests.pretrain import tiny
from tests.pretrain.tiny import config
from tools import plain_methods as plain

CLOSE = 1e-9  # float64 rounding over the steps
BACKBONES = ("test_vit", "resnet18")


@pytest.fixture
def float64(monkeypatch):
    """Lifts the program's casts to float32."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)


def simsiam(arch: str = "test_vit", **changes):
    cfg = config("simsiam", MODEL__BACKBONE_ARCH=arch, SOLVER__OPTIMIZER="SGD", SOLVER__BASE_LR=3.2, **changes)
    torch.manual_seed(0)
    return cfg, build_method(cfg).double()


def doubles(step: int, local: int) -> list[Tensor]:
    return [view.double() for view in tiny.views(step, local=local)]


class PlainSimSiam(nn.Module):
    """Algorithm 1 with layers of its own: f is `backbone` and the projector's, h the predictor's."""

    def __init__(self, method):
        super().__init__()
        state = {key.removeprefix("network."): value.clone() for key, value in method.state_dict().items()}
        self.backbone = copy.deepcopy(method.network.backbone)
        self.projector = nn.Sequential(
            nn.Linear(self.backbone.feature_dim, 32),
            nn.BatchNorm1d(32),
            nn.ReLU(),
            nn.Linear(32, 32),
            nn.BatchNorm1d(32),
            nn.ReLU(),
            nn.Linear(32, 16),
            nn.BatchNorm1d(16, affine=False),
        )
        self.predictor = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 16))
        self.double().load_state_dict({key.replace("head.", ""): value for key, value in state.items()}, strict=True)

    def loss(self, views: list[Tensor], weights: list[float]) -> Tensor:
        z = [self.projector(self.backbone(view)) for view in views]
        p = [self.predictor(projection) for projection in z]
        terms: dict[bool, list[Tensor]] = {True: [], False: []}  # by whether the predicting view is global
        for v, prediction in enumerate(p):
            for target in z[:2]:
                if target is not z[v]:
                    terms[v < 2].append(-F.cosine_similarity(prediction, target.detach(), dim=1).mean())
        return plain.weighted(terms[True], terms[False], *weights)


@pytest.mark.parametrize("arch", BACKBONES)
@pytest.mark.parametrize(("local", "weights"), [(0, [1.0, 0.0]), (3, [0.4, 0.6])])
def test_steps_follow_the_paper(arch, local, weights, float64, monkeypatch):
    """Four steps of the training loop, cosine and constant rate included, against torch's SGD on the plain version."""
    cfg, method = simsiam(
        arch, VIEWS__LOCAL_NUMBER=local, LOSS__WEIGHTS=weights, SOLVER__WARMUP_EPOCHS=0, SOLVER__TOTAL_EPOCHS=2
    )
    slow = PlainSimSiam(method)
    decayed = [*slow.backbone.parameters(), *slow.projector.parameters()]
    sgd = torch.optim.SGD(
        [{"params": decayed}, {"params": slow.predictor.parameters()}], lr=0.05, momentum=0.9, weight_decay=1e-6
    )
    state = State(
        Objective(method), build_optimizer(cfg, method, method.constant_rate()), torch.amp.GradScaler(enabled=False)
    )
    monkeypatch.setattr(train, "to_device", lambda batch, cfg, device: batch)
    batches = iter([doubles(step, local) for step in range(4)])
    rates = plain.cosine_table(0.05, cfg.SOLVER.MIN_LR, 4)  # base 3.2 per 256 images, batch 4
    for step, rate in enumerate(rates):
        result = train.one_step(cfg, state, state.objective, batches, None, 2, torch.device("cpu"))
        state.step += 1
        sgd.param_groups[0]["lr"] = rate
        sgd.zero_grad()
        loss = slow.loss(doubles(step, local), weights)
        loss.backward()
        sgd.step()
        assert result["loss"].item() == pytest.approx(loss.item(), rel=CLOSE)
    constant = [group["lr"] for group in state.optimizer.param_groups if group.get("constant_rate")]
    assert constant == pytest.approx([0.05] * len(constant), rel=1e-12)
    for name, value in slow.state_dict().items():
        ours = method.network.state_dict()[name if name.startswith("backbone.") else f"head.{name}"]
        # atol: biases that batch norm takes away again stay at rounding errors
        torch.testing.assert_close(ours, value, rtol=CLOSE, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")


def test_no_gradient_flows_through_the_targets(float64):
    _, method = simsiam()
    predictions, projections = torch.randn(2, 4, 16), torch.randn(2, 4, 16)
    for tensor in (predictions, projections):
        tensor.requires_grad_()
    method.loss(predictions, projections).backward()
    assert projections.grad is None and predictions.grad.abs().sum() > 0


def test_equal_directions_are_the_minimum_and_only_the_other_view_counts():
    cfg, method = simsiam(VIEWS__LOCAL_NUMBER=0, LOSS__WEIGHTS=[1.0, 0.0])
    z = torch.randn(2, 4, 16)
    assert method.loss(3 * z.flip(0), z).item() == pytest.approx(-1, abs=1e-6)
    orthogonal = torch.zeros(2, 4, 16)
    orthogonal[0, :, 0] = orthogonal[1, :, 1] = 1
    assert method.loss(orthogonal, orthogonal).item() == 0  # each predicts itself, which does not count


def test_the_predictor_alone_keeps_its_rate():
    cfg, method = simsiam()
    optimizer = build_optimizer(cfg, method, method.constant_rate())
    names = {id(parameter): name for name, parameter in method.named_parameters()}
    kept = {names[id(p)] for group in optimizer.param_groups if group.get("constant_rate") for p in group["params"]}
    assert kept == {name for name in names.values() if ".predictor." in name} and len(kept) == 6
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)


def test_initialisation_is_the_papers():
    """Linear layers as torch's, uniform within 1 / sqrt(fan in); the last norm of every residual block at 0."""
    _, method = simsiam("resnet18", SIMSIAM__HIDDEN_SIZE=512)
    layer = method.network.head.projector[3]
    assert 0.99 < layer.weight.abs().max().item() * 512**0.5 <= 1
    assert not any(
        block.bn2.weight.any() for stage in range(1, 5) for block in getattr(method.backbone, f"layer{stage}")
    )
