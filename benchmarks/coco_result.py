"""From the detections of one or more runs to `result.json` and pictures."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import coco_pictures
from benchmarks.coco_data import CocoData
from benchmarks.coco_eval import Evaluation, bootstrap, evaluate
from benchmarks.coco_weights import Weights
from benchmarks.result import write_result
from pretrain.config import to_dict


@dataclass(frozen=True)
class Run:
    """One training with one seed: the iterations done and the result files by kind."""

    seed: int
    iterations: int
    files: dict[str, Path]


def write(out_dir: Path, args, settings, data: CocoData, weights: Weights, runs: list[Run], schedule: dict,
          framework_config: dict, protocol: str, departures: dict, seconds: float) -> Path:
    """Evaluate every run, write `result.json` and the pictures asked for, print the headline; returns the path."""
    kinds = ("mask", "box") if args.task == "seg" else ("box",)
    found = {kind: [evaluate(data.val.content, read_detections(run.files[kind]), kind, settings.EVAL.BACKEND,
                             keep_matches=settings.EVAL.BOOTSTRAP > 0) for run in runs] for kind in kinds}
    metrics, undefined = {}, []
    for kind in kinds:
        intervals = bootstrap(found[kind], settings.EVAL.BOOTSTRAP, settings.SEED)
        for name in found[kind][0].numbers:
            values = [evaluation.numbers[name] for evaluation in found[kind]]
            if math.isnan(values[0]):
                undefined.append(f"{kind}_{name}")
                continue
            metric = {"value": float(np.mean(values)), "interval": list(intervals[name]) if name in intervals else None}
            if len(values) > 1:
                metric["std"] = float(np.std(values, ddof=1))
            metrics[f"{kind}_{name}"] = metric
    per_seed = [{"seed": run.seed, "iterations": run.iterations,
                 **{f"{kind}_{name}": value for kind in kinds for name, value in found[kind][i].numbers.items()
                    if not math.isnan(value)}} for i, run in enumerate(runs)]
    pictures = coco_pictures.write(out_dir / "pictures", data.val, read_detections(runs[0].files[kinds[0]]), args.show)
    config = {"settings": to_dict(settings), "schedule": schedule, "framework": args.framework, "task": args.task,
              "framework_config": json.loads(json.dumps(framework_config, default=str))}
    if args.proxy:
        protocol = f"{protocol} (proxy {args.proxy:g})"
    name = {"name": settings.NAME} if settings.NAME else {}
    path = write_result(
        out_dir, benchmark="coco", protocol=protocol, checkpoint={**weights.checkpoint, **name},
        data={"path": settings.DATA.PATH_TO_DATA_DIR or str(data.train.json.parent), "fingerprint": data.fingerprint(),
              "counts": {"train": data.train.image_count, "val": data.val.image_count}},
        metrics=metrics, per_seed=per_seed, config=config, seconds=seconds, framework=args.framework, task=args.task,
        departures=departures, undefined=undefined, iterations=runs[0].iterations, proxy=args.proxy or None,
        schedule=schedule,
        per_category={kind: _mean_per_category(found[kind]) for kind in kinds},
        detections=[{kind: str(file.relative_to(out_dir)) for kind, file in run.files.items()} for run in runs],
        pictures=[str(picture.relative_to(out_dir)) for picture in pictures])
    if len(runs) > 1:
        for run in per_seed:
            print(f"seed {run['seed']}: " + ", ".join(f"{kind} AP {run.get(f'{kind}_AP', math.nan):.2f}"
                                                      for kind in kinds))
    for kind in kinds:
        print(f"{kind} AP {_shown(metrics, f'{kind}_AP')}, AP50 {_shown(metrics, f'{kind}_AP50')}")
    print(f"written: {path}")
    return path


def read_detections(file: Path) -> list[dict]:
    """Entries of a COCO result file."""
    return json.loads(file.read_text())


def _mean_per_category(evaluations: list[Evaluation]) -> dict[str, float]:
    return {name: round(float(np.mean([e.per_category[name] for e in evaluations])), 4)
            for name in evaluations[0].per_category}


def _shown(metrics: dict, name: str) -> str:
    if name not in metrics:
        return "undefined"
    metric = metrics[name]
    return (f"{metric['value']:.2f}" + (f" +- {metric['std']:.2f}" if "std" in metric else "")
            + (f" [{metric['interval'][0]:.2f}, {metric['interval'][1]:.2f}]" if metric["interval"] else ""))
