"""What linear evaluation costs: a sweep of 13 heads against one head, cached features against an epoch of the published
protocol, and feature extraction against a plain loop. Real JPEGs, written for the occasion.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.classification import linear
from benchmarks.classification.features import Features, choices_for, extract, widths
from benchmarks.classification.heads import LinearProbes
from benchmarks.classification.labelled import Labelled, open_splits
from benchmarks.classification.logistic import Problem, Standard
from benchmarks.classification.training import build_optimizer, one_step
from benchmarks.classification.weights import freeze, load_subject
from pretrain.data.loading import image_batches, random_resized_crop
from sslight.core.config import load_config
from sslight.core.devices import channels_last

RATES = [1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--arch", default="resnet18", help="backbone (default: %(default)s)")
    parser.add_argument("--size", type=int, default=224, help="pixels (default: %(default)s)")
    parser.add_argument("--classes", type=int, default=1000, help="classes of the heads (default: %(default)s)")
    parser.add_argument("--images", type=int, default=64, help="images (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="images per step (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=5, help="paired runs per ratio (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads (%(default)s)")


def run(args: argparse.Namespace) -> dict[str, float]:
    """Print the table; return the two sweeps' times over a single head's and, as plain time / ours, the other two."""
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), args)
        cfg = load_config(
            linear.EVALUATION.settings,
            None,
            [
                "WEIGHTS",
                "random",
                "MODEL.BACKBONE_ARCH",
                args.arch,
                "OUTPUT_DIR",
                folder,
                "DATA.PATH_TO_DATA_DIR",
                folder,
                "DATA.WORKERS",
                "0",
                "DATA.SIZE",
                str(args.size),
                "DATA.RESIZE",
                str(args.size * 256 // 224),
                "FEATURES.BATCH_SIZE",
                str(args.batch),
                "FEATURES.AMP",
                "bf16",
                "SOLVER.BASE_LR",
                "0.001",
            ],
        )
        train, _ = open_splits(cfg)
        many, one = steps(cfg, args, RATES), steps(cfg, args, RATES[:1])
        most = steps(cfg, args, RATES, ["auto"])
        print(f"{args.arch}, {args.size} px, {args.classes} classes, {args.threads} thread(s), median of {args.pairs}")
        sweep = ratio("13 heads / one head (training steps)", many, one, args.pairs)
        full = ratio("13 heads on every feature choice / one head", most, one, args.pairs)
        cached = ratio(
            "an epoch on crops / cached features and 50 evaluations",
            lambda: epoch(cfg, args, train),
            lambda: cached_pass(cfg, args, train),
            args.pairs,
        )
        features = ratio(
            "extraction: plain FP32 loop / bf16, channels_last",
            lambda: plain_extraction(cfg, train, args),
            lambda: extraction(cfg, train),
            args.pairs,
        )
    return {
        "sweep_over_single": round(sweep, 3),
        "full_sweep_over_single": round(full, 3),
        "epoch_over_cached": round(cached, 3),
        "plain_over_extraction": round(features, 3),
    }


def write_images(root: Path, args: argparse.Namespace) -> None:
    """500 x 375 JPEGs of smooth noise, like a photo in size and in the work of decoding it."""
    rng = np.random.default_rng(0)
    for split, count in (("train", args.images), ("val", 4)):
        for i in range(count):
            folder = root / split / f"class{i % 4}"
            folder.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(rng.integers(0, 256, (38, 50, 3), dtype=np.uint8))
            coarse.resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{i}.jpg", quality=90)


def steps(
    cfg, args: argparse.Namespace, rates: list[float], choices: Sequence[str] = ("pooled",)
) -> Callable[[], None]:
    """Two optimizer steps of probes at the given rates on one batch."""
    subject = load_subject(cfg)
    features = Features(freeze(subject.backbone), choices_for(subject.backbone, choices))
    model = LinearProbes(features, widths(features, args.size), args.classes, rates, 0, amp=True).train()
    channels_last(model)
    optimizer = build_optimizer(cfg, model.groups(cfg.SOLVER.BASE_LR))
    images = torch.randn(args.batch, 3, args.size, args.size).to(memory_format=torch.channels_last)
    labels = torch.arange(args.batch) % args.classes

    def call() -> None:
        for _ in range(2):
            one_step(cfg, model, optimizer, images, labels, torch.device("cpu"))

    return call


def epoch(cfg, args: argparse.Namespace, train: Labelled) -> None:
    """One epoch of the published protocol: crops, frozen forward in FP32, one head."""
    from benchmarks.classification.features import prepare

    subject = load_subject(cfg)
    features = Features(freeze(subject.backbone), ["pooled"])
    model = LinearProbes(features, {"pooled": subject.backbone.feature_dim}, args.classes, [0.001], 0).train()
    channels_last(model)
    optimizer = build_optimizer(cfg, model.groups(0.001))
    for images, used in image_batches(
        train.source, np.arange(len(train)), random_resized_crop(args.size, 0, 0), batch_size=args.batch, workers=0
    ):
        ready = prepare(images, subject.preprocess, torch.device("cpu"))
        one_step(cfg, model, optimizer, ready, torch.as_tensor(train.labels[used.numpy()]), torch.device("cpu"))


def extraction(cfg, train: Labelled) -> np.ndarray:
    """Features as the cache extracts them."""
    subject = load_subject(cfg)
    freeze(subject.backbone)
    return np.concatenate(list(extract(cfg, subject, train, np.arange(len(train)), "pooled", torch.device("cpu"))))


def cached_pass(cfg, args: argparse.Namespace, train: Labelled) -> None:
    """Extraction once, and 50 evaluations of the logistic regression's loss and gradient."""
    rows = extraction(cfg, train)
    problem = Problem(rows, train.labels, args.classes, Standard.of(rows))
    weight = torch.zeros(args.classes, rows.shape[1] + 1)
    for _ in range(50):
        problem.value(weight, 0.01)


@torch.no_grad()
def plain_extraction(cfg, train: Labelled, args: argparse.Namespace) -> np.ndarray:
    """The usual loop: torchvision's transforms, FP32, torch's default memory layout."""
    from torchvision import transforms

    model = freeze(load_subject(cfg).backbone)
    picture = transforms.Compose(
        [
            transforms.Resize(cfg.DATA.RESIZE, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(cfg.DATA.SIZE),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    features = []
    for start in range(0, len(train), args.batch):
        files = [
            Path(train.source.where) / train.source.name(i) for i in range(start, min(start + args.batch, len(train)))
        ]
        features.append(model(torch.stack([picture(Image.open(file).convert("RGB")) for file in files])).numpy())
    return np.concatenate(features)


def ratio(label: str, first: Callable[[], object], second: Callable[[], object], pairs: int) -> float:
    """Median of first's time over second's, run in turn, after one untimed run of each."""
    times = []
    for pair in range(pairs + 1):
        taken = {}
        for side in (first, second) if pair % 2 else (second, first):
            started = time.perf_counter()
            side()
            taken[side] = time.perf_counter() - started
        if pair:
            times.append((taken[first], taken[second]))
    middle = statistics.median(a / b for a, b in times)
    a, b = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
    print(f"  {label:58}{a:9.1f} ms{b:9.1f} ms{middle:7.2f}x", flush=True)
    return middle
