"""`sslight bench coco`: its settings, its command line, and detection as an evaluation. Imports nothing heavy."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from fvcore.common.config import CfgNode

from benchmarks.detection.framework import FRAMEWORKS, NECKS, SCHEDULES
from benchmarks.evaluation import Context, Plan, result_fault
from sslight.core.arguments import CHECKPOINT, Parser
from sslight.core.config import check_numbers, flatten, load_config
from sslight.core.errors import InputError
from sslight.core.result import read_result

SPELLED = {"WEIGHTS": "weights", "MODEL.BACKBONE_ARCH": "arch"}
LAUNCHERS = ("none", "torchrun", "slurm")
EPILOG = """
--task det trains Faster R-CNN and gives the published table's box AP, --task seg Mask R-CNN and its mask AP. The
recipe is chosen by framework, task, architecture, neck and schedule (configs/FRAMEWORK), or named by --config. Trailing
KEY VALUE pairs set keys of benchmarks/detection/command.py or, by their own names, keys of the framework's config. The
same command goes on after an interruption. Many machines: docs/detection.md.
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
    """The type of an option that takes whole numbers of `least` or more."""

    def number(text: str) -> int:
        if not (text.isdecimal() and int(text) >= least):
            raise argparse.ArgumentTypeError(f"'{text}' is no whole number of at least {least}")
        return int(text)

    return number


def fraction(text: str) -> float:
    """The type of an option that takes a number between 0 and 1."""
    try:
        if 0 < (value := float(text)) < 1:
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"'{text}' is not a fraction between 0 and 1")


def parser() -> Parser:
    parser = Parser(
        "sslight bench coco",
        f"Object detection and instance segmentation from a backbone, in {' or '.join(FRAMEWORKS)}.",
        "sslight bench coco --framework mmdet --task seg --weights runs/r18/checkpoints/last.pth \\\n"
        "      DATA.PATH_TO_DATA_DIR $COCO OUTPUT_DIR results/r18/coco",
        "torchrun --nproc_per_node 8 -m sslight bench coco --launcher torchrun --framework detectron2 --task det \\\n"
        "      --weights runs/r18/checkpoints/last.pth DATA.PATH_TO_DATA_DIR $COCO OUTPUT_DIR results/r18/coco_d2",
        epilog=EPILOG,
    )
    parser.add_argument("--framework", choices=list(FRAMEWORKS), required=True)
    parser.add_argument(
        "--task", choices=("det", "seg"), required=True, help="det: Faster R-CNN, box AP; seg: Mask R-CNN, mask AP"
    )
    parser.add_argument(
        "--weights",
        help=f"{CHECKPOINT} (torchvision's ImageNet ones; timm's where torchvision has none); or random",
    )
    parser.add_argument("--schedule", choices=list(SCHEDULES), default="1x", help="times the iterations of 1x, 90,000")
    parser.add_argument("--arch", help="backbone; a checkpoint's own by default")
    parser.add_build_options()
    parser.add_argument(
        "--neck",
        choices=NECKS,
        help="default: fpn for ResNets, the published p4p6 for MobileNetV2, vitdet for ViTs",
    )
    parser.add_option("--cfg", dest="config", metavar="FILE", help="a recipe of the framework instead")
    parser.add_argument(
        "--num-gpus",
        type=at_least(1),
        default=1,
        metavar="N",
        help="processes on this machine, one per GPU (without GPUs they share the CPU)",
    )
    parser.add_argument(
        "--launcher",
        choices=LAUNCHERS,
        default="none",
        help="what started this process as one of many, on one or more machines",
    )
    parser.add_argument("--amp", action="store_true", help="automatic mixed precision: TRAIN.AMP True")
    parser.add_argument("--scale-lr", action="store_true", help="scale the learning rate with the batch, linearly")
    parser.add_argument(
        "--proxy",
        type=fraction,
        metavar="FRACTION",
        default=0.0,
        help="train on this fraction of the images with the schedule shortened to match",
    )
    parser.add_option("--trials", type=at_least(1), default=1, metavar="N")
    parser.add_argument(
        "--show", type=at_least(0), metavar="N", default=0, help="pictures of predictions beside the truth"
    )
    parser.add_argument("--check", action="store_true", help="only the checks that every run begins with")
    parser.add_overrides(DEFAULTS)
    return parser


def split_overrides(pairs: list[str]) -> tuple[CfgNode, list[str]]:
    """Our settings, and the pairs that belong to the framework's config: all keys that are not ours."""
    if len(pairs) % 2:
        raise InputError(f"overrides are KEY VALUE pairs; '{pairs[-1]}' has no value")
    known = dict(flatten(DEFAULTS))
    ours: list[str] = []
    theirs: list[str] = []
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        mine = key in known or key.split(".")[0] in ("DATA", "EVAL", "TRAIN")
        (ours if mine else theirs).extend([key, value])
    settings = load_config(DEFAULTS, None, ours)
    plain = settings.clone()
    plain.defrost()
    for section, key in (("DATA", "WORKERS"), ("SOLVER", "WARMUP_ITERS")):
        if plain[section][key] == -1:  # the recipe's
            plain[section][key] = 0
    check_numbers(plain, POSITIVE, MOST, {})
    return settings, theirs


class Detection:
    """`benchmarks.evaluation.Evaluation` of detectors, in each of the frameworks."""

    settings = DEFAULTS
    per_architecture = False
    spreads = True

    parser = staticmethod(parser)
    fault = staticmethod(result_fault)

    @property
    def frameworks(self) -> list[str]:
        return list(FRAMEWORKS)

    def check(self, argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, CfgNode, list[str]]:
        """The command line's options, our settings, and the pairs that belong to the framework's own config."""
        args = parser().parse_intermixed_args(argv)
        args.words = list(sys.argv[1:] if argv is None else argv)
        args.overrides += ["TRAIN.AMP", "True"] * args.amp
        for key, option in SPELLED.items():  # other commands' keys for what is an option here
            while key in args.overrides[::2]:
                at = 2 * args.overrides[::2].index(key)
                setattr(args, option, args.overrides[at + 1])
                del args.overrides[at : at + 2]
        if not args.weights:
            raise InputError("--weights is not set: add --weights CHECKPOINT, or --weights random with --arch")
        return args, *split_overrides(args.overrides)

    def plan(self, request: tuple, context: Context) -> Plan:
        from benchmarks.detection import coco

        return coco.plan(request, context)

    def run(self, request: tuple) -> int:
        from benchmarks.detection import coco

        return coco.run(request)

    def result(self, request: tuple) -> dict | None:
        args, settings, _ = request
        return None if args.check else read_result(settings.OUTPUT_DIR)


EVALUATION = Detection()
