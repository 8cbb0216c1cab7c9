"""One optimisation step against the papers' pseudo-code: the loss, the optimizer with the moving average, the whole.

The plain side loops over pairs of crops and over parameters, keeps torch's default memory layout and reads the loss
back every step; ours is what `pretrain` runs. Both sides do the same work on the same numbers: before anything is
timed, their losses must agree.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.batch_norm import sound_batch_norm
from pretrain.methods import Progress, build_method
from pretrain.methods.dino import DINO
from pretrain.optim import build_optimizer, ema_update, set_hyperparameters
from pretrain.settings import DEFAULTS
from sslight.core.config import load_config
from sslight.core.devices import channels_last
from tools.plain_methods import PlainLARS, dino_center, dino_targets, pairwise_cross_entropy, plain_ema

PROGRESS = Progress(step=2000, steps_per_epoch=1000, total_epochs=200)
LEARNING_RATE, WEIGHT_DECAY, MOMENTUM = 0.1, 1e-6, 0.996
PARTS_PER_STEP = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pairs",
        type=int,
        default=7,
        help="paired steps per ratio; of their parts, which are short, "
        f"{PARTS_PER_STEP} times as many (default: %(default)s)",
    )
    parser.add_argument("--batch", type=int, default=8, help="images per step (default: %(default)s)")
    parser.add_argument("--size", type=int, default=64, help="pixels of the global crops (default: %(default)s)")
    parser.add_argument("--local-size", type=int, default=48, help="pixels of the 6 local crops (default: %(default)s)")
    parser.add_argument("--outputs", type=int, default=65536, help="outputs of the loss part (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")


def run(args: argparse.Namespace) -> dict[str, float]:
    """Print the table; return reference time / our time as `loss`, `optimizer`, `step_fp32` and `step_bf16`."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print(f"{'':42}{'plain':>10}{'ours':>10}{'ratio':>8}   (medians of pairs, {args.threads} thread(s))")
    parts = args.pairs * PARTS_PER_STEP
    return {
        "loss": row(f"loss, {args.outputs} outputs x 12 views", *loss_pair(args), parts),
        "optimizer": row("LARS + moving average, mobilenet_v2", *optimizer_pair(), parts),
        "step_fp32": row("step, mobilenet_v2, FP32", *step_pair("mobilenet_v2", "none", args), args.pairs),
        "step_bf16": row("step, resnet18, bf16 against FP32", *step_pair("resnet18", "bf16", args), args.pairs),
    }


def row(label: str, plain: Callable[[], object], ours: Callable[[], object], pairs: int) -> float:
    """Time both sides in turn, after one untimed run of each; print and return the median ratio."""
    times = []
    for pair in range(pairs + 1):
        order = (plain, ours) if pair % 2 else (ours, plain)
        taken = {side: seconds(side) for side in order}
        if pair:
            times.append((taken[plain], taken[ours]))
    ratio = statistics.median(reference / own for reference, own in times)
    reference, own = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
    print(f"{label:42}{reference:7.1f} ms{own:7.1f} ms{ratio:7.2f}x", flush=True)
    return ratio


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def agree(plain: float, ours: float, tolerance: float) -> None:
    if not abs(plain - ours) <= tolerance * abs(plain):
        raise RuntimeError(f"the two sides do different work: losses {plain} and {ours}")


def method_config(arch: str, amp: str, args: argparse.Namespace, **settings: object):
    settings = {
        "MODEL.BACKBONE_ARCH": arch,
        "TRAIN.AMP": amp,
        "TRAIN.BATCH_SIZE": args.batch,
        "VIEWS.GLOBAL_SIZE": args.size,
        "VIEWS.LOCAL_SIZE": args.local_size,
        **settings,
    }
    return load_config(DEFAULTS, None, [item for key, value in settings.items() for item in (key, str(value))])


def loss_pair(args: argparse.Namespace) -> tuple[Callable, Callable]:
    """DINO's loss with its gradient and its centre, on given logits of 2 + 10 views."""
    small_network = {"DINO.OUTPUT_DIM": args.outputs, "DINO.HIDDEN_SIZE": 8}
    method: Any = build_method(method_config("resnet18", "none", args, **small_network))
    # cosines, as the head's are: probabilities far below float32's range would slow both sides down
    student = torch.randn(12 * args.batch, args.outputs).mul_(0.15).requires_grad_()
    teacher = torch.randn(2 * args.batch, args.outputs).mul_(0.15)
    center = torch.zeros(1, args.outputs)

    def plain() -> float:
        nonlocal center
        student.grad = None
        targets = dino_targets(list(teacher.chunk(2)), center, 0.04)
        loss = pairwise_cross_entropy(targets, list(student.chunk(12)), 0.1, *method.weights)
        loss.backward()
        center = dino_center(center, list(teacher.chunk(2)), 0.9)
        return loss.item()

    def ours() -> Tensor:
        student.grad = None
        loss = method.loss(student, teacher, views=12, epoch=0)["loss"]
        loss.backward()
        method.update_center()
        return loss

    agree(plain(), ours().item(), 1e-5)
    return plain, ours


