"""Which recipe a bench run uses, which framework runs it, and the schedule after the settings are laid over it."""

from __future__ import annotations

import importlib
import importlib.util
import re
import warnings
from pathlib import Path
from types import ModuleType

from pretrain.config import CONFIGS
from pretrain.errors import InputError

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
        return importlib.import_module(f"benchmarks.coco_{name}")
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
        raise NoRecipe(f"no recipe for backbone '{arch}': write one (TimmBackbone in mmdet, build_timm_fpn_backbone "
                       "in detectron2) and pass it with --config")
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
