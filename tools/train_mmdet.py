"""mmdet's `tools/train.py` with our backbones, any checkpoint as the start, and proof that it is what trains.

    python tools/train_mmdet.py configs/mmdet/mask_rcnn_r18_fpn_1x.py --weights last.pth --data coco --work-dir out
    torchrun --nproc_per_node 8 tools/train_mmdet.py CONFIG --launcher pytorch ...
    srun --ntasks-per-node 8 python tools/train_mmdet.py CONFIG --launcher slurm ...

Works without mmcv's compiled operators. `--weights` takes what `sslight convert` reads, or `random`; the conversion is
kept in the work directory, named by the file's hash.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sslight.core.errors import InputError  # noqa: E402
from sslight.core.processes import run_command  # noqa: E402

LAUNCHERS = {"none": "none", "pytorch": "torchrun", "slurm": "slurm"}  # by mmdet's names


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    from benchmarks.detection import (
        data as coco_data,
        launch as coco_launch,
        preflight as coco_preflight,
        weights as coco_weights,
    )
    from benchmarks.detection.command import DEFAULTS
    from benchmarks.detection.evaluation import evaluate
    from benchmarks.detection.framework import FRAMEWORKS
    from benchmarks.detection.result import read_detections
    from sslight.core import devices, distributed
    from sslight.core.config import load_config
    from sslight.core.rundir import StopSignal

    devices.prepare()
    coco_mmdet: Any = FRAMEWORKS["mmdet"]  # the module, which holds more than the contract
    from mmengine.config import DictAction

    processes = coco_launch.join(LAUNCHERS[args.launcher])
    cfg = coco_mmdet.load_config(args.config)
    if args.cfg_options:
        DictAction(["--cfg-options"], "changes")(None, changes := argparse.Namespace(), args.cfg_options)
        cfg.merge_from_dict(changes.changes)
    work_dir = Path(args.work_dir or cfg.get("work_dir") or f"work_dirs/{Path(args.config).stem}")
    work_dir.mkdir(parents=True, exist_ok=True)
    cfg.work_dir, cfg.resume = str(work_dir), args.resume
    coco_preflight.amp_possible(args.amp)
    if args.amp:
        cfg.optim_wrapper.type = "AmpOptimWrapper"
    if args.data:
        data = coco_data.find(load_config(DEFAULTS, None, ["DATA.PATH_TO_DATA_DIR", args.data]))
        with distributed.main_first():
            data = coco_data.written(data, work_dir)
        coco_mmdet.set_data(cfg, data, work_dir)
    if args.weights:
        recipe = coco_mmdet.recipe_of(cfg)
        with distributed.main_first():
            source = coco_weights.find_source(args.weights, recipe["arch"], args.seed, work_dir)
            if args.data:
                coco_preflight.check(
                    data, recipe, recipe, source.preprocess, work_dir, processes, quiet=not distributed.is_main()
                )
            weights = coco_weights.prepare(args.weights, source, "mmdet", None, work_dir)
        coco_mmdet.set_backbone(cfg, weights)
    elif not args.resume and not cfg.load_from and not cfg.model.backbone.get("init_cfg"):
        raise InputError("no weights for the backbone: add --weights CKPT, or --weights random if that is meant")
    coco_mmdet.set_batch(cfg, processes)
    coco_mmdet.check_workers(cfg, "train_dataloader.num_workers")
    cfg.randomness = dict(seed=args.seed)
    with StopSignal() as stop:
        coco_mmdet.run(cfg, stop, args.launcher)
    if args.data and distributed.is_main():
        for kind, file in coco_mmdet.detections(work_dir, coco_mmdet.has_masks(cfg)).items():
            numbers = evaluate(data.val.content, read_detections(file), kind, keep_matches=False).numbers
            print(f"{kind}: " + ", ".join(f"{name} {value:.2f}" for name, value in numbers.items()))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tools/train_mmdet.py",
        description=__doc__.splitlines()[0],
        epilog=__doc__.split("\n", 2)[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config")
    parser.add_argument("--work-dir", help="default: the config's, or work_dirs/<its name>")
    parser.add_argument("--weights", help="a checkpoint of any family, random, or SUPERVISED")
    parser.add_argument("--data", help="COCO-format data set: annotations/, train2017/, val2017/")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of the work directory")
    parser.add_argument("--amp", action="store_true", help="automatic mixed precision")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--launcher", choices=LAUNCHERS, default="none")
    parser.add_argument("--cfg-options", nargs="+", metavar="KEY=VALUE", help="override keys of the config")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    run_command(main)
