"""What `sslight bench coco` can be told: its keys, defaults and command line. Needs no torch and no framework."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from benchmarks.coco_recipes import FRAMEWORKS
from pretrain.errors import Parser

LAUNCHERS = ("none", "torchrun", "slurm")
EPILOG = """
--task det trains Faster R-CNN and gives the published table's box AP, --task seg Mask R-CNN and its mask AP. The
recipe is chosen by framework, task, architecture, neck and schedule (configs/mmdet, configs/detectron2), or named by
--config. Trailing KEY VALUE pairs set keys of benchmarks/coco_options.py or, by their own names, keys of the
framework's config. The same command goes on after an interruption. Many machines: docs/detection.md.
"""

DEFAULTS = {
    "NAME": "",  # what the report calls the network; by default its method
    "SEED": 0,  # of the random parts of the detector, of a random backbone, and of the data's order
    "OUTPUT_DIR": "",
    "DEVICE": "auto",  # auto: a GPU of its own for every process where there are GPUs; cpu
    "LOG_PERIOD": 20,  # iterations
    "DATA": {
        "PATH_TO_DATA_DIR": "",  # annotations/instances_{train,val}2017.json, train2017/, val2017/
        "TRAIN_JSON": "",  # explicit places instead of that layout
        "TRAIN_IMAGES": "",
        "VAL_JSON": "",
        "VAL_IMAGES": "",
        "WORKERS": -1,  # loader processes per process; -1: the recipe's
    },
    "SOLVER": {  # 0 or empty: the recipe's
        "IMS_PER_BATCH": 0,  # over all processes
        "BASE_LR": 0.0,
        "MAX_ITER": 0,
        "STEPS": [],
        "WARMUP_ITERS": -1,
        "CHECKPOINT_PERIOD": 0,  # iterations
    },
    "MODEL": {"OPTIONS": ""},  # build options of the network that a checkpoint does not tell, such as num_heads=12
    "TRAIN": {"AMP": False},
    "EVAL": {
        "BACKEND": "faster",  # faster (faster-coco-eval) or pycocotools
        "BOOTSTRAP": 200,  # samples of the val images for the 95% intervals; 0: none
    },
}

# What `check_numbers` asks of them.
POSITIVE = {"LOG_PERIOD"}
MOST = {"SEED": 2**31, "DATA.WORKERS": 1024, "EVAL.BOOTSTRAP": 100_000}


def at_least(least: int) -> Callable[[str], int]:
    """The type of an option that takes whole numbers from `least` on."""
    def number(text: str) -> int:
        if not (text.isdecimal() and int(text) >= least):
            raise argparse.ArgumentTypeError(f"'{text}' is no whole number of at least {least}")
        return int(text)
    return number


def fraction(text: str) -> float:
    """The type of an option that takes what lies between 0 and 1."""
    try:
        if 0 < (value := float(text)) < 1:
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"'{text}' is not a fraction between 0 and 1")


def parser() -> Parser:
    parser = Parser(
        "sslight bench coco", "Object detection and instance segmentation from a backbone, in mmdet or detectron2.",
        "sslight bench coco --framework mmdet --task seg --weights runs/r18/checkpoints/last.pth \\\n"
        "      DATA.PATH_TO_DATA_DIR $COCO OUTPUT_DIR results/r18/coco",
        "torchrun --nproc_per_node 8 sslight.py bench coco --launcher torchrun --framework detectron2 --task det \\\n"
        "      --weights runs/r18/checkpoints/last.pth DATA.PATH_TO_DATA_DIR $COCO OUTPUT_DIR results/r18/coco_d2",
        epilog=EPILOG)
    parser.add_argument("--framework", choices=FRAMEWORKS, required=True)
    parser.add_argument("--task", choices=("det", "seg"), required=True,
                        help="det: Faster R-CNN, box AP; seg: Mask R-CNN, mask AP")
    parser.add_argument("--weights", required=True,
                        help="a checkpoint that `sslight convert` reads, random, or SUPERVISED (torchvision's ImageNet "
                             "ones; timm's where torchvision has none)")
    parser.add_argument("--schedule", choices=("1x", "2x"), default="1x")
    parser.add_argument("--arch", help="backbone; a checkpoint's own by default")
    parser.add_argument("--set", dest="options", action="append", default=[], metavar="KEY=VALUE",
                        help="a build option that the checkpoint does not tell, e.g. num_heads=12: MODEL.OPTIONS")
    parser.add_argument("--neck", choices=("fpn", "p4p6", "c4", "vitdet"),
                        help="default: fpn for ResNets, the published p4p6 for MobileNetV2, vitdet for ViTs")
    parser.add_argument("--config", help="a recipe of the framework instead of the chosen one")
    parser.add_argument("--num-gpus", type=at_least(1), default=1, metavar="N",
                        help="processes on this machine, one per GPU (without GPUs they share the CPU)")
    parser.add_argument("--launcher", choices=LAUNCHERS, default="none",
                        help="what started this process as one of many, on one or more machines")
    parser.add_argument("--amp", action="store_true", help="automatic mixed precision: TRAIN.AMP True")
    parser.add_argument("--scale-lr", action="store_true", help="scale the learning rate with the batch, linearly")
    parser.add_argument("--proxy", type=fraction, metavar="FRACTION", default=0.0,
                        help="train on this fraction of the images with the schedule shortened to match")
    parser.add_argument("--trials", type=at_least(1), default=1, help="repeat with this many seeds, SEED and up")
    parser.add_argument("--show", type=at_least(0), metavar="N", default=0,
                        help="pictures of predictions beside the truth")
    parser.add_argument("--check", action="store_true", help="only the checks that every run begins with")
    parser.add_overrides(DEFAULTS)
    return parser
