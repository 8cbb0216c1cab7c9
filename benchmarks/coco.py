"""Object detection and instance segmentation from a backbone, in mmdet or detectron2: `sslight bench coco`.

What it can be told stands in coco_options.py. Writes `result.json`, the detections, and pictures.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from fvcore.common.config import CfgNode

from benchmarks import coco_data, coco_launch, coco_preflight, coco_result, coco_weights
from benchmarks.coco_options import DEFAULTS, parser
from benchmarks.coco_recipes import choose_recipe, framework_module, resolve_schedule
from pretrain import distributed
from pretrain.backbones import canonical_arch
from pretrain.config import flatten, load_config, to_dict
from pretrain.errors import InputError, run_command
from pretrain.rundir import StopSignal, open_run

FREE = ("LOG_PERIOD", "DATA.WORKERS", "SOLVER.CHECKPOINT_PERIOD", "EVAL.", "OUTPUT_DIR", "RUN.TRIALS")  # of resuming


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_intermixed_args(argv)
    started = time.time()
    args.overrides += ["TRAIN.AMP", "True"] * args.amp
    settings, framework_options = _split_overrides(args.overrides)
    framework = framework_module(args.framework)
    processes = coco_launch.processes(args.launcher, args.num_gpus)
    prepare_only = processes > 1 and args.launcher == "none"  # this process checks and converts, its children train
    data = coco_data.find(settings)
    known = args.weights in (coco_weights.RANDOM, coco_weights.SUPERVISED)
    if not known:
        source, family = coco_weights.find_source(args.weights, args.arch, settings.SEED, Path(settings.OUTPUT_DIR))
    elif not args.arch:
        raise InputError(f"--weights {args.weights} needs --arch, e.g. --arch resnet18")
    arch = canonical_arch(args.arch) if known else source.arch
    chosen = args.config or choose_recipe(args.framework, args.task, arch, args.neck, args.schedule)
    file = Path(chosen)
    recipe_cfg = framework.load_config(file, framework_options)
    recipe = framework.recipe_of(recipe_cfg)
    _check_recipe(recipe, arch, args.task, file)
    schedule = resolve_schedule(recipe, settings, args.scale_lr)
    if args.proxy:
        data, schedule = coco_preflight.proxy(data, schedule, args.proxy, settings)
    framework.set_schedule(recipe_cfg, **schedule)

    identity = _identity(args, settings, file, "" if known else source.sha256, data.classes, processes)
    with open_run(identity, FREE) as out_dir, StopSignal() as stop:
        with coco_launch.main_first():
            if known:
                source, family = coco_weights.find_source(args.weights, arch, settings.SEED, out_dir)
            coco_preflight.check(data, recipe, schedule, source.preprocess, settings, out_dir, processes,
                                 quiet=not distributed.is_main() or (prepare_only and not args.check))
            if args.check:
                return 0
            weights = coco_weights.prepare(args.weights, source, family, args.framework, recipe.get("model"), out_dir)
            data = coco_preflight.written(data, out_dir)
        runs = []
        for trial in range(0 if prepare_only else args.trials):
            work_dir = out_dir if args.trials == 1 else out_dir / f"seed_{settings.SEED + trial}"
            work_dir.mkdir(exist_ok=True)
            cfg = framework.copy_config(recipe_cfg)
            framework.adapt(cfg, settings, data, weights, processes, settings.SEED + trial, work_dir)
            iterations = framework.train_and_test(cfg, stop)
            runs.append(coco_result.Run(settings.SEED + trial, iterations,
                                        framework.detections(work_dir, recipe["mask"])))
        if runs and distributed.is_main():
            coco_result.write(out_dir, args, settings, data, weights, runs, schedule, framework.to_dict(cfg), file.stem,
                              time.time() - started)
    if prepare_only:
        coco_launch.spread(main, sys.argv[1:] if argv is None else argv, processes)
    return 0


def _split_overrides(pairs: list[str]) -> tuple[CfgNode, list[str]]:
    """Our settings, and the pairs that belong to the framework's config."""
    if len(pairs) % 2:
        raise InputError(f"overrides are KEY VALUE pairs; '{pairs[-1]}' has no value")
    known = dict(flatten(DEFAULTS))
    ours, theirs = [], []
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        (ours if key in known or key.split(".")[0] in ("DATA", "EVAL", "TRAIN") else theirs).extend([key, value])
    return load_config(DEFAULTS, None, ours), theirs


def _check_recipe(recipe: dict, arch: str, task: str, file: Path) -> None:
    if recipe["arch"] != arch:
        raise InputError(f"{file} builds a {recipe['arch']}, but the weights are a {arch}: choose the recipe or the "
                         "checkpoint of the same architecture")
    if recipe["mask"] != (task == "seg"):
        kind, fitting = ("Mask", "seg") if recipe["mask"] else ("Faster", "det")
        raise InputError(f"{file} is {kind} R-CNN, so its task is {fitting}, not {task}: box AP is Faster R-CNN's, "
                         "mask AP Mask R-CNN's")


def _identity(args: argparse.Namespace, settings: CfgNode, file: Path, digest: str, classes: tuple,
              processes: int) -> CfgNode:
    """What decides a run's result: a directory belongs to one such combination."""
    run = {"FRAMEWORK": args.framework, "TASK": args.task, "RECIPE": file.stem, "WEIGHTS": digest or args.weights,
           "NUM_GPUS": processes, "PROXY": args.proxy, "SCALE_LR": args.scale_lr, "TRIALS": args.trials,
           "CATEGORIES": list(classes),
           "OPTIONS": list(_split_overrides(args.overrides)[1])}
    return CfgNode({**to_dict(settings), "RUN": run})


if __name__ == "__main__":
    run_command(main)
