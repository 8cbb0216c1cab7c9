"""The arguments of `sslight pretrain` and `sslight pack`, apart from what they start: `--help` needs no torch."""

from __future__ import annotations

from pathlib import Path

from pretrain.config import DEFAULTS
from pretrain.errors import Parser

FORMATS = ("folder", "h5", "shards")


def pretrain() -> Parser:
    parser = Parser(
        "sslight pretrain", "Pre-train a backbone without labels: images in, run directory out.",
        "sslight pretrain --cfg configs/pretrain/dino_cnn_sslight.yaml MODEL.BACKBONE_ARCH resnet18 \\\n"
        "      TRAIN.ACCUMULATE 8 DATA.PATH_TO_DATA_DIR $DATA OUTPUT_DIR runs/r18",
        "torchrun --nproc_per_node 8 -m pretrain --cfg configs/pretrain/dino_cnn_sslight.yaml \\\n"
        "      TRAIN.JOINT_LINEAR_PROBE True DATA.PATH_TO_DATA_DIR $DATA OUTPUT_DIR runs/mnv2",
        epilog="The same command started again continues the run. Every key and its default: pretrain/config.py.")
    parser.add_argument("--cfg", metavar="FILE", help="YAML configuration, e.g. one of configs/pretrain/")
    parser.add_argument("--dry-run", action="store_true",
                        help="build everything, take one batch, print the resolved configuration, stop")
    parser.add_argument("--show-views", metavar="PNG", help="write a picture of one batch of views, and stop")
    parser.add_overrides(DEFAULTS)
    return parser


def pack() -> Parser:
    parser = Parser("sslight pack", "Convert a data directory, byte for byte, between class folders, HDF5 and shards.",
                    "sslight pack $DATA packed --to shards")
    parser.add_argument("src", metavar="SRC", help="data directory with train and val in any of the three forms, or a "
                                                   "URL of shards")
    parser.add_argument("dst", metavar="DST", type=Path, help="directory to write")
    parser.add_argument("--to", required=True, choices=FORMATS)
    parser.add_argument("--splits", nargs="+", metavar="SPLIT", help="default: those of train and val that are there")
    parser.add_argument("--shard-images", type=int, default=10_000, metavar="N", help="images per shard (10000)")
    return parser