def optimizer_pair() -> tuple[Callable, Callable]:
    """LARS on the student and the teacher's moving average, published DINO on MobileNetV2, with given gradients."""
    method: Any = build_method(load_config(DEFAULTS, None, ["MODEL.BACKBONE_ARCH", "mobilenet_v2"]))
    reference = copy.deepcopy(method)  # stays in torch's usual layout
    ours = channels_last(method)
    cfg = load_config(DEFAULTS, None)
    optimizer, plain_optimizer = build_optimizer(cfg, ours), PlainLARS(reference.student)
    for p, q in zip(ours.student.parameters(), reference.student.parameters(), strict=True):
        p.grad = torch.randn_like(p) if p.requires_grad else None
        q.grad = p.grad.clone(memory_format=torch.contiguous_format) if p.requires_grad else None

    def plain_step() -> None:
        plain_optimizer.step(LEARNING_RATE, WEIGHT_DECAY)
        plain_ema(reference.teacher, reference.student, MOMENTUM)

    def our_step() -> None:
        set_hyperparameters(optimizer, LEARNING_RATE, WEIGHT_DECAY)
        optimizer.step()
        ema_update(ours.teacher.parameters(), ours.student.parameters(), MOMENTUM)

    return plain_step, our_step


def step_pair(arch: str, amp: str, args: argparse.Namespace) -> tuple[Callable, Callable]:
    """A whole DINO step of the published head on random images of 2 + 6 views."""
    cfg = method_config(arch, amp, args)
    ours: Any = build_method(cfg)
    plain = PlainDINO(copy.deepcopy(ours))
    channels_last(ours)
    optimizer = build_optimizer(cfg, ours)
    views = [torch.randn(args.batch, 3, size, size) for size in [args.size] * 2 + [args.local_size] * 6]
    last_views = [view.to(memory_format=torch.channels_last) for view in views]

    def our_step() -> Tensor:
        set_hyperparameters(optimizer, LEARNING_RATE, WEIGHT_DECAY)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp == "bf16"), sound_batch_norm(torch.device("cpu")):
            result = ours(last_views, PROGRESS)
        result["loss"].backward()
        ours.after_backward(PROGRESS)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ours.after_step(PROGRESS)
        return result["loss"].detach()

    agree(plain.step(views), our_step().item(), 1e-4 if amp == "none" else 1e-2)
    return lambda: plain.step(views), our_step


class PlainDINO:
    """DINO's algorithm 1 with multi-crop, LARS and a moving average, written as it is read."""

    def __init__(self, method: DINO):
        self.student, self.teacher, self.settings, self.weights = (
            method.student,
            method.teacher,
            method.settings,
            method.weights,
        )
        self.optimizer = PlainLARS(self.student)
        self.center = torch.zeros(1, self.settings.OUTPUT_DIM)

    def step(self, views: list[Tensor]) -> float:
        with torch.no_grad():
            teacher = list(self.forward(self.teacher, [views[:2]]).chunk(2))
        student = list(self.forward(self.student, [views[:2], views[2:]]).chunk(len(views)))
        temperature = torch.linspace(
            self.settings.WARMUP_TEACHER_TEMP, self.settings.TEACHER_TEMP, self.settings.WARMUP_TEACHER_TEMP_EPOCHS
        )[PROGRESS.epoch].item()
        targets = dino_targets(teacher, self.center, temperature)
        loss = pairwise_cross_entropy(targets, student, self.settings.STUDENT_TEMP, *self.weights)
        for parameter in self.student.parameters():
            parameter.grad = None
        loss.backward()
        self.optimizer.step(LEARNING_RATE, WEIGHT_DECAY)
        plain_ema(self.teacher, self.student, MOMENTUM)
        self.center = dino_center(self.center, teacher, self.settings.CENTER_MOMENTUM)
        return loss.item()

    @staticmethod
    def forward(network: Any, groups: list[list[Tensor]]) -> Tensor:
        features = torch.cat([network.backbone(torch.cat(group)) for group in groups])
        bottleneck = nn.functional.normalize(network.head.mlp(features), dim=-1)
        layer = network.head.last_layer
        return bottleneck @ (layer.weight_g * nn.functional.normalize(layer.weight_v, dim=1)).t()
