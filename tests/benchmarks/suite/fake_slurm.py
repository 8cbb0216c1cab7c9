"""SLURM's commands as small programs on PATH that run real processes: sbatch, srun, squeue, scontrol, scancel.

A submitted job waits until the test starts it (`Slurm.start`), as if the cluster were full. `scontrol requeue` and
`scancel` are noted; signals are sent by the test, to the job's Python process as SLURM's cgroup plugin does, or to
every process of the job as other plugins do.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = {
    "sbatch": """
        job=$((1000 + $(ls "$FAKE_SLURM" | grep -c '[.]sh$')))
        cp "$1" "$FAKE_SLURM/$job.sh"; echo PENDING > "$FAKE_SLURM/$job.state"
        echo "Submitted batch job $job" """,
    "srun": """
        while [[ $1 == --* ]]; do
            case $1 in
                --output) out=${2//%j/$SLURM_JOB_ID}; out=${out//%t/0}; shift 2;;
                --error) err=${2//%j/$SLURM_JOB_ID}; err=${err//%t/0}; shift 2;;
                *) shift;;
            esac
        done
        exec env SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0 "$@" >>"$out" 2>>"$err" """,
    "squeue": """
        while [[ $1 != --jobs ]]; do shift; done
        grep -E 'PENDING|RUNNING' "$FAKE_SLURM/$2.state" """,
    "scontrol": """
        [[ $1 == requeue ]] && echo PENDING > "$FAKE_SLURM/$2.state" && echo $2 >> "$FAKE_SLURM/requeued" """,
    "scancel": """echo CANCELLED > "$FAKE_SLURM/$1.state" """,
}


class Slurm:
    """The cluster: `environment` makes its commands found; jobs are numbered from 1000."""

    def __init__(self, folder: Path):
        self.folder = folder / "slurm"
        (self.folder / "bin").mkdir(parents=True)
        for name, text in PROGRAMS.items():
            file = self.folder / "bin" / name
            file.write_text(f"#!/bin/bash\n{text}\n")
            file.chmod(0o755)
        self.environment = {
            "FAKE_SLURM": str(self.folder),
            "PATH": os.pathsep.join([str(self.folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]),
        }

    def jobs(self) -> list[str]:
        return sorted(file.stem for file in self.folder.glob("*.sh"))

    def script(self, job: str) -> str:
        return (self.folder / f"{job}.sh").read_text()

    def options(self, job: str) -> dict[str, str]:
        """The script's `#SBATCH --name=value` lines."""
        found = re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", self.script(job), re.MULTILINE)
        return {name: value.strip("'") for name, value in found}

    def state(self, job: str) -> str:
        return (self.folder / f"{job}.state").read_text().strip()

    def requeued(self) -> list[str]:
        file = self.folder / "requeued"
        return file.read_text().split() if file.exists() else []

    def start(self, job: str) -> subprocess.Popen:
        """Run the job's script, in a process group of its own."""
        (self.folder / f"{job}.state").write_text("RUNNING")
        environment = {**os.environ, **self.environment, "SLURM_JOB_ID": job, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(["bash", self.folder / f"{job}.sh"], env=environment, start_new_session=True)

    def finish(self, job: str, process: subprocess.Popen, timeout: float = 120) -> int:
        """Wait for a started job's end; it leaves the queue unless it was requeued meanwhile."""
        code = process.wait(timeout)
        if self.state(job) == "RUNNING":
            (self.folder / f"{job}.state").write_text("FAILED" if code else "COMPLETED")
        return code

    def signal(self, process: subprocess.Popen, number: signal.Signals, everyone: bool = False) -> None:
        """Send a signal to the job's task alone (submitit's process), or to every process of the job but its shell."""
        below = _descendants(process.pid)
        for pid in below if everyone else below[:1]:
            os.kill(pid, number)


def _descendants(pid: int) -> list[int]:
    """All processes below a process, parents first."""
    children = [
        int(word) for task in Path(f"/proc/{pid}/task").iterdir() for word in (task / "children").read_text().split()
    ]
    return children + [pid for child in children for pid in _descendants(child)]


def wait_until(condition, process: subprocess.Popen, timeout: float = 120) -> None:
    """Wait for a condition while the process runs."""
    end = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, f"the process ended with {process.returncode} before that"
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)
