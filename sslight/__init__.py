"""Pre-train small vision backbones without labels, and measure what any checkpoint is worth downstream.

The functions here are the commands of the same names, for notebooks and scripts: they take the commands' options as
keyword arguments, make the same checks, write the same files, raise InputError where a command would print `error: ...`
and Stopped where it would print `stopped: ...`, and return the result. Importing this package imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslight.core.errors import InputError, Stopped

if TYPE_CHECKING:
    from torch import nn

    from benchmarks.report.page import Report
    from convert.convert_ckpt import convert

    __version__: str

__all__ = [
    "InputError",
    "Pretrained",
    "Stopped",
    "__version__",
    "convert",
    "evaluate",
    "load_backbone",
    "pretrain",
    "report",
]


@dataclass(frozen=True)
class Pretrained:
    """A finished pre-training: its run directory, the last checkpoint, the exported backbone.

    metrics: the last value of everything in `metrics.jsonl`, e.g. `loss` and, where it is measured, `knn_top1`.
    """

    folder: Path
    checkpoint: Path
    backbone: Path
    metrics: dict[str, float]


def pretrain(
    *,
    out: Path | str,
    data: Path | str | None = None,
    cfg: Path | str | None = None,
    arch: str | None = None,
    seed: int | None = None,
    **settings: Any,
) -> Pretrained | None:
    """Pre-train a backbone, or go on with the run in `out`: `sslight pretrain`.

    Parameters
    ----------
    out: the run directory. `data`: a directory with `train/` (and `val/`, for k-NN).
    cfg: a YAML file, e.g. "configs/pretrain/dino_cnn_sslight.yaml".
    arch: the backbone, by timm's name or an alias. `seed`: of everything random.
    settings: config keys of pretrain/settings.py, as `**{"TRAIN.ACCUMULATE": 8}`, and the command's other options in
        small letters, as `show_views="views.png"`.

    Returns None where only a dry run or a picture of views was asked for. Raises InputError for anything wrong, and
    Stopped after a Ctrl-C or another signal to stop, with the state saved: the same call goes on from there.
    """
    from pretrain.settings import pretrain as parser
    from sslight.core.arguments import words_of

    words = words_of(settings, cfg=cfg, arch=arch, data=data, out=out, seed=seed)
    args = parser().parse_intermixed_args(words)  # a wrong option is answered before torch is imported
    from pretrain.state import last_checkpoint
    from pretrain.train import main
    from sslight.core import devices, logs
    from sslight.core.processes import as_function

    with as_function("pretrain", *words), devices.restored():
        main(words)
    if args.dry_run or args.show_views:
        return None
    out = Path(out)
    return Pretrained(out, last_checkpoint(out), out / "backbone.safetensors", logs.last_metrics(out))


def evaluate(
    name: str,
    *,
    weights: Path | str | Sequence[str] | None = None,
    data: Path | str | None = None,
    out: Path | str | None = None,
    cfg: Path | str | None = None,
    arch: str | None = None,
    seed: int | None = None,
    **settings: Any,
) -> Any:
    """Measure a checkpoint downstream: `sslight bench NAME`.

    Parameters
    ----------
    name: one of `benchmarks.evaluation.EVALUATIONS`: "knn", "linear", "semisup", "coco", "cost".
    weights: a checkpoint as `convert.sources` names it, or "random" with `arch`; for "cost" one or several
        checkpoints or architectures.
    data: the data directory. `out`: where everything is written; a finished or stopped run there goes on.
    cfg: a YAML file, e.g. "configs/classification/knn.yaml".
    arch: the backbone, by timm's name or an alias, where the checkpoint does not tell it. `seed`: of the (first) run.
    settings: config keys, as `**{"KNN.K": [20]}`, and the command's other options in small letters, as `trials=3` or
        `framework="mmdet"`.

    Returns the content of `result.json` (docs/results.md), of "cost" a dict of network to the content of `cost.json`;
    None on all but the first process of a group, and where nothing was measured (`check=True` of "coco").
    Raises InputError for anything wrong, and Stopped as `pretrain` does.
    """
    from benchmarks.evaluation import EVALUATIONS
    from sslight.core.arguments import words_of

    evaluation = EVALUATIONS[name]
    words = words_of(settings, weights=weights, cfg=cfg, arch=arch, data=data, out=out, seed=seed)
    request = evaluation.check(words)  # loads no torch
    from sslight.core import devices
    from sslight.core.processes import as_function

    with as_function("bench", name, *words), devices.restored():
        evaluation.run(request)
    return evaluation.result(request) if os.environ.get("RANK", "0") == "0" else None


def load_backbone(
    weights: Path | str,
    *,
    family: str | None = None,
    arch: str | None = None,
    network: str | None = None,
    from_detector: bool = False,
    options: Sequence[str] = (),
) -> nn.Module:
    """The backbone of a checkpoint of any family, as timm's network in eval mode on the CPU.

    images [N, 3, H, W] -> pooled features [N, feature_dim]. Arguments as of `convert`. The network carries
    `arch` (timm's name), `feature_dim`, `preprocess` (mean, std, color_order, size: how images must be fed) and
    `transform`, which makes of a PIL image what it expects, [3, size, size], by a central crop. Raises InputError for
    a file that cannot be read, or does not fill the network to the last tensor.
    """
    from convert.reader import load_network
    from convert.verify import transform
    from pretrain.backbones import read_options

    module, checkpoint = load_network(
        weights,
        family=family,
        arch=arch,
        network=network,
        from_detector=from_detector,
        options=read_options(options),
    )
    module.preprocess = dict(checkpoint.preprocess)
    module.transform = transform(module.preprocess)
    return module.eval()


def report(
    *places: Path | str,
    out: Path | str | Sequence[Path | str] = (),
    diff: tuple[Path | str, Path | str] | None = None,
    published: Path | str | None = None,
    title: str | None = None,
) -> Report:
    """One page over many results: `sslight report`.

    Parameters
    ----------
    places: folders with results, and run directories; or `diff`: two folders or result files to compare.
    out: the files to write (.html, .md, .csv, .json). `published`: a YAML file of published numbers. `title`: heading.

    Returns the report: `rows` (a value with its interval beside the baseline's), `entries` (the results), `faults`
    (files that were left out, and why). Raises InputError for anything wrong.
    """
    from benchmarks.report.report import build, parser
    from sslight.core.arguments import words_of

    files = [out] if isinstance(out, str | Path) else list(out)
    words = [str(word) for name, given in (("--diff", diff), ("--out", files)) if given for word in (name, *given)]
    return build(
        parser().parse_intermixed_args([*map(str, places), *words, *words_of({}, published=published, title=title)])
    )


def __getattr__(name: str) -> Any:
    """`convert`, as it is written in convert/convert_ckpt.py, and `__version__`: looked up when first used."""
    value: Any
    if name == "convert":
        from convert.convert_ckpt import convert as value
    elif name == "__version__":
        value = _version()
    else:
        raise AttributeError(f"module 'sslight' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    """The installed version; in a source tree on the path that of its pyproject.toml."""
    from importlib import metadata

    try:
        return metadata.version("sslight")
    except metadata.PackageNotFoundError:
        import tomllib

        file = Path(__file__).resolve().parents[1] / "pyproject.toml"
        project = tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return project.get("project", {}).get("version", "unknown")
