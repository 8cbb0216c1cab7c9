"""The smallest real runs of every kind: commands as argument lists, a few seconds each after Python has started."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES, TRAIN, VAL = 4, 24, 8  # images a class


def write_images(folder: Path) -> Path:
    """`train/` (96 images) and `val/` (32) of 4 classes of coloured noise, 40 px JPEGs."""
    rng = np.random.default_rng(0)
    for split, count in (("train", TRAIN), ("val", VAL)):
        for label in range(CLASSES):
            target = folder / split / f"class {label}"
            target.mkdir(parents=True)
            for i in range(count):
                pixels = rng.normal(60 + 40 * label, 50, (40, 40, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(target / f"{i:03d}.jpg")
    return folder


def pretrain(images: Path, out: Path, **settings: object) -> list[object]:
    """SwAV with its queue, the joint probe and k-NN after every epoch: 3 epochs of 6 steps."""
    return [
        "-m",
        "pretrain",
        *pairs(
            {
                "METHOD": "swav",
                "MODEL.BACKBONE_ARCH": "test_vit",
                "DATA.PATH_TO_DATA_DIR": images,
                "OUTPUT_DIR": out,
                "VIEWS.GLOBAL_SIZE": 32,
                "VIEWS.LOCAL_SIZE": 16,
                "VIEWS.LOCAL_NUMBER": 2,
                "SWAV.PROTOTYPES": 16,
                "SWAV.QUEUE_LENGTH": 48,
                "SWAV.EPOCH_QUEUE_STARTS": 0,
                "SWAV.HIDDEN_SIZE": 64,
                "SWAV.OUTPUT_DIM": 16,
                "SOLVER.TOTAL_EPOCHS": 3,
                "SOLVER.WARMUP_EPOCHS": 1,
                "TRAIN.BATCH_SIZE": 16,
                "TRAIN.LOG_PERIOD": 1,
                "TRAIN.JOINT_LINEAR_PROBE": True,
                "DATA.WORKERS": 1,
                **settings,
            }
        ),
    ]


def linear(images: Path, out: Path, **settings: object) -> list[object]:
    """The published linear evaluation of a random network: 3 epochs of 6 steps, 2 seeds."""
    return [
        "-m",
        "sslight",
        "bench",
        "linear",
        "--cfg",
        "configs/classification/linear_cnn.yaml",
        *pairs({**common(images, out), "SEEDS": "[0,1]", "SOLVER.TOTAL_EPOCHS": 3, "TRAIN.BATCH_SIZE": 16, **settings}),
    ]


def semisup(images: Path, out: Path, **settings: object) -> list[object]:
    """Fine-tuning on half of the labels: 3 epochs of 6 steps, 2 seeds."""
    return [
        "-m",
        "sslight",
        "bench",
        "semisup",
        "--cfg",
        "configs/classification/semi_10percent.yaml",
        *pairs(
            {
                **common(images, out),
                "SEEDS": "[0,1]",
                "SOLVER.TOTAL_EPOCHS": 3,
                "TRAIN.BATCH_SIZE": 8,
                "LABELS.FRACTION": 0.5,
                "HEAD.HIDDEN_SIZE": 16,
                **settings,
            }
        ),
    ]


def knn(images: Path, out: Path, cache: Path) -> list[object]:
    """k-NN over a feature cache."""
    return [
        "-m",
        "sslight",
        "bench",
        "knn",
        "--cfg",
        "configs/classification/knn.yaml",
        *pairs({**common(images, out), "FEATURES.CACHE_DIR": cache}),
    ]


def common(images: Path, out: Path) -> dict[str, object]:
    return {
        "WEIGHTS": "random",
        "MODEL.BACKBONE_ARCH": "test_vit",
        "DATA.PATH_TO_DATA_DIR": images,
        "OUTPUT_DIR": out,
        "DATA.RESIZE": 36,
        "DATA.SIZE": 32,
        "DATA.WORKERS": 1,
        "FEATURES.BATCH_SIZE": 16,
        "FEATURES.AMP": "none",
    }


def pairs(settings: dict[str, object]) -> list[object]:
    return [word for pair in settings.items() for word in pair]
