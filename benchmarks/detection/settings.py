"""Which recipe a bench run uses, which framework runs it, and the schedule after the settings are laid over it."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from fvcore.common.config import CfgNode

from sslight.core.arguments import CONFIG_OPTIONS, Parser
from sslight.core.config import CONFIGS, check_numbers, flatten, load_config
from sslight.core.errors import InputError

FRAMEWORKS = ("mmdet", "detectron2")
INSTALL = {
    "mmdet": "pip install -e '.[mmdet]'",
    "detectron2": "pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git'",
}
NAMES = {r"resnet(18|34|50)": r"r\1", r"mobilenetv2_100": "mobilenetv2", r"vit_tiny_patch16_224": "vit_tiny"}
NECKS = {"r": "fpn", "m": "p4p6", "v": "vitdet"}  # by a name's first letter


class NoRecipe(InputError):
    """There is no recipe for this backbone in this framework."""


def framework_module(name: str) -> ModuleType:
    """The module that drives a framework. Raises InputError with the installing command where it is missing."""
    if importlib.util.find_spec(name) is None:
        raise InputError(f"{name} is not installed: {INSTALL[name]}")
    warnings.filterwarnings("ignore", "pkg_resources is deprecated")  # mmengine's import of it, no news for a run
    try:
        return importlib.import_module(f"benchmarks.detection.in_{name}.run")
    except ModuleNotFoundError as error:  # a source tree on the path without what its own installation brings
        if error.name is None or error.name.split(".")[0] in ("benchmarks", "convert", "pretrain"):
            raise
        raise InputError(f"{name} is installed without '{error.name}', which it imports: {INSTALL[name]}") from None


def choose_recipe(framework: str, task: str, arch: str, neck: str | None, schedule: str) -> Path:
    """The config file for a combination. Raises NoRecipe naming what exists where there is none."""
    for pattern, short in NAMES.items():
        found = re.fullmatch(pattern, arch)
        if found:
            name = found.expand(short)
            break
    else:
        raise NoRecipe(
            f"no recipe for backbone '{arch}': write one (TimmBackbone in mmdet, build_timm_fpn_backbone "
            "in detectron2) and pass it with --config"
        )
    folder, suffix = CONFIGS / framework, ".py" if framework == "mmdet" else ".yaml"
    kind = "faster" if task == "det" else "mask"
    file = folder / f"{kind}_rcnn_{name}_{neck or NECKS[name[0]]}_{schedule}{suffix}"
    if not file.is_file():
        there = ", ".join(sorted(path.stem for path in folder.glob(f"{kind}_rcnn_{name}_*{suffix}"))) or "none"
        raise NoRecipe(f"no recipe {file.name} in configs/{framework}; for {arch} there is: {there}")
    return file


def resolve_schedule(recipe: dict, settings, scale_lr: bool) -> dict:
    """batch, lr, max_iter, steps, warmup: the recipe's, changed by the SOLVER settings.

    With `scale_lr` the learning rate follows the batch linearly (Goyal et al., 2017); a BASE_LR set by hand stays.
    A changed MAX_ITER moves steps that were not set along with it.
    """
    solver = settings.SOLVER
    batch, max_iter = solver.IMS_PER_BATCH or recipe["batch"], solver.MAX_ITER or recipe["max_iter"]
    ratio = max_iter / recipe["max_iter"]
    steps = list(solver.STEPS) or [round(step * ratio) for step in recipe["steps"]]
    warmup = solver.WARMUP_ITERS if solver.WARMUP_ITERS >= 0 else round(recipe["warmup"] * min(ratio, 1))
    lr = solver.BASE_LR or recipe["lr"] * (batch / recipe["batch"] if scale_lr else 1)
    return {"batch": batch, "lr": lr, "max_iter": max_iter, "steps": steps, "warmup": warmup}


Request = tuple[argparse.Namespace, CfgNode, list[str]]
SPELLED = {"WEIGHTS": "weights", "MODEL.BACKBONE_ARCH": "arch"}
LAUNCHERS = ("none", "torchrun", "slurm")
EPILOG = """
--task det trains Faster R-CNN and gives the published table's box AP, --task seg Mask R-CNN and its mask AP. The
recipe is chosen by framework, task, architecture, neck and schedule (configs/mmdet, configs/detectron2), or named by
--config. Trailing KEY VALUE pairs set keys of benchmarks/detection/settings.py or, by their own names, keys of the
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
        "sslight bench coco",
        "Object detection and instance segmentation from a backbone, in mmdet or detectron2.",
        "sslight bench coco --framework mmdet --task seg --weights runs/r18/checkpoints/last.pth \\\n"
        "      DATA.PATH_TO_DATA_DIR $COCO OUTPUT_DIR results/r18/coco",
        "torchrun --nproc_per_node 8 -m sslight bench coco --launcher torchrun --framework detectron2 --task det \\\n"
        "      --weights runs/r18/checkpoints/last.pth DATA.PATH_TO_DATA_DIR $COCO OUTPUT_DIR results/r18/coco_d2",
        epilog=EPILOG,
    )
    parser.add_argument("--framework", choices=FRAMEWORKS, required=True)
    parser.add_argument(
        "--task", choices=("det", "seg"), required=True, help="det: Faster R-CNN, box AP; seg: Mask R-CNN, mask AP"
    )
    parser.add_argument(
        "--weights",
        help="a checkpoint that `sslight convert` reads, random, or SUPERVISED (torchvision's ImageNet "
        "ones; timm's where torchvision has none)",
    )
    parser.add_argument("--schedule", choices=("1x", "2x"), default="1x")
    parser.add_argument("--arch", help="backbone; a checkpoint's own by default")
    parser.add_argument(
        "--set",
        dest="options",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a build option that the checkpoint does not tell, e.g. num_heads=12: MODEL.OPTIONS",
    )
    parser.add_argument(
        "--neck",
        choices=("fpn", "p4p6", "c4", "vitdet"),
        help="default: fpn for ResNets, the published p4p6 for MobileNetV2, vitdet for ViTs",
    )
    parser.add_argument(*CONFIG_OPTIONS, dest="config", metavar="FILE", help="a recipe of the framework instead")
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
    parser.add_argument("--trials", type=at_least(1), default=1, help="repeat with this many seeds, SEED and up")
    parser.add_argument(
        "--show", type=at_least(0), metavar="N", default=0, help="pictures of predictions beside the truth"
    )
    parser.add_argument("--check", action="store_true", help="only the checks that every run begins with")
    parser.add_overrides(DEFAULTS)
    return parser


def split_overrides(pairs: list[str], framework: str) -> tuple[CfgNode, list[str]]:
    """Our settings, and the pairs that belong to the framework's config: mmdet's keys are in small letters."""
    if len(pairs) % 2:
        raise InputError(f"overrides are KEY VALUE pairs; '{pairs[-1]}' has no value")
    known = dict(flatten(DEFAULTS))
    ours: list[str] = []
    theirs: list[str] = []
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        mine = key in known or key.split(".")[0] in ("DATA", "EVAL", "TRAIN") or framework == "mmdet" and key.isupper()
        (ours if mine else theirs).extend([key, value])
    settings = load_config(DEFAULTS, None, ours)
    plain = settings.clone()
    plain.defrost()
    for section, key in (("DATA", "WORKERS"), ("SOLVER", "WARMUP_ITERS")):
        if plain[section][key] == -1:  # the recipe's
            plain[section][key] = 0
    check_numbers(plain, POSITIVE, MOST, {})
    return settings, theirs
