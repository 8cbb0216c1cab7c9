"""The parts of a suite as SLURM jobs, through submitit: submitted once, requeued when stopped (see suite_job.py).

Evaluations that share a network's features wait for one another (`afterany`); all others run side by side. The number
of a part's job is kept in its folder: a job that is still queued or running is not submitted again.
"""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import subprocess
from collections.abc import Sequence

from benchmarks.suite.job import Job
from benchmarks.suite.parts import ROOT, Part
from benchmarks.suite.plan import Step
from sslight.core import compat
from sslight.core.errors import EXIT_DONE, InputError, nearest
from sslight.core.files import write_text

SIGNAL_DELAY = 180  # seconds in which an evaluation can save
REQUEUES = 1000  # time limits that one evaluation may take
DEFAULTS = {"time": 1440}  # minutes
OWN = {"additional_parameters", "dependency", "setup", "srun_args", "teardown"}  # set here, or no single value


def options(words: Sequence[str], processes: int) -> dict:
    """submitit's parameters out of `option=value` words. Raises InputError where SLURM or submitit is missing."""
    if importlib.util.find_spec("submitit") is None:
        raise InputError("submitit is not installed: pip install -e '.[cluster]'")
    absent = [name for name in ("sbatch", "srun", "squeue") if shutil.which(name) is None]
    if absent:
        raise InputError(
            f"--launcher slurm needs SLURM's {', '.join(absent)}, which is not on PATH: submit from a "
            "machine of the cluster, or leave --launcher out"
        )
    known = compat.slurm_parameters() - OWN
    settings: dict = {**DEFAULTS, "gpus_per_node": processes}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in known:
            raise InputError(
                f"--slurm {word}{nearest(name, known)}: it takes OPTION=VALUE, where OPTION is one of "
                f"{', '.join(sorted(known))}"
            )
        settings[name] = int(value) if value.isdigit() else value == "True" or value  # a flag is `exclusive=True`
    if not isinstance(settings["time"], int):
        raise InputError(f"--slurm time={settings['time']}: give the time limit in minutes, e.g. time=1440")
    return settings


def submit_all(steps: Sequence[Step], parameters: dict, processes: int) -> int:
    """Submit every part that is not in the queue already, and print its job."""
    last: dict[str, str] = {}  # of each network: the last job that extracts features
    for step in steps:
        part, name = step.part, step.part.network.name
        kept = part.folder / "job"
        job = kept.read_text().strip() if kept.is_file() else ""
        if job and in_queue(job):
            print(f"queued    {part.name}: job {job} already")
        else:
            job = submit(part, parameters, processes, last.get(name) if step.caches else None)
            write_text(kept, job)
            print(f"submitted {part.name}: job {job}, log {part.folder / 'jobs'}/{job}_0_log.out", flush=True)
        if step.caches:
            last[name] = job
    return EXIT_DONE


def submit(part: Part, parameters: dict, processes: int, after: str | None) -> str:
    """Submit one part, to start when the job `after` has ended; returns its job's number."""
    from submitit.core.utils import FailedJobError
    from submitit.slurm.slurm import SlurmExecutor

    executor = SlurmExecutor(part.folder / "jobs", max_num_timeout=REQUEUES)
    executor.update_parameters(
        **{
            "job_name": part.name.replace("/", "-"),
            "signal_delay_s": SIGNAL_DELAY,
            "setup": [f"export PYTHONPATH={shlex.quote(str(ROOT))}${{PYTHONPATH:+:$PYTHONPATH}}"],  # has `Job`
            "additional_parameters": {"requeue": True},
            **({"dependency": f"afterany:{after}"} if after else {}),
            **parameters,
        }
    )
    try:
        return executor.submit(Job(part.command(processes))).job_id
    except FailedJobError as error:
        raise InputError(f"sbatch refused {part.name}: {error}") from None


def in_queue(job: str) -> bool:
    """Whether SLURM still has the job, waiting or running."""
    asked = subprocess.run(["squeue", "--noheader", "--jobs", job, "--format", "%T"], capture_output=True, text=True)
    return asked.returncode == 0 and bool(asked.stdout.strip())
