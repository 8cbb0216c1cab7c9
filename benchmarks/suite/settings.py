"""A suite: the evaluations that a YAML file lists, and what the command line says to all or to some of them.

settings: {KEY: VALUE}              # of every evaluation that knows the key
evaluations:
  linear:                           # the name of its folder, and of its own settings: linear.KEY VALUE
    benchmark: linear               # knn, linear, semisup, coco, or cost (once for each architecture)
    config: FILE, or {PATTERN: FILE}   # beside this file; of several the first whose pattern fits the architecture
                                    # or the framework; coco chooses its recipe itself where there is none
    frameworks: [mmdet]             # coco: one evaluation in each, named NAME_FRAMEWORK
    options: [--task, det]          # further words of the evaluation's command
    settings: {KEY: VALUE}
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from benchmarks.evaluation import EVALUATIONS
from sslight.core.arguments import Parser
from sslight.core.config import CONFIGS, find_config, flatten, read_yaml
from sslight.core.errors import InputError, nearest, nearest_key

SUITES = CONFIGS / "suites"
FIELDS: dict[str, type | tuple[type, ...]] = {
    "benchmark": str,
    "config": (str, dict),
    "frameworks": list,
    "options": list,
    "settings": dict,
}
FIXED = ("WEIGHTS", "NAME", "OUTPUT_DIR")  # the suite sets them itself


@dataclass(frozen=True)
class SuiteEntry:
    """One command of a suite, for any checkpoint. `group` is its name in the file, `name` also tells the framework."""

    name: str
    group: str
    benchmark: str
    framework: str
    configs: Mapping[str, Path]
    options: tuple[str, ...]
    settings: Mapping[str, object]

    def config(self, arch: str) -> Path | None:
        """The configuration file for an architecture; None where the benchmark chooses."""
        for pattern, file in self.configs.items():
            if fnmatch(arch, pattern) or self.framework == pattern:
                return file
        if self.configs:
            raise InputError(f"evaluation '{self.name}' has no config for {arch}: it has {', '.join(self.configs)}")
        return None


def read_suite(word: str, frameworks: Sequence[str]) -> list[SuiteEntry]:
    """The evaluations of a suite file, or of the suite of this name in configs/suites.

    `frameworks` replaces those that the file names. Raises InputError for a file that is absent or no suite.
    """
    path = find_config(word)
    path = path if path.is_file() else SUITES / f"{word}.yaml"
    if not path.is_file():
        known = [file.stem for file in sorted(SUITES.glob("*.yaml")) if "evaluations:" in file.read_text()]
        raise InputError(
            f"suite not found: {word}{nearest(Path(word).stem, known)}: name a file, or one of {', '.join(known)}"
        )
    tree = read_yaml(path)
    if not isinstance(tree, dict) or not isinstance(tree.get("evaluations"), dict) or not tree["evaluations"]:
        raise InputError(f"{path} is not a suite: it needs 'evaluations:' with a name and a benchmark for each")
    _check_fields(str(path), tree, {"evaluations": dict, "settings": dict})
    shared, entries = dict(flatten(tree.get("settings") or {})), []
    for name, entry in tree["evaluations"].items():
        entries += _read_entry(path, str(name), entry, shared, frameworks)
    _check_keys(shared, entries, str(path))
    return entries


def _read_entry(path: Path, name: str, entry: object, shared: dict, frameworks: Sequence[str]) -> list[SuiteEntry]:
    where = f"{path}: evaluation '{name}'"
    if not re.fullmatch(r"[a-z0-9_]+", name):
        raise InputError(f"{where} names a folder: use small letters, digits and _")
    if not isinstance(entry, dict) or entry.get("benchmark") not in EVALUATIONS:
        raise InputError(f"{where} needs 'benchmark: ' and one of {', '.join(EVALUATIONS)}")
    _check_fields(where, entry, FIELDS)
    configs = entry.get("config") or {}
    configs = {"*": configs} if isinstance(configs, str) else configs
    if not all(isinstance(word, str) for pair in configs.items() for word in pair):
        raise InputError(f"{where}: 'config' names a file, or a file for each pattern of architectures")
    configs = {pattern: (path.parent / file).resolve() for pattern, file in configs.items()}
    for file in configs.values():
        if not file.is_file():
            raise InputError(f"{where}: config file not found: {file}")
    there = EVALUATIONS[entry["benchmark"]].frameworks
    chosen = (frameworks or entry.get("frameworks") or there) if there else [""]
    for framework in chosen:
        if framework and framework not in list(there):
            raise InputError(
                f"{where}: unknown framework '{framework}'{nearest(framework, there)}: use {', '.join(there)}"
            )
    known, options = keys_of(entry["benchmark"]), tuple(map(str, entry.get("options") or ()))
    settings = {key: value for key, value in shared.items() if key in known}
    settings |= dict(flatten(entry.get("settings") or {}))
    return [
        SuiteEntry(
            "_".join(filter(None, (name, framework))), name, entry["benchmark"], framework, configs, options, settings
        )
        for framework in chosen
    ]


def keys_of(benchmark: str) -> set[str]:
    """Every setting of a benchmark that a suite may set."""
    return set(dict(flatten(EVALUATIONS[benchmark].settings))) - set(FIXED)


def _check_fields(where: str, entry: dict, known: Mapping[str, type | tuple[type, ...]]) -> None:
    for name, value in entry.items():
        if name not in known:
            raise InputError(f"{where} has '{name}'{nearest(str(name), known)}: it may have {', '.join(known)}")
        if not isinstance(value, known[name]):
            raise InputError(f"{where}: '{name}' cannot be {value!r}; benchmarks/suite/settings.py shows what it holds")


def resolve_settings(evaluations: Sequence[SuiteEntry], given: Mapping[str, str]) -> list[dict[str, object]]:
    """The settings of each evaluation, the command line's {key: value} before the file's.

    A plain key goes to every evaluation that knows it; `NAME.KEY` to the evaluation or benchmark of that name, which
    may also know keys of its framework. Raises InputError for a key that none knows, naming the nearest.
    """
    resolved, used = [], set()
    for evaluation in evaluations:
        settings = dict(evaluation.settings)
        known, names = keys_of(evaluation.benchmark), (evaluation.benchmark, evaluation.group, evaluation.name)
        for prefix in ("", *(f"{name}." for name in dict.fromkeys(names))):  # the more special come later
            for key, value in given.items():
                own = key.removeprefix(prefix)
                if key.startswith(prefix) and (own in known or prefix):
                    settings[own] = value
                    used.add(key)
        resolved.append(settings)
    _check_keys([key for key in given if key not in used], evaluations, "command line")
    return resolved


def _check_keys(keys: Iterable[str], evaluations: Sequence[SuiteEntry], where: str) -> None:
    """Raise InputError for the first key that no evaluation knows."""
    known = {name for evaluation in evaluations for name in keys_of(evaluation.benchmark)}
    for key in keys:
        if key not in known:
            raise InputError(
                f"unknown config key '{key}' ({where}){nearest_key(key, known)}: no evaluation of the suite has it"
            )


EPILOG = """
Everything that can be wrong is looked for before anything runs. Each evaluation is a process of its own with its
results in OUTPUT_DIR/NETWORK/EVALUATION; the same command again skips what has a valid result of the same weights, data
and settings, and goes on with the rest. A failed evaluation does not stop the others: exit code 3 at the end.
Trailing KEY VALUE pairs go to every evaluation that knows the key; EVALUATION.KEY and BENCHMARK.KEY (knn, linear,
semisup, coco) to those of that name alone. benchmarks/suite/settings.py says what a suite file holds.
"""


def parser() -> Parser:
    parser = Parser(
        "sslight bench all",
        "Every evaluation of a suite, for every checkpoint and baseline, one after the other.",
        "sslight bench all --weights mine=my_checkpoint.pth random --suite paper --framework mmdet --dry-run \\\n"
        "      DATA.PATH_TO_DATA_DIR $DATA coco.DATA.PATH_TO_DATA_DIR $COCO OUTPUT_DIR results",
        "sslight bench all --weights mine=my_checkpoint.pth random --suite paper --framework mmdet \\\n"
        "      DATA.PATH_TO_DATA_DIR $DATA coco.DATA.PATH_TO_DATA_DIR $COCO OUTPUT_DIR results",
        epilog=EPILOG,
    )
    parser.add_argument(
        "--weights",
        nargs="+",
        required=True,
        metavar="CKPT",
        help="checkpoints, each as `sslight convert` takes them or NAME=CHECKPOINT; baselines: random, "
        "SUPERVISED (ImageNet weights of torchvision or timm)",
    )
    parser.add_argument("--suite", required=True, help="a file, or the name of one in configs/suites: paper, demo")
    parser.add_argument(
        "--framework",
        action="append",
        default=[],
        choices=sorted({name for part in EVALUATIONS.values() for name in part.frameworks}),
        help="detection in this alone, not in all of the suite's; may be repeated",
    )
    parser.add_argument("--arch", help="backbone of the baselines, and of checkpoints that do not tell")
    parser.add_build_options()
    parser.add_argument("--num-gpus", type=int, default=1, metavar="N", help="processes of each evaluation")
    parser.add_argument("--dry-run", action="store_true", help="show what would run, what not and why, and the cost")
    parser.add_argument(
        "--launcher",
        choices=("local", "slurm"),
        default="local",
        help="slurm: each evaluation a job of its own, which is requeued when it is preempted",
    )
    parser.add_argument(
        "--slurm",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="an option of sbatch, e.g. partition=gpu, time=1440 (minutes); may be repeated",
    )
    parser.add_overrides(dict(pair for part in EVALUATIONS.values() for pair in flatten(part.settings)))
    return parser
