"""Object detection and instance segmentation from a backbone, in mmdet or detectron2: `sslight bench coco`.

    sslight bench coco --framework mmdet --task seg --weights last.pth DATA.PATH_TO_DATA_DIR coco OUTPUT_DIR out

`--task det` trains Faster R-CNN and gives the published table's box AP, `--task seg` Mask R-CNN and its mask AP. The
recipe is chosen by framework, task, architecture, neck and schedule (configs/mmdet, configs/detectron2), or named by
--config. Trailing KEY VALUE pairs set the keys of DEFAULTS below, or, by their own names, keys of the framework's
config. The same command goes on after an interruption. Writes `result.json`, the detections, and pictures.

--num-gpus N trains on N GPUs of this machine. On many machines, start the same command once per GPU:

    torchrun --nnodes 2 --nproc_per_node 8 ... sslight.py bench coco --launcher torchrun --framework ...
    srun --nodes 2 --ntasks-per-node 8 --gpus-per-node 8 sslight bench coco --launcher slurm --framework ...
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from fvcore.common.config import CfgNode

from benchmarks import coco_data, coco_launch, coco_preflight, coco_result, coco_weights
from benchmarks.coco_recipes import FRAMEWORKS, choose_recipe, framework_module, resolve_schedule
from pretrain import distributed
from pretrain.backbones import canonical_arch
from pretrain.config import flatten, load_config, to_dict
from pretrain.errors import InputError, run_command
from pretrain.rundir import StopSignal, open_run

DEFAULTS = {
    "SEED": 0,  # of the random parts of the detector, of a random backbone, and of the data's order
    "OUTPUT_DIR": "",
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
    "TRAIN": {"AMP": False},
    "EVAL": {
        "BACKEND": "faster",  # faster (faster-coco-eval) or pycocotools
        "BOOTSTRAP": 200,  # samples of the val images for the 95% intervals; 0: none
    },
}
FREE = ("LOG_PERIOD", "DATA.WORKERS", "SOLVER.CHECKPOINT_PERIOD", "EVAL.", "OUTPUT_DIR", "RUN.TRIALS")  # of resuming


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_intermixed_args(argv)
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sslight bench coco", description=__doc__.splitlines()[0],
                                     epilog=__doc__.split("\n", 2)[2],
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--framework", choices=FRAMEWORKS, required=True)
    parser.add_argument("--task", choices=("det", "seg"), required=True,
                        help="det: Faster R-CNN, box AP; seg: Mask R-CNN, mask AP")
    parser.add_argument("--weights", required=True,
                        help="a checkpoint that `sslight convert` reads, random, or SUPERVISED (torchvision's ImageNet "
                             "ones; timm's where torchvision has none)")
    parser.add_argument("--schedule", choices=("1x", "2x"), default="1x")
    parser.add_argument("--arch", help="backbone; a checkpoint's own by default")
    parser.add_argument("--neck", choices=("fpn", "p4p6", "c4", "vitdet"),
                        help="default: fpn for ResNets, the published p4p6 for MobileNetV2, vitdet for ViTs")
    parser.add_argument("--config", help="a recipe of the framework instead of the chosen one")
    parser.add_argument("--num-gpus", type=int, default=1, metavar="N",
                        help="processes on this machine, one per GPU (without GPUs they share the CPU)")
    parser.add_argument("--launcher", choices=coco_launch.LAUNCHERS, default="none",
                        help="what started this process as one of many, on one or more machines")
    parser.add_argument("--amp", action="store_true", help="automatic mixed precision: TRAIN.AMP True")
    parser.add_argument("--scale-lr", action="store_true", help="scale the learning rate with the batch, linearly")
    parser.add_argument("--proxy", type=float, metavar="FRACTION", default=0.0,
                        help="train on this fraction of the images with the schedule shortened to match")
    parser.add_argument("--trials", type=int, default=1, help="repeat with this many seeds, SEED and up")
    parser.add_argument("--show", type=int, metavar="N", default=0, help="pictures of predictions beside the truth")
    parser.add_argument("--check", action="store_true", help="only the checks that every run begins with")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE")
    return parser


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
