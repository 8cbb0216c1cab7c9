"""Small configurations of the methods and plain training runs of them."""

import torch

from pretrain.settings import DEFAULTS
from sslight.core.config import load_config

TINY = {
    "MODEL.BACKBONE_ARCH": "test_vit",
    "TRAIN.BATCH_SIZE": 4,
    "SOLVER.TOTAL_EPOCHS": 3,
    "SOLVER.WARMUP_EPOCHS": 1,
    "VIEWS.LOCAL_NUMBER": 3,
    "LOSS.WEIGHTS": [0.4, 0.6],
    "DINO.HIDDEN_SIZE": 32,
    "DINO.BOTTLENECK_DIM": 16,
    "DINO.OUTPUT_DIM": 48,
    "DINO.HEAD_BN": False,
    "DINO.WARMUP_TEACHER_TEMP_EPOCHS": 2,
    "SWAV.HIDDEN_SIZE": 32,
    "SWAV.OUTPUT_DIM": 16,
    "SWAV.PROTOTYPES": 24,
    "SWAV.HEAD_BN": False,
    "SWAV.QUEUE_LENGTH": 9,
    "SWAV.EPOCH_QUEUE_STARTS": 1,
    "MOCO.HIDDEN_SIZE": 32,
    "MOCO.OUTPUT_DIM": 16,
    "MOCO.QUEUE_LENGTH": 20,
    "MOCO.MOMENTUM": 0.9,
    "SIMSIAM.HIDDEN_SIZE": 32,
    "SIMSIAM.OUTPUT_DIM": 16,
    "SIMSIAM.BOTTLENECK_DIM": 8,
}


def config(method: str, **changes):
    """A tiny configuration; `changes` spell the dots of keys as double underscores."""
    settings = {**TINY, "METHOD": method, **{key.replace("__", "."): value for key, value in changes.items()}}
    return load_config(DEFAULTS, None, [item for key, value in settings.items() for item in (key, str(value))])


def views(step: int, batch: int = 4, local: int = 3, sizes: tuple[int, int] = (48, 32)) -> list[torch.Tensor]:
    """Random crops of step `step`: two global ones, then the local ones."""
    draw = torch.Generator().manual_seed(step)
    return [torch.randn(batch, 3, sizes[v > 1], sizes[v > 1], generator=draw) for v in range(2 + local)]
