"""Before anything runs: what can be known of a part, whether its result is there already, and how much work it is."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.classification.labelled import describe, open_splits
from benchmarks.classification.settings import FREE_KEYS
from benchmarks.classification.weights import identity, load_subject
from benchmarks.deployment import cost
from benchmarks.deployment import measure as cost_measure
from benchmarks.detection import coco
from benchmarks.detection import data as coco_data
from benchmarks.detection import preflight as coco_preflight
from benchmarks.detection.settings import NoRecipe, framework_module
from benchmarks.suite.estimate import Work, classification_work, detection_work
from benchmarks.suite.parts import Part
from convert.recorded import IMAGENET
from pretrain.backbones import read_options
from sslight.core import devices
from sslight.core.config import flatten, to_dict
from sslight.core.errors import InputError
from sslight.core.result import read_result
from sslight.core.rundir import check_same_run, deciding


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


def make_plan(parts: Sequence[Part], processes: int, here: bool) -> list[Step]:
    """Look at every part; `here` tells that it will run on this machine.

    Raises InputError for the first part that cannot run, before any does.
    """
    for framework in {part.evaluation.framework for part in parts} - {""}:
        framework_module(framework)  # absent ones first: the rest takes longer
    data: dict = {}  # reading a large set takes its time
    return [_look(part, processes, here, data) for part in parts]


def _look(part: Part, processes: int, here: bool, data: dict) -> Step:
    try:
        if part.evaluation.benchmark == "cost":
            return _cost(part, here)
        if part.evaluation.benchmark == "coco":
            return _detection(part, here, data)
        return _classification(part, processes, here, data)
    except NoRecipe as error:
        return Step(part, skipped=str(error))
    except InputError as error:
        raise InputError(f"{part.name}: {error}") from None


def _classification(part: Part, processes: int, here: bool, data: dict) -> Step:
    name = part.evaluation.benchmark
    module = importlib.import_module(f"benchmarks.classification.{name}")
    cfg, _ = module.configure(part.words[1:])
    if here:
        devices.check(cfg.DEVICE, processes)
    place = (cfg.DATA.PATH_TO_DATA_DIR, cfg.DATA.NUM_CLASSES)
    if place not in data:
        train, val = open_splits(cfg)
        data[place] = train, val, describe(cfg, train, val)["fingerprint"]
    train, val, fingerprint = data[place]
    subject = load_subject(cfg)
    module.ready(cfg, train, val, subject)
    check_same_run(part.folder, identity(cfg, subject, fingerprint, processes), FREE_KEYS)
    done = is_done(
        part.folder,
        subject.about["sha256"],
        fingerprint,
        deciding(to_dict(cfg), FREE_KEYS),
        1 if name == "knn" else len(cfg.SEEDS),
    )
    work = classification_work(name, cfg, len(train), len(val), subject)
    return _step(part, work, done, caches=name == "knn" or (name == "linear" and cfg.PROBE.CACHED))


def _detection(part: Part, here: bool, data: dict) -> Step:
    def find_data(settings):
        place = tuple(settings.DATA.values())
        if place not in data:
            try:
                data[place] = coco_data.find(settings)
            except InputError as error:
                raise InputError(f"{error}; coco.DATA.PATH_TO_DATA_DIR is detection's alone") from None
        return data[place]

    setup = coco.configure(list(part.words[1:]), find_data, plan=True)
    if here:
        devices.check(setup.settings.DEVICE, setup.processes)
        preprocess = setup.source.preprocess if setup.source else IMAGENET
        coco_preflight.amp_possible(setup.settings.TRAIN.AMP)
        coco_preflight.check(
            setup.data, setup.recipe, setup.schedule, preprocess, Path(), setup.processes, quiet=True, remember=False
        )
    check_same_run(part.folder, setup.identity, coco.FREE)
    done = is_done(
        part.folder,
        setup.source.sha256 if setup.source else "",
        setup.data.fingerprint(),
        deciding(to_dict(setup.settings), coco.PLACES),
        setup.args.trials,
    )
    return _step(
        part, detection_work(setup.arch, setup.recipe["side"], setup.schedule, setup.data, setup.args.trials), done
    )


def _cost(part: Part, here: bool) -> Step:
    if here:
        devices.check()
    args = cost.parser().parse_args(part.words[1:])
    about = cost_measure.about(part.network.arch, args.size, args.batch_size, read_options(args.options))
    return _step(
        part,
        Work(part.network.arch, seconds=2 * args.seconds),
        cost.measured_before(part.folder / "cost.json", about) is not None,
    )


def _step(part: Part, work: Work, done: bool, caches: bool = False) -> Step:
    return Step(part, work, "its result is there" if done else "", done, caches)


def is_done(folder: Path, sha256: str, fingerprint: str, settings: dict, runs: int) -> bool:
    """Whether the folder has a valid result of these weights, data, settings and number of runs.

    sha256: "" for random weights, which the settings tell.
    """
    try:
        result = read_result(folder)
    except InputError:
        return False
    found = dict(flatten(result["config"].get("settings", result["config"])))
    return (
        sha256 in ("", result["checkpoint"]["sha256"])
        and fingerprint == result["data"]["fingerprint"]
        and all(found.get(key, "") == value for key, value in settings.items())
        and len(result["per_seed"]) == runs
    )
