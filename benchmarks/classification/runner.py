"""The run of an evaluation on labelled images: what k-NN, linear and semi-supervised evaluation have in common.

An evaluation says what it measures (`measure`); opening the data and the network, the run directory, stops, the proof
that a frozen network did not change and the result file are here. torch is imported when something runs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fvcore.common.config import CfgNode

from benchmarks.classification.settings import FREE_KEYS, parse
from benchmarks.evaluation import Context, Plan, Work, is_done, result_fault
from sslight.core.arguments import Parser
from sslight.core.config import to_dict
from sslight.core.result import read_result

if TYPE_CHECKING:
    import numpy as np
    import torch

    from benchmarks.classification.labelled import Labelled
    from benchmarks.classification.weights import Subject
    from sslight.core.logs import RunLog
    from sslight.core.rundir import StopSignal

Request = tuple[CfgNode, dict]  # settings, and those of them that depart from the protocol's file


@dataclass(frozen=True)
class Run:
    """What `measure` works with. `prepared` is what `prepare` returned."""

    cfg: CfgNode
    train: Labelled
    val: Labelled
    subject: Subject
    prepared: Any
    out_dir: Path
    device: torch.device
    stop: StopSignal
    log: RunLog


@dataclass(frozen=True)
class Measured:
    """The measurements of an evaluation.

    predictions: ranked classes of every val image, one array a run, under the suffix of their metrics' names ("" is the
    first). metrics, per_seed, headline: as in the result file. shown: metric -> what the log calls it. benchmark,
    protocol: the result's, where they are not the evaluation's name and the config's.
    """

    predictions: Mapping[str, Sequence[np.ndarray]]
    metrics: dict[str, dict]
    per_seed: list[dict]
    headline: str
    shown: Mapping[str, str]
    benchmark: str = ""
    protocol: str = ""


def over_seeds(
    seeds: Sequence[int], predictions: Mapping[str, Sequence[np.ndarray]], labels: np.ndarray, /, **further: Sequence
) -> tuple[dict[str, dict], list[dict]]:
    """`metrics` and `per_seed` of runs of several seeds; `further` values of each run go into the latter by name."""
    from benchmarks.classification.metrics import per_seed, seed_metrics

    metrics: dict[str, dict] = {}
    for suffix, ranked in predictions.items():
        metrics |= seed_metrics(ranked, labels, suffix)
    return metrics, per_seed(seeds, dict(predictions), labels, **further)


class Classification:
    """Base of the evaluations on labelled images (`benchmarks.evaluation.Evaluation`).

    name, config: of the command and of its usual file in configs/classification. frozen: the backbone does not train.
    """

    name: str
    description: str
    config: str
    settings: Mapping[str, Any]
    frozen = True
    frameworks: Sequence[str] = ()
    per_architecture = False
    spreads = False

    def validate(self, cfg: CfgNode) -> None:
        """Raise InputError for settings that contradict each other."""

    def prepare(self, cfg: CfgNode, train: Labelled, val: Labelled, subject: Subject) -> Any:
        """What `measure` needs beside its data and network. Raises InputError where these and the settings disagree."""

    def passes(self, cfg: CfgNode, train: int, val: int) -> float:
        """Forward passes over an image that a run on so many images takes."""
        raise NotImplementedError

    def caches(self, cfg: CfgNode) -> bool:
        """Whether it keeps features that other evaluations use, too."""
        return False

    def runs(self, cfg: CfgNode) -> int:
        """Entries of a result's `per_seed`."""
        return len(cfg.SEEDS)

    def describe(self, prepared: Any) -> tuple[str, dict]:
        """What the log's first line says beside the data and network, and further counts of the result's `data`."""
        return "", {}

    def measure(self, run: Run) -> Measured | None:
        """Measure; the main process returns what goes into the result. Raises Stopped after a signal."""
        raise NotImplementedError

    def parser(self) -> Parser:
        parser = Parser(
            f"sslight bench {self.name}",
            f"{self.description}: a checkpoint in, a result.json out.",
            f"sslight bench {self.name} --cfg configs/classification/{self.config} "
            "WEIGHTS runs/r18/checkpoints/last.pth \\\n"
            f"      DATA.PATH_TO_DATA_DIR $DATA OUTPUT_DIR results/r18/{Path(self.config).stem}",
            epilog=f"On several GPUs: torchrun --nproc_per_node 8 -m benchmarks.{self.name} and the same arguments.\n",
        )
        parser.add_config("configs/classification/")
        parser.add_option("--seed", type=int, metavar="N", help="the first seed (the same as SEEDS [N])")
        parser.add_option("--trials", type=int, metavar="N")
        parser.add_build_options()
        parser.add_overrides(self.settings)
        return parser

    def check(self, argv: Sequence[str] | None = None) -> Request:
        cfg, departures = parse(self.parser(), self.settings, argv)
        self.validate(cfg)
        return cfg, departures

    def plan(self, request: Request, context: Context) -> Plan:
        from benchmarks.classification.labelled import describe, open_splits
        from benchmarks.classification.weights import identity, load_subject
        from sslight.core import devices
        from sslight.core.rundir import check_same_run, deciding

        cfg, _ = request
        if context.here:
            devices.check(cfg.DEVICE, context.processes)
        place = (cfg.DATA.PATH_TO_DATA_DIR, cfg.DATA.NUM_CLASSES)
        if place not in context.data:
            train, val = open_splits(cfg)
            context.data[place] = train, val, describe(cfg, train, val)["fingerprint"]
        train, val, fingerprint = context.data[place]
        subject = load_subject(cfg)
        self.prepare(cfg, train, val, subject)
        check_same_run(context.folder, identity(cfg, subject, fingerprint, context.processes), FREE_KEYS)
        settings = deciding(to_dict(cfg), FREE_KEYS)
        done = is_done(context.folder, subject.about["sha256"], fingerprint, settings, self.runs(cfg))
        work = Work(subject.about["arch"], self.passes(cfg, len(train), len(val)), cfg.DATA.SIZE**2)
        return Plan(work, done, self.caches(cfg))

    def run(self, request: Request) -> None:
        from sslight.core import distributed

        device = distributed.start(request[0].DEVICE)
        try:
            self._run(*request, device)
        finally:
            distributed.stop()

    def _run(self, cfg: CfgNode, departures: dict, device: torch.device) -> None:
        from benchmarks.classification.labelled import describe, notes, open_splits
        from benchmarks.classification.weights import check_frozen, freeze, identity, load_subject, state_hash
        from sslight.core import distributed
        from sslight.core.logs import RunLog
        from sslight.core.rundir import StopSignal, open_run

        started = time.monotonic()
        train, val = open_splits(cfg)
        subject = load_subject(cfg)
        prepared = self.prepare(cfg, train, val, subject)
        data = describe(cfg, train, val)
        run_is = identity(cfg, subject, data["fingerprint"], distributed.world_size())
        before = ""
        if self.frozen:
            freeze(subject.backbone)
            before = state_hash(subject.backbone)
        with open_run(run_is, FREE_KEYS) as out_dir, StopSignal(immediate=True) as stop:
            log = RunLog(out_dir)
            for line in notes(train, val):
                log(line)
            more, counts = self.describe(prepared)
            data["counts"] |= counts
            log(
                f"{cfg.PROTOCOL}: {subject.about['arch']} ({subject.about['family']}), {len(train)} train and "
                f"{len(val)} val images of {len(train.classes)} classes{more}"
            )
            measured = self.measure(Run(cfg, train, val, subject, prepared, out_dir, device, stop, log))
            if self.frozen:
                check_frozen(subject.backbone, before)
            if measured is not None and distributed.is_main():
                self._write(cfg, departures, out_dir, subject, data, val, measured, time.monotonic() - started, log)

    def _write(
        self,
        cfg: CfgNode,
        departures: dict,
        out_dir: Path,
        subject: Subject,
        data: dict,
        val: Labelled,
        measured: Measured,
        seconds: float,
        log: RunLog,
    ) -> None:
        """`predictions.npz` and `result.json`, and the accuracies in the log."""
        from benchmarks.classification.metrics import detail, write_predictions
        from sslight.core.result import write_result

        first = next(iter(measured.predictions.values()))[0]
        write_predictions(out_dir, measured.predictions, val.labels)
        write_result(
            out_dir,
            benchmark=measured.benchmark or self.name,
            protocol=measured.protocol or cfg.PROTOCOL,
            checkpoint=subject.about,
            data=data,
            metrics=measured.metrics,
            per_seed=measured.per_seed,
            config=to_dict(cfg),
            seconds=seconds,
            departures=departures,
            headline=measured.headline,
            **detail(first, val.labels, val.classes),
        )
        for name, label in measured.shown.items():
            low, high = measured.metrics[name]["interval"]
            log(f"top-1 {measured.metrics[name]['value']:.2f}% [{low:.2f}, {high:.2f}] ({label})")

    def result(self, request: Request) -> dict:
        return read_result(request[0].OUTPUT_DIR)

    def fault(self, folder: Path) -> str:
        return result_fault(folder)


def training_passes(cfg: CfgNode, images: float, val: int) -> float:
    """Forward passes of supervised training on so many images an epoch, evaluated on val as EVAL_PERIOD says."""
    epochs = cfg.SOLVER.TOTAL_EPOCHS
    return len(cfg.SEEDS) * (epochs * images + math.ceil(epochs / cfg.TRAIN.EVAL_PERIOD) * val)
