"""One run of `sslight bench coco`: from its request to trained detectors, `result.json`, detections and pictures."""

from __future__ import annotations

import argparse
import contextlib
import copy
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fvcore.common.config import CfgNode

from benchmarks.detection import (
    data as coco_data,
    launch,
    preflight,
    result as coco_result,
    weights as coco_weights,
)
from benchmarks.detection.framework import (
    FRAMEWORKS,
    DetectionFramework,
    Recipe,
    Schedule,
    of_part,
    recipe_name,
    resolve_schedule,
    shipped_recipe,
    stretched,
)
from benchmarks.evaluation import EVALUATIONS, Context, Plan, Work, is_done, main
from benchmarks.report.comparison import FREE as PLACED
from convert.families import IMAGENET, Checkpoint, spelled
from pretrain.backbones import canonical_arch, check_options, read_options
from sslight.core import devices, distributed
from sslight.core.config import find_config, flatten, to_dict
from sslight.core.errors import InputError
from sslight.core.rundir import StopSignal, check_same_run, deciding, open_run

Request = tuple[argparse.Namespace, CfgNode, list[str]]  # the options, our settings, and the framework's own overrides
# What may differ between two starts of one run; the first line also between two results of one evaluation.
PLACES = ("OUTPUT_DIR", "DEVICE", "NAME", "DATA.", "LOG_PERIOD", "SOLVER.CHECKPOINT_PERIOD")
FREE = (*PLACES, "EVAL.", "RUN.TRIALS")
TRAINED = 3  # forward passes that an image of training counts as: the backward one costs about two
# Our keys of a schedule's parts.
SCHEDULE: dict[str, Literal["batch", "lr", "max_iter", "steps", "warmup"]] = {
    "SOLVER.IMS_PER_BATCH": "batch",
    "SOLVER.BASE_LR": "lr",
    "SOLVER.MAX_ITER": "max_iter",
    "SOLVER.STEPS": "steps",
    "SOLVER.WARMUP_ITERS": "warmup",
}


@dataclass(frozen=True)
class Setup:
    """Everything of a run that is known before anything is written."""

    args: argparse.Namespace
    settings: CfgNode
    framework: DetectionFramework
    processes: int
    data: coco_data.CocoData
    source: Checkpoint | None  # None for random and supervised weights, which are written into the run's directory
    cfg: Any  # the framework's config
    recipe: Recipe
    schedule: Schedule
    identity: CfgNode  # what decides the result: a directory belongs to one such combination
    departures: dict  # from the recipe of this name: {key: value}


