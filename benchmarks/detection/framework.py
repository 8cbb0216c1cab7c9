"""What a detection framework is, which there are, and which of its recipes fits. Imports nothing heavy."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, Protocol, TypedDict

from sslight.core.config import CONFIGS
from sslight.core.errors import InputError
from sslight.core.registry import Registry

if TYPE_CHECKING:
    from fvcore.common.config import CfgNode
    from torch import Tensor

    from benchmarks.detection.data import CocoData
    from sslight.core.rundir import StopSignal

OURS = ("sslight", "pretrain", "convert", "benchmarks", "configs")


class Schedule(TypedDict):
    """How long and how fast a detector trains.

    batch: images an iteration, over all processes; lr: the peak learning rate for that batch; max_iter, warmup:
    iterations; steps: iterations after which the learning rate falls.
    """

    batch: int
    lr: float
    max_iter: int
    steps: list[int]
    warmup: int


class Recipe(Schedule):
    """What the checks and the result need to know of a framework's config.

    arch: timm's name. model: what `convert` takes as `--model`, where the framework has several layouts of a backbone.
    mask: whether the detector predicts masks. norm: the backbone's, such as "SyncBN". mean, std: of pixels from 0 to
    255, in `color_order` ("RGB" or "BGR"). side: the shorter side of a test image in pixels. left_out: (annotation,
    image) -> why the framework does not train on an object; an empty string where it does.
    """

    arch: str
    model: NotRequired[str]
    mask: bool
    norm: str
    mean: list[float]
    std: list[float]
    color_order: str
    side: int
    left_out: Callable[[dict, dict], str]


@dataclass(frozen=True)
class Weights:
    """A backbone ready for a framework: `file` holds `tensors`; `checkpoint` is what a result says about its source.

    `options` are timm's build options that the tensors need beside `arch`.
    """

    file: Path
    tensors: dict[str, Tensor]
    arch: str
    preprocess: dict
    checkpoint: dict
    options: dict


class DetectionFramework(Protocol):
    """A module that trains and tests detectors in one framework; a config is an object of the framework's own.

    `convert` knows a target of the framework's name; `configs/NAME/` holds its recipes, one for each detector and
    backbone, named as `recipe_name` says.

    STATE_KEY: under which a checkpoint of the framework holds its tensors. PREPROCESS: how its keys for the colour
    order, mean and std of images begin; whoever sets one of them decides on them all.
    """

    STATE_KEY: str
    PREPROCESS: tuple[str, ...]

    def load_config(self, file: Path) -> Any:
        """A recipe. Raises InputError for a file that is none."""
        ...

    def override(self, cfg: Any, options: Sequence[str]) -> None:
        """Set `KEY VALUE ...` of the framework's own keys. Raises InputError for unknown ones."""
        ...

    def recipe_of(self, cfg: Any) -> Recipe:
        """Raises InputError for a config that cannot be trained by this module."""
        ...

    def set_schedule(self, cfg: Any, *, batch: int, lr: float, max_iter: int, steps: list[int], warmup: int) -> None:
        """Write a `Schedule` into the config."""
        ...

    def set_preprocess(self, cfg: Any, preprocess: dict) -> None:
        """Feed images as a checkpoint was trained. preprocess: its `mean` and `std` in [0, 1], its `color_order`."""
        ...

    def adapt(
        self, cfg: Any, settings: CfgNode, data: CocoData, weights: Weights, processes: int, seed: int, work_dir: Path
    ) -> None:
        """Point the config at the data (`Split.ready` and its classes) and the backbone file, and make it this run's.

        settings: those of `benchmarks/detection/command.py`. Raises InputError for a batch that the processes cannot
        share equally.
        """
        ...

    def train_and_test(self, cfg: Any, stop: StopSignal) -> int:
        """Train to the last iteration, and write the detections of the val images; returns the iterations done.

        Goes on from the newest checkpoint of the config's directory, with the images that an uninterrupted run would
        have seen. Before a first step, `benchmarks.detection.weights.prove` compares the backbone with its file. Raises
        Stopped after saving when `stop` asked for it, InputError for a loss that is not finite.
        """
        ...

    def detections(self, work_dir: Path, mask: bool) -> dict[str, Path]:
        """The COCO result files that a test wrote: of "box" and, with `mask`, of "mask"."""
        ...

    def to_dict(self, cfg: Any) -> dict:
        """The whole config as nested plain values."""
        ...


class Frameworks(Registry[DetectionFramework]):
    """Frameworks by the names of their packages; an entry's text is the command that installs the package."""

    def __getitem__(self, name: str) -> DetectionFramework:
        try:
            return super().__getitem__(name)
        except ModuleNotFoundError as error:
            if not error.name or error.name.split(".")[0] in OURS:
                raise
            state = "not installed"
            if is_installed(name):  # a source tree on the path, without what its own installation brings
                state = f"installed without '{error.name}', which it imports"
            raise InputError(f"{name} is {state}: {self.text(name)}") from None

    def installed(self) -> list[str]:
        """The names of those whose packages are installed; imports none."""
        return [name for name in self if is_installed(name)]


