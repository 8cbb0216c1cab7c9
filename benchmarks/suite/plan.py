"""Before anything runs: what is known of a part, whether its result is there already, and how much work it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.detection.framework import FRAMEWORKS, NoRecipe
from benchmarks.evaluation import EVALUATIONS, Context, Work
from benchmarks.suite.parts import Part
from sslight.core.errors import InputError


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
    """Look at every part; `here`: it will run on this machine.

    Raises InputError for the first part that cannot run, before any does.
    """
    for framework in {part.entry.framework for part in parts} - {""}:
        FRAMEWORKS[framework]  # absent ones first: the rest takes longer
    data: dict = {}
    return [_look(part, Context(part.folder, processes, here, data)) for part in parts]


def _look(part: Part, context: Context) -> Step:
    evaluation = EVALUATIONS[part.entry.benchmark]
    try:
        plan = evaluation.plan(evaluation.check(part.words[1:]), context)
    except NoRecipe as error:
        return Step(part, skipped=str(error))
    except InputError as error:
        raise InputError(f"{part.name}: {error}") from None
    return Step(part, plan.work, "its result is there" if plan.done else "", plan.done, plan.caches)
