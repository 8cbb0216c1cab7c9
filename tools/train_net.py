"""detectron2's `tools/train_net.py` with our backbones, any checkpoint as MODEL.WEIGHTS, and proof of what trains.

    python tools/train_net.py --config-file configs/detectron2/mask_rcnn_r18_fpn_1x.yaml --num-gpus 8 \\
        MODEL.WEIGHTS last.pth DATA.PATH_TO_DATA_DIR coco OUTPUT_DIR out

MODEL.WEIGHTS takes what `sslight convert` reads, or `random`; a detectron2 checkpoint is used as it is. The conversion
is kept in OUTPUT_DIR, named by the file's hash. Without DATA.PATH_TO_DATA_DIR, detectron2's own data sets serve
(DETECTRON2_DATASETS). Detections are evaluated by this project's COCO evaluation. The schedule 2x is
SOLVER.MAX_ITER 180000 SOLVER.STEPS "(120000, 160000)".
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.detection.framework import FRAMEWORKS  # noqa: E402
from benchmarks.detection.launch import one_group  # noqa: E402
from convert.safe_files import flatten_content, read_file  # noqa: E402
from sslight.core import compat  # noqa: E402
from sslight.core.errors import InputError  # noqa: E402
from sslight.core.processes import run_command  # noqa: E402

DATA_KEY = "DATA.PATH_TO_DATA_DIR"


def main(argv: list[str] | None = None) -> int:
    FRAMEWORKS["detectron2"]  # says how to install what is missing
    from detectron2.engine import default_argument_parser, launch

    parser = default_argument_parser(epilog=__doc__)
    args = parser.parse_args(argv)
    if not args.config_file:
        raise InputError("no recipe: add --config-file configs/detectron2/NAME.yaml")
    cfg = prepare(
        args
    )  # also before several processes start, so that a fault is reported once and a conversion runs once
    if args.num_machines * args.num_gpus > 1:
        with one_group(args.num_gpus):
            launch(
                _one_of_many,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(args,),
            )
    else:
        train(args, cfg)
    return 0


def _one_of_many(args) -> None:
    run_command(lambda: train(args, prepare(args, quiet=True)))


def prepare(args, quiet: bool = False):
    """The resolved config: overrides, data set, converted backbone, all of it checked."""
    from detectron2.data import MetadataCatalog

    from benchmarks.detection import data as coco_data, preflight, weights as coco_weights
    from benchmarks.detection.command import DEFAULTS
    from benchmarks.detection.in_detectron2 import run as coco_detectron2
    from pretrain.backbones import write_options
    from sslight.core import devices
    from sslight.core.config import load_config

    options = list(args.opts)
    folder, source, processes = "", None, args.num_machines * args.num_gpus
    if DATA_KEY in options[::2]:
        at = 2 * options[::2].index(DATA_KEY)
        folder = options[at + 1]
        del options[at : at + 2]
    cfg = coco_detectron2.load_config(args.config_file)
    coco_detectron2.override(cfg, options)
    devices.prepare("cpu" if cfg.MODEL.DEVICE == "cpu" else "auto", args.num_gpus)
    if folder:
        data = coco_data.find(load_config(DEFAULTS, None, [DATA_KEY, folder]))
        data = coco_data.written(data, Path(cfg.OUTPUT_DIR))
        coco_detectron2.set_data(cfg, data)
    else:
        sets_present(cfg, evaluated_only=args.eval_only)
    classes = list(MetadataCatalog.get(cfg.DATASETS.TEST[0]).thing_classes)
    coco_detectron2.on_this_device(cfg, processes)
    preflight.amp_possible(cfg.SOLVER.AMP.ENABLED)
    if not args.eval_only:
        coco_detectron2.check_workers(cfg, processes, args.num_gpus, "DATALOADER.NUM_WORKERS")
    recipe = coco_detectron2.recipe_of(cfg)
    out_dir, weights = Path(cfg.OUTPUT_DIR), cfg.MODEL.WEIGHTS
    last = out_dir / "last_checkpoint"
    if args.resume and last.is_file():
        check_classes(out_dir / last.read_text().strip(), classes)
    elif not weights:
        raise InputError("MODEL.WEIGHTS is empty: name a checkpoint, or MODEL.WEIGHTS random if that is meant")
    if weights and "://" not in weights and is_detectron2(weights):
        check_classes(weights, classes)
    elif weights and "://" not in weights:
        if args.eval_only:
            raise InputError(f"--eval-only needs a trained detector, and {weights} is a backbone")
        source = coco_weights.find_source(weights, recipe["arch"], max(cfg.SEED, 0), out_dir)
    if folder and not args.eval_only:
        preflight.check(data, recipe, recipe, source.preprocess if source else None, out_dir, processes, quiet=quiet)
    if source:
        ready = coco_weights.prepare(weights, source, "detectron2", recipe["model"], out_dir)
        cfg.MODEL.WEIGHTS, cfg.MODEL.TIMM.OPTIONS = str(ready.file), write_options(ready.options)
    cfg.freeze()
    return cfg


def sets_present(cfg, evaluated_only: bool) -> None:
    """detectron2's own data sets lie below DETECTRON2_DATASETS. Raises InputError for one that does not."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from benchmarks.detection.data import read_annotations

    for name in (*(() if evaluated_only else cfg.DATASETS.TRAIN), *cfg.DATASETS.TEST):
        if name not in DatasetCatalog.list():
            raise InputError(f"detectron2 knows no data set '{name}': add {DATA_KEY} PATH, or register it")
        known = MetadataCatalog.get(name)
        place = Path(known.get("json_file") or known.get("dirname") or ".")
        if not place.exists():
            raise InputError(
                f"data set '{name}' not found: {place} is missing; set DETECTRON2_DATASETS to the folder "
                f"that holds it, or add {DATA_KEY} PATH (annotations/, train2017/, val2017/)"
            )
        if name in cfg.DATASETS.TEST and known.get("json_file"):
            read_annotations(place)  # which our evaluation will do, too: faults are found before the training