FRAMEWORKS = Frameworks(
    "framework",
    {
        "mmdet": ("pip install -e '.[mmdet]'", "benchmarks.detection.in_mmdet.run"),
        "detectron2": (
            "pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git'",
            "benchmarks.detection.in_detectron2.run",
        ),
    },
)


def is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


DETECTORS = {"det": "faster_rcnn", "seg": "mask_rcnn"}  # of a task
BACKBONES = {  # pattern of timm's names: (name in those of recipes, the published neck)
    r"resnet(18|34|50)": (r"r\1", "fpn"),
    r"mobilenetv2_100": ("mobilenetv2", "p4p6"),
    r"vit_tiny_patch16_224": ("vit_tiny", "vitdet"),
}
NECKS = ("fpn", "p4p6", "c4", "vitdet")
SCHEDULES = {"1x": 1, "2x": 2}  # how many times the iterations of a recipe's file, which is of 1x


class NoRecipe(InputError):
    """There is no recipe for this backbone in this framework."""


def recipe_name(framework: str, task: str, arch: str, neck: str | None, schedule: str) -> str:
    """The shipped recipe for a combination, `DETECTOR_BACKBONE_NECK_SCHEDULE`.

    neck: None for the published one. Raises NoRecipe, naming those that there are for the backbone.
    """
    for pattern, (short, published) in BACKBONES.items():
        if match := re.fullmatch(pattern, arch):
            begin = f"{DETECTORS[task]}_{match.expand(short)}_"
            name = f"{begin}{neck or published}_{schedule}"
            break
    else:
        raise NoRecipe(
            f"no recipe for backbone '{arch}': write one (docs/detection.md names parts for any timm network) "
            "and pass it with --config"
        )
    if shipped_recipe(framework, name) is None:
        shipped = sorted({path.stem for path in (CONFIGS / framework).glob(f"{begin}*_1x.*")})
        names = ", ".join(f"{stem[:-2]}{schedule}" for stem in shipped for schedule in SCHEDULES) or "none"
        raise NoRecipe(f"no recipe {name} in configs/{framework}; for {arch} there is: {names}")
    return name


def shipped_recipe(framework: str, name: str) -> tuple[Path, int] | None:
    """A shipped recipe's file, and how many times its iterations the name stands for; None where there is none."""
    stem, _, schedule = name.rpartition("_")
    stem, times = (f"{stem}_1x", SCHEDULES[schedule]) if schedule in SCHEDULES else (name, 1)
    files = (path for path in (CONFIGS / framework).glob("*.*") if path.stem == stem and path.is_file())
    return next(((path, times) for path in files), None)


def stretched(schedule: Schedule, max_iter: int) -> Schedule:
    """The schedule over another number of iterations: steps move along, a warm-up is shortened but not lengthened."""
    ratio = max_iter / schedule["max_iter"]
    return {
        "batch": schedule["batch"],
        "lr": schedule["lr"],
        "max_iter": max_iter,
        "steps": [round(step * ratio) for step in schedule["steps"]],
        "warmup": round(schedule["warmup"] * min(ratio, 1)),
    }


def resolve_schedule(recipe: Schedule, settings: CfgNode, scale_lr: bool) -> Schedule:
    """The recipe's schedule, changed by the SOLVER settings; those that are set by hand stay as they are.

    With `scale_lr` the learning rate follows the batch linearly (Goyal et al., 2017).
    """
    solver, schedule = settings.SOLVER, stretched(recipe, settings.SOLVER.MAX_ITER or recipe["max_iter"])
    schedule["batch"] = solver.IMS_PER_BATCH or schedule["batch"]
    schedule["lr"] = solver.BASE_LR or recipe["lr"] * (schedule["batch"] / recipe["batch"] if scale_lr else 1)
    schedule["steps"] = list(solver.STEPS) or schedule["steps"]
    schedule["warmup"] = solver.WARMUP_ITERS if solver.WARMUP_ITERS >= 0 else schedule["warmup"]
    return schedule


def of_part(schedule: Schedule, fraction: float) -> Schedule:
    """The schedule shortened to a fraction of the images; its warm-up no further than to a tenth of the iterations."""
    max_iter = max(1, round(fraction * schedule["max_iter"]))
    return {
        **schedule,
        "max_iter": max_iter,
        "steps": [max(1, round(fraction * step)) for step in schedule["steps"]],
        "warmup": min(schedule["warmup"], max(1, max_iter // 10)),
    }
