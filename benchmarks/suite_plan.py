"""Before anything runs: what can be known of a part, whether its result is there already, and how much work it is."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import coco, coco_preflight
from benchmarks.coco_recipes import NoRecipe
from benchmarks.identity import identity
from benchmarks.labelled import describe, open_splits
from benchmarks.result import read_result
from benchmarks.settings import FREE_KEYS
from benchmarks.suite_cost import Work, classification_work, detection_work
from benchmarks.suite_parts import Part
from benchmarks.weights import load_subject
from convert.reader import IMAGENET
from pretrain.config import flatten, to_dict
from pretrain.errors import InputError
from pretrain.rundir import check_same_run


@dataclass(frozen=True)
class Step:
    """A part of the plan. `skipped` says why it is not run: its result is there (`done`), or it cannot be.

    `caches`: it keeps features that others of its network use, too.
    """

    part: Part
    work: Work | None = None
    skipped: str = ""
    done: bool = False
    caches: bool = False


@dataclass(frozen=True)
class Facts:
    """What decides a part's result beside its recipe; `sha256` is "" for random weights, which `settings` tell."""

    sha256: str
    fingerprint: str
    settings: dict
    runs: int
    work: Work
    caches: bool = False


def make_plan(parts: Sequence[Part], processes: int, here: bool) -> list[Step]:
    """Look at every part; `here` tells that it will run on this machine.

    Raises InputError for the first part that cannot run, before any does.
    """
    steps, splits = [], {}
    for part in parts:
        try:
            facts = _detection(part, here) if part.evaluation.benchmark == "coco" \
                else _classification(part, processes, splits)
        except NoRecipe as error:
            steps.append(Step(part, skipped=str(error)))
            continue
        except InputError as error:
            raise InputError(f"{part.name}: {error}") from None
        done = is_done(part.folder, facts)
        steps.append(Step(part, facts.work, "its result is there" if done else "", done, facts.caches))
    return steps


def _classification(part: Part, processes: int, splits: dict) -> Facts:
    name = part.evaluation.benchmark
    module = importlib.import_module(f"benchmarks.{name}")
    cfg, _ = module.configure(part.words[1:])
    place = (cfg.DATA.PATH_TO_DATA_DIR, cfg.DATA.NUM_CLASSES)
    if place not in splits:  # listing the images of a large set takes its time
        train, val = open_splits(cfg)
        splits[place] = train, val, describe(cfg, train, val)["fingerprint"]
    train, val, fingerprint = splits[place]
    subject = load_subject(cfg)
    module.ready(cfg, train, val, subject)
    check_same_run(part.folder, identity(cfg, subject, fingerprint, processes), FREE_KEYS)
    return Facts(subject.about["sha256"], fingerprint, deciding(to_dict(cfg), FREE_KEYS),
                 1 if name == "knn" else len(cfg.SEEDS), classification_work(name, cfg, len(train), len(val), subject),
                 name == "knn" or (name == "linear" and cfg.PROBE.CACHED))


def _detection(part: Part, here: bool) -> Facts:
    setup = coco.configure(list(part.words[1:]))
    if here:
        preprocess = setup.source.preprocess if setup.source else IMAGENET
        coco_preflight.check(setup.data, setup.recipe, setup.schedule, preprocess, setup.settings, Path(),
                             setup.processes, quiet=True)
    check_same_run(part.folder, setup.identity, coco.FREE)
    return Facts(setup.source.sha256 if setup.source else "", setup.data.fingerprint(),
                 deciding(to_dict(setup.settings), coco.PLACES), setup.args.trials,
                 detection_work(setup.arch, setup.recipe["side"], setup.schedule, setup.data, setup.args.trials))


def deciding(settings: dict, free: Sequence[str]) -> dict:
    """Settings as flat {key: value}, without those that do not decide a result."""
    return {key: value for key, value in flatten(settings)
            if not any(key == name or (name.endswith(".") and key.startswith(name)) for name in free)}


def is_done(folder: Path, facts: Facts) -> bool:
    """Whether the folder has a valid result of these weights, data, settings and number of runs."""
    try:
        result = read_result(folder)
    except InputError:
        return False
    settings = dict(flatten(result["config"].get("settings", result["config"])))
    return (facts.sha256 in ("", result["checkpoint"]["sha256"]) and facts.fingerprint == result["data"]["fingerprint"]
            and all(settings.get(key) == value for key, value in facts.settings.items())
            and len(result["per_seed"]) == facts.runs)
