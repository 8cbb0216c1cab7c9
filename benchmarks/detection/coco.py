"""Object detection and instance segmentation from a backbone, in mmdet or detectron2: `sslight bench coco`.

Its settings and options are in settings.py. Writes `result.json`, the detections, and pictures.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from fvcore.common.config import CfgNode

from benchmarks.detection import (
    data as coco_data,
    launch,
    preflight,
    result as coco_result,
    weights as coco_weights,
)
from benchmarks.detection.settings import Request, choose_recipe, framework_module, resolve_schedule
from benchmarks.evaluation import EVALUATIONS, Context, Plan, Work, is_done, main
from benchmarks.report.comparison import FREE as PLACED
from convert.reader import Checkpoint
from convert.recorded import IMAGENET, spelled
from pretrain.backbones import canonical_arch, check_options, read_options
from sslight.core import devices, distributed
from sslight.core.config import CONFIGS, find_config, flatten, to_dict
from sslight.core.errors import InputError
from sslight.core.rundir import StopSignal, check_same_run, deciding, open_run

# What may differ between two starts of one run; the first line also between two results of one evaluation.
PLACES = ("OUTPUT_DIR", "DEVICE", "NAME", "DATA.", "LOG_PERIOD", "SOLVER.CHECKPOINT_PERIOD")
FREE = (*PLACES, "EVAL.", "RUN.TRIALS")
TRAINED = 3  # forward passes that an image of training counts as: the backward one costs about two
# Our keys of a schedule's parts.
SCHEDULE = {
    "SOLVER.IMS_PER_BATCH": "batch",
    "SOLVER.BASE_LR": "lr",
    "SOLVER.MAX_ITER": "max_iter",
    "SOLVER.STEPS": "steps",
    "SOLVER.WARMUP_ITERS": "warmup",
}


@dataclass(frozen=True)
class Setup:
    """Everything of a run that is known before anything is written; `source` is None for weights yet to be made."""

    args: argparse.Namespace
    settings: CfgNode
    framework: ModuleType
    processes: int
    data: coco_data.CocoData
    source: Checkpoint | None
    family: str
    arch: str
    file: Path
    recipe_cfg: object
    recipe: dict
    schedule: dict
    identity: CfgNode  # what decides the result: a directory belongs to one such combination
    departures: dict  # from the recipe of this name: {key: value}


def run(request: Request) -> int:
    """Train and test the detectors of all trials, and write `result.json`; returns an exit code."""
    started = time.monotonic()
    setup = configure(request)
    args, settings, framework, schedule = setup.args, setup.settings, setup.framework, setup.schedule
    prepare_only = setup.processes > 1 and args.launcher == "none"  # this process checks, its children train
    source, family, data = setup.source, setup.family, setup.data
    preflight.amp_possible(settings.TRAIN.AMP)
    with _workplace(setup) as out_dir, StopSignal(immediate=True) as stop:
        with launch.main_first():
            if source is None:
                source, family = coco_weights.find_source(
                    args.weights, setup.arch, settings.SEED, out_dir, settings.MODEL.OPTIONS
                )
            quiet = not distributed.is_main() or (prepare_only and not args.check)
            for line in () if quiet else spelled(source.assumed, "--set"):
                print(f"warning: {args.weights}: {line}", file=sys.stderr)
            preflight.check(
                data, feed(setup, source.preprocess), schedule, source.preprocess, out_dir, setup.processes, quiet=quiet
            )
            if args.check:
                return 0
            weights = coco_weights.prepare(
                args.weights, source, family, args.framework, setup.recipe.get("model"), out_dir
            )
            data = coco_data.written(data, out_dir)
        runs = []
        for trial in range(0 if prepare_only else args.trials):
            work_dir = out_dir if args.trials == 1 else out_dir / f"seed_{settings.SEED + trial}"
            work_dir.mkdir(exist_ok=True)
            cfg = framework.copy_config(setup.recipe_cfg)
            framework.adapt(cfg, settings, data, weights, setup.processes, settings.SEED + trial, work_dir)
            iterations = framework.train_and_test(cfg, stop)
            runs.append(
                coco_result.Run(settings.SEED + trial, iterations, framework.detections(work_dir, setup.recipe["mask"]))
            )
        if runs and distributed.is_main():
            coco_result.write(
                out_dir,
                args,
                settings,
                data,
                weights,
                runs,
                schedule,
                framework.to_dict(cfg),
                setup.file.stem,
                setup.departures,
                time.monotonic() - started,
            )
    if prepare_only:
        launch.spread(_again, args.words, setup.processes)
    return 0


@contextlib.contextmanager
def _workplace(setup: Setup) -> Iterator[Path]:
    """The run's directory, which does not stay if only checks are asked for and it was not there."""
    new = setup.settings.OUTPUT_DIR and not Path(setup.settings.OUTPUT_DIR).exists()
    with open_run(setup.identity, FREE) as out_dir:  # another's directory is refused here, before anything is removed
        try:
            yield out_dir
        finally:
            if setup.args.check and new and distributed.is_main():
                shutil.rmtree(out_dir, ignore_errors=True)


def _again(argv: Sequence[str]) -> int:
    """The command in one of its processes."""
    return main(EVALUATIONS["coco"], argv)


