"""Whole steps of pre-training against the published program's, in float64: losses, schedules and every tensor."""

from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pretrain import train
from pretrain.backbones import build_backbone
from pretrain.methods import build_method
from pretrain.optim import build_optimizer
from pretrain.settings import DEFAULTS
from pretrain.state import Objective, State
from sslight.core.config import load_config
from tests.pretrain import formula
from tests.pretrain.golden import DATA

CLOSE = 1e-9  # float64 rounding and the order of its sums; one wrong decimal of a setting is 1e-4 or more


@cache
def golden() -> dict[str, np.ndarray]:
    with np.load(DATA / "trajectories.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize("case", formula.CASES)
def test_steps_follow_the_published_program(case, monkeypatch):
    """Three epochs of two steps: warm-up and cosine, frozen layers, temperatures, momentum, queues, clipping, probe.

    The steps are those of `python -m pretrain`; only its casts to float32 are lifted.
    """
    settings = formula.CASES[case]
    cfg = load_config(DEFAULTS, None, [text for item in settings.items() for text in map(str, item)])
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(train, "to_device", lambda batch, cfg, device: formula.views(settings, batch.step))
    objective = Objective(build_method(cfg), formula.CLASSES).double()
    method, steps = objective.method, cfg.SOLVER.TOTAL_EPOCHS * formula.STEPS_PER_EPOCH
    networks = {prefix.split(".")[0]: method.get_submodule(prefix.split(".")[0]) for prefix in method.networks.values()}
    formula.fill(objective, list(networks.values()), method.queue if cfg.METHOD == "moco" else None)
    state = State(objective, build_optimizer(cfg, objective), torch.amp.GradScaler("cpu", enabled=False))
    source = SimpleNamespace(labels=torch.cat([formula.labels(step) for step in range(steps)]).numpy())
    batches, rows = map(formula.batch, range(steps)), []
    for _ in range(steps):
        result = train.one_step(cfg, state, objective, batches, source, formula.STEPS_PER_EPOCH, torch.device("cpu"))
        state.step += 1
        group = state.optimizer.param_groups[0]
        rows.append(
            [
                float(result["loss"] - result["probe_loss"]),
                float(result["probe_loss"]),
                group["lr"],
                group["weight_decay"],
            ]
        )
    np.testing.assert_allclose(rows, golden()[f"{case}/steps"], rtol=CLOSE)
    names = golden()[f"{case}/names"].tolist()
    state_dict = method.state_dict() | {f"classifier.{k}": v for k, v in objective.classifier.state_dict().items()}
    for network in networks:  # every tensor of every network is compared, but batch norm's counters
        assert {name for name in names if name.startswith(f"{network}.")} == {
            name for name in state_dict if name.startswith(f"{network}.") and "num_batches_tracked" not in name
        }
    assert set(names) <= state_dict.keys()
    for name, (norm, check) in zip(names, golden()[f"{case}/final"], strict=True):
        ours = formula.summary(name, state_dict[name])
        assert ours == pytest.approx((norm, check), rel=CLOSE, abs=CLOSE * norm), name


@pytest.mark.parametrize("size", [96, 128, 224, 384])
def test_positions_are_resized_as_published(size):
    backbone = build_backbone("vit_tiny", pos_resize="published").double()
    with torch.no_grad():
        backbone.pos_embed.copy_(formula.initial("backbone.pos_embed", (1, 197, 192)))
        backbone.cls_token.zero_()
        positions = backbone._pos_embed(torch.zeros(1, size // 16, size // 16, 192, dtype=torch.float64))
    expected = golden()[f"positions/{size}"]
    assert formula.summary(f"positions {size}", positions) == pytest.approx(expected, rel=1e-12)