def is_detectron2(weights: str) -> bool:
    """Whether a file has detectron2's names: tensors under `backbone.bottom_up.`, `backbone.net.` or `roi_heads.`."""
    if weights in ("random", "SUPERVISED"):
        return False
    keys = flatten_content(read_file(weights)[0], weights).tensors
    return any(part in key for key in keys for part in ("backbone.bottom_up.", "backbone.net.", "roi_heads."))


def check_classes(file: Path | str, classes: list[str]) -> None:
    """A trained head of other classes than the data's would be dropped, or read as theirs, without an error."""
    content: Any = read_file(file)[0]
    known = content.get("classes", {}).get("names")  # in files of ours; detectron2's own say only how many
    heads = [
        len(value) - 1
        for key, value in flatten_content(content, str(file)).tensors.items()
        if key.endswith("roi_heads.box_predictor.cls_score.weight")
    ]
    if heads and (heads[0] != len(classes) or known not in (None, classes)):
        absent = f" (absent from the data: {', '.join(sorted({*known} - {*classes})[:5]) or 'none'})" if known else ""
        raise InputError(
            f"the head in {file} knows {heads[0]} categories, the data has {len(classes)} or another "
            f"order{absent}: go on with the data it was trained on, or start from a backbone"
        )


def train(args, cfg) -> None:
    """One process's part, as in detectron2's own script."""
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.engine import default_setup

    from benchmarks.detection.in_detectron2 import run as coco_detectron2
    from benchmarks.detection.in_detectron2.parts import Trainer
    from sslight.core.rundir import StopSignal

    default_setup(cfg, args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR).resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        report(Trainer.test(cfg, model))
        return
    with StopSignal() as stop:
        Trainer.signal = stop
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        if trainer.start_iter == 0 and "://" not in cfg.MODEL.WEIGHTS:
            coco_detectron2.prove_backbone(trainer.model, cfg)
        try:
            trainer.train()
        except FloatingPointError as error:
            raise InputError(coco_detectron2.diverged(error)) from None
        report(compat.last_results(trainer))


def report(results: Mapping) -> None:
    from detectron2.utils import comm

    if comm.is_main_process():
        for task, numbers in (results or {}).items():
            print(f"{task}: " + ", ".join(f"{name} {value:.2f}" for name, value in numbers.items()))


if __name__ == "__main__":
    run_command(main)
