"""Weights and views of a formula: the same bits on every machine, in this project and in the published program."""

import zlib
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

STEPS_PER_EPOCH, BATCH, CLASSES = 2, 4, 5
COMMON = {
    "TRAIN.BATCH_SIZE": BATCH,
    "TRAIN.JOINT_LINEAR_PROBE": True,
    "TRAIN.CHANNELS_LAST": False,
    "SOLVER.TOTAL_EPOCHS": 3,
    "SOLVER.WARMUP_EPOCHS": 1,
    "SOLVER.START_WARMUP": 0.002,
    "SOLVER.WEIGHT_DECAY": 0.01,
    "SOLVER.WEIGHT_DECAY_END": 0.1,
    "SOLVER.MIN_LR": 0.001,
    "VIEWS.LOCAL_NUMBER": 2,
    "LOSS.WEIGHTS": [0.4, 0.6],
    "DINO.HIDDEN_SIZE": 32,
    "DINO.BOTTLENECK_DIM": 16,
    "DINO.OUTPUT_DIM": 24,
    "DINO.MOMENTUM": 0.9,
    "DINO.WARMUP_TEACHER_TEMP_EPOCHS": 2,
    "DINO.FREEZE_LAST_LAYER_EPOCHS": 1,
    "SWAV.HIDDEN_SIZE": 32,
    "SWAV.OUTPUT_DIM": 16,
    "SWAV.PROTOTYPES": 12,
    "SWAV.QUEUE_LENGTH": 8,
    "SWAV.EPOCH_QUEUE_STARTS": 1,
    "MOCO.HIDDEN_SIZE": 32,
    "MOCO.OUTPUT_DIM": 16,
    "MOCO.QUEUE_LENGTH": 16,
    "MOCO.MOMENTUM": 0.9,
}
CNN = {"SOLVER.OPTIMIZER": "LARS", "SOLVER.BASE_LR": 6.4, "VIEWS.GLOBAL_SIZE": 64, "VIEWS.LOCAL_SIZE": 48}
CASES = {  # rates at which rounding does not grow from step to step beyond the tolerance
    "dino_cnn": {
        **COMMON,
        **CNN,
        "METHOD": "dino",
        "MODEL.BACKBONE_ARCH": "mobilenet_v2",
        "DINO.HEAD_BN": True,
        "DINO.NORM_LAST_LAYER": True,
        "SOLVER.CLIP_GRAD": 0.05,
    },
    "dino_vit": {
        **COMMON,
        "METHOD": "dino",
        "MODEL.BACKBONE_ARCH": "vit_tiny",
        "DINO.HEAD_BN": False,
        "DINO.NORM_LAST_LAYER": False,
        "VIEWS.GLOBAL_SIZE": 64,
        "VIEWS.LOCAL_SIZE": 48,
        "SOLVER.OPTIMIZER": "AdamW",
        "SOLVER.BASE_LR": 0.064,
        "SOLVER.START_WARMUP": 0.0,
        "SOLVER.MIN_LR": 0.0001,
        "SOLVER.CLIP_GRAD": 0.1,
    },
    "swav": {
        **COMMON,
        **CNN,
        "METHOD": "swav",
        "MODEL.BACKBONE_ARCH": "mobilenet_v2",
        "SOLVER.BASE_LR": 0.2,
        "SOLVER.START_WARMUP": 0.001,
        "SOLVER.MIN_LR": 0.0002,
    },
    "moco": {**COMMON, **CNN, "METHOD": "moco", "MODEL.BACKBONE_ARCH": "mobilenet_v2", "SOLVER.CLIP_GRAD": 0.05},
}


def uniform(name: str, shape: tuple[int, ...]) -> Tensor:
    """Numbers in [-1, 1), float64: SplitMix64 of (CRC-32 of the name, index)."""
    with np.errstate(over="ignore"):
        x = (np.uint64(zlib.crc32(name.encode())) << np.uint64(32)) + np.arange(int(np.prod(shape)), dtype=np.uint64)
        x = (x + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    return torch.from_numpy((x >> np.uint64(11)).astype(np.float64) / 2.0**52 - 1).reshape(shape)


def initial(name: str, shape: tuple[int, ...]) -> Tensor:
    """The start of a trained network's parameter: norms about 1, biases small, weights by their fan-in."""
    u = uniform(name, shape)
    if name.endswith("weight_g"):
        return torch.ones(shape, dtype=torch.float64)
    if len(shape) == 1:
        return 0.1 * u + name.endswith("weight")
    if name.endswith(("cls_token", "pos_embed")):
        return 0.05 * u
    return u * (6 / np.prod(shape[1:])) ** 0.5


@torch.no_grad()
def fill(model: nn.Module, networks: list[nn.Module], queue: Tensor | None, our_name=lambda name: name) -> None:
    """Start `networks` (the trained one first) alike, the classifier of `model` too, and MoCo's queue [D, L]."""
    for network in networks:
        for name, parameter in network.named_parameters():
            parameter.copy_(initial(our_name(name), tuple(parameter.shape)))
    for name, parameter in model.classifier.named_parameters():
        parameter.copy_(initial(f"classifier.{name}", tuple(parameter.shape)))
    if queue is not None:
        queue.copy_(nn.functional.normalize(uniform("queue", tuple(queue.shape)), dim=0))


def views(settings: dict, step: int) -> list[Tensor]:
    """Views of a step, [4, 3, size, size] each."""
    sizes = [settings["VIEWS.GLOBAL_SIZE"]] * 2 + [settings["VIEWS.LOCAL_SIZE"]] * settings["VIEWS.LOCAL_NUMBER"]
    return [1.5 * uniform(f"step {step} view {v}", (BATCH, 3, size, size)) for v, size in enumerate(sizes)]


def labels(step: int) -> Tensor:
    return (3 * torch.arange(BATCH) + step) % CLASSES


def summary(name: str, tensor: Tensor) -> list[float]:
    """Two numbers that a change of any element changes: the norm, and a sum with the formula's weights."""
    flat = tensor.detach().double().flatten()
    return [float(flat.norm()), float(flat @ uniform(f"check {name}", (len(flat),)))]


def batch(step: int) -> SimpleNamespace:
    return SimpleNamespace(step=step, indices=torch.arange(BATCH) + BATCH * step)
