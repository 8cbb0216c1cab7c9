"""Every evaluation of a suite, for every checkpoint and baseline, one after the other: `sslight bench all`.

Its settings and options are in settings.py; how the parts are found, planned and run, in the files beside it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.evaluation import EVALUATIONS
from benchmarks.suite import cluster as suite_cluster
from benchmarks.suite.estimate import HOW, estimate, spell
from benchmarks.suite.parts import Part, find_networks, make_parts
from benchmarks.suite.plan import Step, make_plan
from benchmarks.suite.run import Runner
from benchmarks.suite.settings import parser, read_suite
from sslight.core.errors import EXIT_DONE, EXIT_PARTS_FAILED, EXIT_STOPPED, InputError, Stopped
from sslight.core.rundir import in_use

PATIENCE = 60  # seconds that an evaluation of a killed suite may take to save


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_intermixed_args(argv)
    entries = read_suite(args.suite, args.framework)
    given, out_dir = read_overrides(args.overrides)
    cluster = suite_cluster.options(args.slurm, args.num_gpus) if args.launcher == "slurm" else None
    networks = find_networks(args.weights, args.arch, out_dir, given.get("MODEL.OPTIONS", ""))
    parts = make_parts(networks, entries, given, out_dir, args.num_gpus)
    print(f"checking {len(parts)} evaluations of {len(networks)} networks", flush=True)
    steps = make_plan(parts, args.num_gpus, here=cluster is None)
    if args.dry_run:
        show(steps, args.num_gpus, out_dir)
        return EXIT_DONE
    for step in steps:
        if step.skipped:
            print(f"{'skipped' if step.done else 'left out'}  {step.part.name}: {step.skipped}")
    todo = [step for step in steps if not step.skipped]
    if cluster is not None:
        return suite_cluster.submit_all(todo, cluster, args.num_gpus)
    return run_all([step.part for step in todo], args.num_gpus)


def read_overrides(pairs: Sequence[str]) -> tuple[dict[str, str], Path]:
    """The KEY VALUE pairs but OUTPUT_DIR, and that."""
    if len(pairs) % 2:
        raise InputError(f"overrides are KEY VALUE pairs; '{pairs[-1]}' has no value")
    given = dict(zip(pairs[::2], pairs[1::2], strict=True))
    if not given.get("OUTPUT_DIR"):
        raise InputError("OUTPUT_DIR is not set: add OUTPUT_DIR PATH to say where the results are written")
    out_dir = Path(given.pop("OUTPUT_DIR"))
    if out_dir.exists() and not out_dir.is_dir():
        raise InputError(f"OUTPUT_DIR {out_dir} is a file: name a directory")
    return given, out_dir


def show(steps: Sequence[Step], processes: int, out_dir: Path) -> None:
    """Print the plan: what each part does, and what it is estimated to cost."""
    results, total = sorted(out_dir.glob("*/*/result.json")), 0.0
    for step in steps:
        if step.skipped:
            print(f"  {'skip' if step.done else 'leave out':<10}{step.part.name}: {step.skipped}")
            continue
        assert step.work  # known of all that run
        seconds, how = estimate(step.part, step.work, processes, results)
        total += seconds
        print(f"  {'run':<10}{step.part.name}: about {spell(seconds)} ({how})")
    if not all(step.skipped for step in steps):
        print(f"in all about {spell(total)} on {processes} process(es) of this machine. {HOW}")


def run_all(parts: Sequence[Part], processes: int) -> int:
    """Run the parts one after the other and say how each ended. Raises Stopped after a signal."""
    ended, failed = [], []
    with Runner() as runner:
        for number, part in enumerate(parts, 1):
            log, started = part.folder / "output.log", time.monotonic()
            print(f"\n== {part.name} ({number} of {len(parts)}), log {log}", flush=True)
            while in_use(part.folder) and time.monotonic() < started + PATIENCE and not runner.signals:
                time.sleep(0.5)
            code = EXIT_STOPPED if runner.signals else runner.run(part.command(processes), log)
            if runner.signals or code == EXIT_STOPPED:
                raise Stopped(
                    f"in {part.name}, {len(parts) - number} more to come; start the same command again to go on"
                )
            fault = f"exit code {code}" if code else EVALUATIONS[part.entry.benchmark].fault(part.folder)
            failed += [part] * bool(fault)
            ended.append(
                f"{'failed' if fault else 'done':<10}{part.name}: {time.monotonic() - started:.0f} s"
                + (f", {fault}, see {log}" if fault else "")
            )
    print("\n" + "\n".join(ended))
    if failed:
        print(
            f"error: {len(failed)} of {len(parts)} evaluations failed: {', '.join(part.name for part in failed)}; "
            "the same command runs them again",
            file=sys.stderr,
        )
    return EXIT_PARTS_FAILED if failed else EXIT_DONE
