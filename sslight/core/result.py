"""The `result.json` of one evaluation: what was measured, on what, from which weights, and by which code.

`metrics` maps a name to `{"value": float, "interval": [low, high] or None}`; further fields (`std` over seeds,
`unit`, `note`) are free. Accuracies and average precisions are in percent (0 to 100). `interval` is the 95% interval
of the value and contains it; None where no interval was computed. The headline metric comes first: `top1` of `knn`,
`linear`, `semisup` and `finetune`; `box_AP` and `mask_AP` of `coco`.

`per_seed` is a list with one dict a run: `seed` (int) and that run's plain numbers under the names of `metrics`.
`checkpoint` holds `path`, `sha256`, `arch` (timm's name), `method` and `family`; for a random network `family` is
"random" and `sha256` is the hash of its seed-made tensors or "". `data` holds `path`, `counts` (a dict of split name to
number of images) and `fingerprint`. `protocol` names the recipe (the config's name), `config` is the whole recipe.
Further top-level fields (a confusion list, a k-sweep, a PR curve) are the benchmark's own.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from sslight.core.errors import InputError
from sslight.core.files import write_json
from sslight.core.processes import CALLED

SCHEMA = "sslight-result-1"
CHECKPOINT = ("path", "sha256", "arch", "method", "family")
DATA = ("path", "counts", "fingerprint")
REQUIRED = (
    "schema",
    "benchmark",
    "protocol",
    "checkpoint",
    "data",
    "metrics",
    "per_seed",
    "config",
    "environment",
    "git",
    "command",
    "seconds",
)
PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "mmdet",
    "mmengine",
    "mmcv",
    "mmcv-lite",
    "detectron2",
    "faster-coco-eval",
)


def write_result(
    out_dir: Path | str,
    *,
    benchmark: str,
    protocol: str,
    checkpoint: Mapping,
    data: Mapping,
    metrics: Mapping[str, Mapping],
    per_seed: Sequence[Mapping],
    config: Mapping,
    seconds: float,
    **extra,
) -> Path:
    """Validate and write `out_dir/result.json` atomically; returns its path. Raises ValueError if it is malformed."""
    result = {
        "schema": SCHEMA,
        "benchmark": benchmark,
        "protocol": protocol,
        "checkpoint": dict(checkpoint),
        "data": dict(data),
        "metrics": dict(metrics),
        "per_seed": [dict(run) for run in per_seed],
        "config": dict(config),
        "seconds": float(seconds),
        "environment": environment(),
        "git": git_state(),
        "command": command(),
        **extra,
    }
    fault = _fault(result)
    if fault:
        raise ValueError(f"malformed result: {fault}")
    path = Path(out_dir) / "result.json"
    write_json(path, result)
    return path


def read_result(path: Path | str) -> dict:
    """Read and validate a result file, or the `result.json` of a directory. Raises InputError naming the fault."""
    path = Path(path)
    path = path / "result.json" if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"result not found: {path}; run the benchmark that writes it")
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"not a result file: {path} ({error})") from None
    fault = _fault(result)
    if fault:
        raise InputError(f"not a result of this project: {path} ({fault})")
    return result


def _fault(result: object) -> str:
    """What is wrong with a result, in a few words; an empty string when nothing is."""
    if not isinstance(result, dict):
        return "it is not a JSON object"
    missing = [key for key in REQUIRED if key not in result]
    if missing:
        return f"lacks {', '.join(missing)}"
    if result["schema"] != SCHEMA:
        return f"schema is {result['schema']!r}, not {SCHEMA!r}"
    if not re.fullmatch(r"[a-z][a-z0-9_]*", str(result["benchmark"])):
        return f"benchmark {result['benchmark']!r} is no evaluation's name"
    for name, keys in (("checkpoint", CHECKPOINT), ("data", DATA)):
        if not isinstance(result[name], dict):
            return f"{name} is not an object"
        missing = [key for key in keys if key not in result[name]]
        if missing:
            return f"{name} lacks {', '.join(missing)}"
    if not isinstance(result["data"]["counts"], dict):
        return "data.counts is not an object"
    if not isinstance(result["metrics"], dict) or not result["metrics"]:
        return "metrics is empty or not an object"
    for name, metric in result["metrics"].items():
        fault = _metric_fault(metric)
        if fault:
            return f"metrics.{name} {fault}"
    runs = result["per_seed"]
    if not isinstance(runs, list) or any(not isinstance(run, dict) or "seed" not in run for run in runs):
        return "per_seed is not a list of objects with a seed"
    if not isinstance(result["config"], dict) or not _finite(result["seconds"]):
        return "config is not an object or seconds not a number"
    return ""


def _metric_fault(metric: object) -> str:
    if not isinstance(metric, dict) or not _finite(metric.get("value")):
        return "has no finite value"
    if "interval" not in metric:
        return "has no interval (null where none was computed)"
    interval = metric["interval"]
    if interval is None:
        return ""
    if not isinstance(interval, list | tuple) or len(interval) != 2 or not all(map(_finite, interval)):
        return "has an interval that is not [low, high]"
    if not interval[0] - 1e-9 <= metric["value"] <= interval[1] + 1e-9:
        return f"lies outside its own interval {list(interval)}"
    return ""


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def command() -> str:
    """What was typed, fit to be typed again in `environment`'s directory; with `torchrun` where that started it.

    Of a call from Python: the command that does the same.
    """
    called = CALLED.get()
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    words = ["-m", spec.name.removesuffix(".__main__")] if spec else sys.argv[:1]
    words = ["-m", "sslight"] if called else words
    if "TORCHELASTIC_RUN_ID" in os.environ:
        local, world = (int(os.environ[name]) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
        nodes = ["--nnodes", str(world // local)] if world > local else []
        words = ["torchrun", *nodes, "--nproc_per_node", str(local), *words]
    elif called or Path(words[0]).name == "sslight":
        words = ["sslight"]
    else:
        words = ["python", *words]
    return shlex.join([*words, *(called or sys.argv[1:])])


def environment() -> dict:
    """Versions of Python and of what is installed of PACKAGES, the device, and where the command ran."""
    import torch

    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu ({platform.machine()})"
    return {"versions": versions, "device": device, "threads": torch.get_num_threads(), "directory": os.getcwd()}


def git_state() -> dict:
    """Commit of this code and whether it has uncommitted changes; empty outside a git checkout."""
    folder = Path(__file__).resolve().parent

    def ask(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):
        return {}
