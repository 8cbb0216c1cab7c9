"""What an evaluation is, and which there are. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sslight.core.arguments import Command, Imported, Parser
from sslight.core.config import flatten
from sslight.core.errors import EXIT_DONE, InputError
from sslight.core.processes import run_command
from sslight.core.registry import Registry
from sslight.core.result import read_result


@dataclass(frozen=True)
class Work:
    """Forward passes of a backbone over images of so many pixels, and seconds that are known beforehand."""

    arch: str
    passes: float = 0.0
    pixels: float = 1.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Plan:
    """What is known of an evaluation before it runs: its work, and whether its result is there already.

    `caches`: it keeps features that the other evaluations of its network use, too, so it runs before them.
    """

    work: Work
    done: bool
    caches: bool = False


@dataclass(frozen=True)
class Context:
    """Where a planned evaluation will run: its folder, its number of processes, and whether on this machine.

    `data` is shared by all plans of one suite, for reading a large data set takes its time; an evaluation keeps there
    what it opened, under a key of its own.
    """

    folder: Path
    processes: int
    here: bool
    data: dict


class Evaluation(Protocol):
    """A checkpoint in, a result file out. Commands, suites, their cost estimate and the documentation use only this.

    settings: nested keys and defaults; a suite may set any of them.
    frameworks: names of which a suite runs each, passed as `--framework NAME`; empty where there is no such choice.
    per_architecture: what is measured depends on the architecture, not on the weights.
    spreads: it starts its own processes, as many as `--num-gpus N` says; others are started by torchrun.
    """

    settings: Mapping[str, Any]
    frameworks: Sequence[str]
    per_architecture: bool
    spreads: bool

    def parser(self) -> Parser:
        """The command line."""
        ...

    def check(self, argv: Sequence[str] | None) -> Any:
        """What the words ask for, as `plan` and `run` take it. Loads no torch.

        Raises InputError for whatever is wrong with the words and settings themselves.
        """
        ...

    def plan(self, request: Any, context: Context) -> Plan:
        """Look at the data and the network. Raises InputError for whatever would stop `run`."""
        ...

    def run(self, request: Any) -> int | None:
        """Measure, and write the result; returns an exit code (None: done)."""
        ...

    def result(self, request: Any) -> Any:
        """What `run` has written, read and checked; None where nothing was measured. Raises InputError."""
        ...

    def fault(self, folder: Path) -> str:
        """What is wrong with the result in a folder; an empty string where nothing is."""
        ...


EVALUATIONS: Registry[Evaluation] = Registry(
    "evaluation",
    {
        "knn": ("weighted k-NN on frozen features", "benchmarks.classification.knn:EVALUATION"),
        "linear": ("linear classification on frozen features", "benchmarks.classification.linear:EVALUATION"),
        "semisup": ("fine-tuning on 1%, 10% or all of the labels", "benchmarks.classification.semisup:EVALUATION"),
        "coco": (
            "detection and instance segmentation on COCO",
            "benchmarks.detection.command:EVALUATION",
        ),
        "cost": ("parameters, FLOPs, latency and throughput on this machine", "benchmarks.deployment.cost:EVALUATION"),
    },
)


def main(evaluation: Evaluation, argv: Sequence[str] | None = None) -> int:
    """Run an evaluation by the words of its command line (default: this process's)."""
    return evaluation.run(evaluation.check(argv)) or EXIT_DONE


def run(name: str) -> None:
    """`python -m benchmarks.NAME`."""
    run_command(lambda: main(EVALUATIONS[name]))


@dataclass(frozen=True)
class Bench:
    """An evaluation as a `sslight.core.arguments.Command`."""

    name: str

    @property
    def text(self) -> str:
        return EVALUATIONS.text(self.name)

    def arguments(self) -> Parser:
        return EVALUATIONS[self.name].parser()

    def run(self, argv: Sequence[str]) -> int:
        return main(EVALUATIONS[self.name], argv)


def commands() -> dict[str, Command]:
    """What follows `sslight bench`."""
    suite = Imported(
        "a suite of these for several checkpoints, here or as SLURM jobs",
        "benchmarks.suite.suite:main",
        "benchmarks.suite.settings:parser",
    )
    return {**{name: Bench(name) for name in EVALUATIONS}, "all": suite}


def is_done(folder: Path, sha256: str, fingerprint: str, settings: Mapping, runs: int) -> bool:
    """Whether the folder has a valid result of these weights, data, settings and number of runs.

    sha256: "" for random weights, which the settings tell.
    """
    try:
        result = read_result(folder)
    except InputError:
        return False
    measured = dict(flatten(result["config"].get("settings", result["config"])))
    return (
        sha256 in ("", result["checkpoint"]["sha256"])
        and fingerprint == result["data"]["fingerprint"]
        and all(measured.get(key, "") == value for key, value in settings.items())
        and len(result["per_seed"]) == runs
    )


def result_fault(folder: Path) -> str:
    """`Evaluation.fault` of those that write a `result.json`."""
    try:
        read_result(folder)
        return ""
    except InputError as error:
        return str(error)