def plan(request: Request, context: Context) -> Plan:
    """`benchmarks.evaluation.Evaluation.plan`."""

    def find_data(settings: CfgNode) -> coco_data.CocoData:
        place = tuple(settings.DATA.values())
        if place not in context.data:
            try:
                context.data[place] = coco_data.find(settings)
            except InputError as error:
                raise InputError(f"{error}; coco.DATA.PATH_TO_DATA_DIR is detection's alone") from None
        return context.data[place]

    setup = configure(request, find_data, elsewhere=True)
    schedule, data, trials = setup.schedule, setup.data, setup.args.trials
    if context.here:
        devices.check(setup.settings.DEVICE, setup.processes)
        preprocess = setup.source.preprocess if setup.source else IMAGENET
        preflight.amp_possible(setup.settings.TRAIN.AMP)
        preflight.check(
            data, setup.recipe, schedule, preprocess, context.folder, setup.processes, remember=False, quiet=True
        )
    check_same_run(context.folder, setup.identity, FREE)
    weights = setup.source.sha256 if setup.source else ""
    done = is_done(context.folder, weights, data.fingerprint(), deciding(to_dict(setup.settings), PLACES), trials)
    images = trials * (TRAINED * schedule["max_iter"] * schedule["batch"] + data.val.image_count)
    return Plan(Work(setup.arch, images, setup.recipe["side"] ** 2 * 4 / 3), done)  # of COCO's usual shape


def configure(request: Request, find_data: Callable = coco_data.find, elsewhere: bool = False) -> Setup:
    """Read the recipe, the checkpoint and the annotations; join the launcher's processes.

    `find_data` maps our settings to the data set. `elsewhere`: it will run in another process, so this one neither
    joins nor chooses a device. Raises InputError for whatever does not go together.
    """
    args, settings, framework_options = request
    if not elsewhere:
        devices.prepare(settings.DEVICE)  # before the framework asks for a GPU
    framework = framework_module(args.framework)
    processes = launch.processes(args.launcher, args.num_gpus, here=not elsewhere)
    data = find_data(settings)
    known = args.weights in (coco_weights.RANDOM, coco_weights.SUPERVISED)
    if known and not args.arch:
        raise InputError(f"--weights {args.weights} needs --arch, e.g. --arch resnet18")
    source, family = (
        (None, "")
        if known
        else coco_weights.find_source(
            args.weights, args.arch, settings.SEED, Path(settings.OUTPUT_DIR), settings.MODEL.OPTIONS
        )
    )
    arch = source.arch if source else canonical_arch(args.arch)
    if known:
        check_options(arch, read_options(settings.MODEL.OPTIONS.split()))
    file = find_config(args.config or choose_recipe(args.framework, args.task, arch, args.neck, args.schedule))
    recipe_cfg = framework.load_config(file, framework_options)
    departures = _framework_departures(framework, recipe_cfg, file)
    recipe = framework.recipe_of(recipe_cfg)
    _check_recipe(recipe, arch, args.task, file)
    schedule = resolve_schedule(recipe, settings, args.scale_lr)
    departures |= {key: schedule[name] for key, name in SCHEDULE.items() if schedule[name] != recipe[name]}
    departures |= {"TRAIN.AMP": True} if settings.TRAIN.AMP else {}
    if args.proxy:
        departures["--proxy"] = args.proxy
        data, schedule = preflight.proxy(data, schedule, args.proxy, settings)
    framework.set_schedule(recipe_cfg, **schedule)
    run = {
        "FRAMEWORK": args.framework,
        "TASK": args.task,
        "RECIPE": file.stem,
        "WEIGHTS": source.sha256 if source else args.weights,
        "CATEGORIES": list(data.classes),
        "DATA": data.fingerprint(),
        "NUM_GPUS": processes,
        "PROXY": args.proxy,
        "SCALE_LR": args.scale_lr,
        "TRIALS": args.trials,
        "OPTIONS": framework_options,
    }
    return Setup(
        args,
        settings,
        framework,
        processes,
        data,
        source,
        family,
        arch,
        file,
        recipe_cfg,
        recipe,
        schedule,
        CfgNode({**to_dict(settings), "RUN": run}),
        departures,
    )


def _framework_departures(framework: ModuleType, cfg: object, file: Path) -> dict:
    """{key: value} of a recipe with its overrides that differ from the shipped recipe of its name, or from its file."""
    shipped = CONFIGS / framework.__name__.split(".")[-2].removeprefix("in_") / file.name
    protocol = dict(flatten(framework.to_dict(framework.load_config(shipped if shipped.is_file() else file))))
    return {
        key: value
        for key, value in flatten(framework.to_dict(cfg))
        if value != protocol.get(key) and key.rpartition(".")[2].lower() not in PLACED
    }


def feed(setup: Setup, preprocess: dict) -> dict:
    """Feed images as the checkpoint was trained, unless the command line set the framework's own keys; the recipe."""
    framework = setup.framework
    by_hand = any(key.startswith(framework.PREPROCESS) for key in setup.identity.RUN.OPTIONS[::2])
    if not by_hand and any(preflight.preprocessing(setup.recipe, preprocess)):
        framework.set_preprocess(setup.recipe_cfg, preprocess)
    fed = framework.recipe_of(setup.recipe_cfg)
    return {**setup.recipe, **{key: fed[key] for key in ("mean", "std", "color_order")}}


def _check_recipe(recipe: dict, arch: str, task: str, file: Path) -> None:
    if recipe["arch"] != arch:
        raise InputError(
            f"{file} builds a {recipe['arch']}, but the weights are a {arch}: choose the recipe or the "
            "checkpoint of the same architecture"
        )
    if recipe["mask"] != (task == "seg"):
        predicts, fitting = ("masks", "seg") if recipe["mask"] else ("boxes only", "det")
        raise InputError(
            f"{file} predicts {predicts}, so its task is {fitting}, not {task}: det is a detector without "
            "masks and its box AP, seg one with masks and its mask AP"
        )