def run(request: Request) -> int:
    """Train and test the detectors of all trials, and write `result.json`; returns an exit code."""
    started = time.monotonic()
    setup = configure(request)
    args, settings, framework, data = setup.args, setup.settings, setup.framework, setup.data
    prepare_only = setup.processes > 1 and args.launcher == "none"  # this process checks, its children train
    preflight.amp_possible(settings.TRAIN.AMP)
    with _workplace(setup) as out_dir, StopSignal(immediate=True) as stop:
        with distributed.main_first():
            source = setup.source or coco_weights.find_source(
                args.weights, setup.recipe["arch"], settings.SEED, out_dir, settings.MODEL.OPTIONS
            )
            quiet = not distributed.is_main() or (prepare_only and not args.check)
            for line in () if quiet else spelled(source.assumed, "--set"):
                print(f"warning: {args.weights}: {line}", file=sys.stderr)
            recipe = feed(setup, source.preprocess)
            preflight.check(data, recipe, setup.schedule, source.preprocess, out_dir, setup.processes, quiet=quiet)
            if args.check:
                return 0
            weights = coco_weights.prepare(args.weights, source, args.framework, recipe.get("model"), out_dir)
            data = coco_data.written(data, out_dir)
        runs = []
        for trial in range(0 if prepare_only else args.trials):
            work_dir = out_dir if args.trials == 1 else out_dir / f"seed_{settings.SEED + trial}"
            work_dir.mkdir(exist_ok=True)
            cfg = copy.deepcopy(setup.cfg)
            framework.adapt(cfg, settings, data, weights, setup.processes, settings.SEED + trial, work_dir)
            iterations = framework.train_and_test(cfg, stop)
            files = framework.detections(work_dir, recipe["mask"])
            runs.append(coco_result.Run(settings.SEED + trial, iterations, files))
        if runs and distributed.is_main():
            coco_result.write(
                out_dir,
                args,
                settings,
                data,
                weights,
                runs,
                setup.schedule,
                framework.to_dict(cfg),
                setup.identity.RUN.RECIPE,
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
    recipe, schedule, data, trials = setup.recipe, setup.schedule, setup.data, setup.args.trials
    if context.here:
        devices.check(setup.settings.DEVICE, setup.processes)
        preprocess = setup.source.preprocess if setup.source else IMAGENET
        preflight.amp_possible(setup.settings.TRAIN.AMP)
        preflight.check(data, recipe, schedule, preprocess, context.folder, setup.processes, remember=False, quiet=True)
    check_same_run(context.folder, setup.identity, FREE)
    weights = setup.source.sha256 if setup.source else ""
    done = is_done(context.folder, weights, data.fingerprint(), deciding(to_dict(setup.settings), PLACES), trials)
    images = trials * (TRAINED * schedule["max_iter"] * schedule["batch"] + data.val.image_count)
    return Plan(Work(recipe["arch"], images, recipe["side"] ** 2 * 4 / 3), done)  # of COCO's usual shape


def configure(request: Request, find_data: Callable = coco_data.find, elsewhere: bool = False) -> Setup:
    """Read the recipe, the checkpoint and the annotations; join the launcher's processes.

    `find_data` maps our settings to the data set. `elsewhere`: it will run in another process, so this one neither
    joins nor chooses a device. Raises InputError for whatever does not go together.
    """
    args, settings, options = request
    if not elsewhere:
        devices.prepare(settings.DEVICE)  # before the framework asks for a GPU
    framework, processes = FRAMEWORKS[args.framework], args.num_gpus
    if args.launcher != "none":
        processes = launch.join(args.launcher, args.num_gpus)
    elif not elsewhere:
        devices.check(processes=processes)
    data, source = find_data(settings), None
    if args.weights not in (coco_weights.RANDOM, coco_weights.SUPERVISED):
        source = coco_weights.find_source(
            args.weights, args.arch, settings.SEED, Path(settings.OUTPUT_DIR), settings.MODEL.OPTIONS
        )
    elif not args.arch:
        raise InputError(f"--weights {args.weights} needs --arch, e.g. --arch resnet18")
    arch = source.arch if source else canonical_arch(args.arch)
    if not source:
        check_options(arch, read_options(settings.MODEL.OPTIONS.split()))
    own = find_config(args.config) if args.config else None
    name = own.stem if own else recipe_name(args.framework, args.task, arch, args.neck, args.schedule)
    cfg, departures = read_recipe(args.framework, name, options, own)
    recipe = framework.recipe_of(cfg)
    _check_recipe(recipe, arch, args.task, name)
    schedule = resolve_schedule(recipe, settings, args.scale_lr)
    departures |= {key: schedule[part] for key, part in SCHEDULE.items() if schedule[part] != recipe[part]}
    departures |= {"TRAIN.AMP": True} if settings.TRAIN.AMP else {}
    if args.proxy:
        departures["--proxy"] = args.proxy
        data, schedule = coco_data.part_of(data, args.proxy), of_part(schedule, args.proxy)
    framework.set_schedule(cfg, **schedule)
    run = {
        "FRAMEWORK": args.framework,
        "TASK": args.task,
        "RECIPE": name,
        "WEIGHTS": source.sha256 if source else args.weights,
        "CATEGORIES": list(data.classes),
        "DATA": data.fingerprint(),
        "NUM_GPUS": processes,
        "PROXY": args.proxy,
        "SCALE_LR": args.scale_lr,
        "TRIALS": args.trials,
        "OPTIONS": options,
    }
    identity = CfgNode({**to_dict(settings), "RUN": run})
    return Setup(args, settings, framework, processes, data, source, cfg, recipe, schedule, identity, departures)


def read_recipe(framework: str, name: str, options: Sequence[str], own: Path | None = None) -> tuple[Any, dict]:
    """A recipe's config with the overrides, and {key: value} of where it departs from the shipped recipe of its name.

    own: the recipe's file where it is not the shipped one; under a name that none is shipped by, it departs by the
    overrides alone.
    """
    module = FRAMEWORKS[framework]
    shipped: tuple[Any, int] = shipped_recipe(framework, name) or (own, 1)  # there is one or the other

    def load(file: Path, times: int) -> Any:
        cfg = module.load_config(file)
        if times > 1:
            recipe = module.recipe_of(cfg)
            module.set_schedule(cfg, **stretched(recipe, times * recipe["max_iter"]))
        return cfg

    chosen = (own, 1) if own else shipped
    cfg = load(*chosen)
    published = dict(flatten(module.to_dict(cfg if chosen == shipped else load(*shipped))))
    module.override(cfg, options)
    departures = {
        key: value
        for key, value in flatten(module.to_dict(cfg))
        if value != published.get(key) and key.rpartition(".")[2].lower() not in PLACED
    }
    return cfg, departures


def feed(setup: Setup, preprocess: dict) -> Recipe:
    """Feed images as the checkpoint was trained, unless the command line set the framework's own keys; the recipe."""
    by_hand = any(key.startswith(setup.framework.PREPROCESS) for key in setup.identity.RUN.OPTIONS[::2])
    if by_hand or not any(preflight.preprocessing(setup.recipe, preprocess)):
        return setup.recipe
    setup.framework.set_preprocess(setup.cfg, preprocess)
    mean, std = ([255 * value for value in preprocess[key]] for key in ("mean", "std"))
    return {**setup.recipe, "mean": mean, "std": std, "color_order": preprocess["color_order"]}


def _check_recipe(recipe: Recipe, arch: str, task: str, name: str) -> None:
    if recipe["arch"] != arch:
        raise InputError(
            f"recipe {name} builds a {recipe['arch']}, but the weights are a {arch}: choose the recipe or the "
            "checkpoint of the same architecture"
        )
    if recipe["mask"] != (task == "seg"):
        predicts, fitting = ("masks", "seg") if recipe["mask"] else ("boxes only", "det")
        raise InputError(
            f"recipe {name} predicts {predicts}, so its task is {fitting}, not {task}: det is a detector without "
            "masks and its box AP, seg one with masks and its mask AP"
        )
