"""The sbatch script of docs/cluster.md against SLURM's commands in miniature: told to stop, it saves, is queued again,
and goes on. (What submitit's jobs do is in tests/benchmarks/suite/test_cluster.py.)"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.suite.fake_slurm import Slurm
from tests.docs.pages import ROOT, blocks
from tests.faults.kinds import difference, pretrain_end, pretrain_kept
from tests.faults.processes import environment, torchrun, wait_until
from tests.faults.table import Row, Unavailable
from tests.faults.tiny_runs import pretrain, write_images

PROGRAMS = {
    "srun": 'echo $$ > "$FAKE_SLURM/$SLURM_JOB_ID.step"; exec "$@"',
    "scancel": 'kill -s "${1#--signal=}" $(cat "$FAKE_SLURM/$2.step")',  # to the steps, not to the script
    "scontrol": """
        [[ $1 == show ]] && echo localhost && exit
        echo PENDING > "$FAKE_SLURM/$2.state"; echo "$2" >> "$FAKE_SLURM/requeued" """,
    "torchrun": 'exec python -m torch.distributed.run "$@"',
}


def rows(size: str, place: Path) -> Iterator[Row]:
    if size == "short":
        raise Unavailable("in the long form only: every start takes seconds of importing torch in three processes")
    row = Row("the sbatch script of docs/cluster.md: USR1 before the limit, saved, requeued, resumed")
    settings = {"TRAIN.BATCH_SIZE": 8, "TRAIN.SAVE_SECONDS": 0, "SOLVER.TOTAL_EPOCHS": 12}
    images, out, whole = write_images(place / "images"), place / "out", place / "whole"
    process = torchrun(*pretrain(images, whole, **settings), log=place / "whole.txt")
    slurm = Slurm(place)
    for name, text in PROGRAMS.items():
        (slurm.folder / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (slurm.folder / "bin" / name).chmod(0o755)
    os.environ.update(environment(**slurm.environment, SLURM_NNODES="1", SLURM_GPUS_ON_NODE="2"))
    (slurm.folder / "1000.sh").write_text(shrunk(pretrain(images, out, **settings)))
    assert process.wait() == 0, (place / "whole.txt").read_text()[-2000:]
    steps = out / "metrics.jsonl"
    for turn in range(3):
        before = steps.read_text() if steps.exists() else ""
        script = slurm.start("1000")
        began = wait_until(lambda: steps.exists() and steps.read_text() > before, process=script)  # noqa: B023
        asked = time.monotonic()
        os.kill(script.pid, signal.SIGUSR1)
        slurm.finish("1000", script)
        kept = pretrain_kept(out)
        row.attempt(
            began and slurm.requeued() == ["1000"] * (turn + 1) and not kept and time.monotonic() - asked < 30,
            f"start {turn}: began {began}, requeued {slurm.requeued()}, {kept}",
        )
    code = slurm.finish("1000", slurm.start("1000"), 300)
    wrong = f"exit {code}" if code else difference(pretrain_end(out), pretrain_end(whole))
    row.attempt(not wrong, f"the last start: {wrong}")
    yield row


def shrunk(command: list[object]) -> str:
    """The page's script with its training command's arguments replaced by small ones."""
    (script,) = (text for text in blocks(ROOT / "docs" / "cluster.md", "bash") if "#SBATCH" in text)
    words = " ".join(f"'{word}'" for word in command[2:])
    found, count = re.subn(r"-m pretrain .*?&\n", lambda _: f"-m pretrain {words} &\n", script, flags=re.DOTALL)
    assert count == 1
    return found
