"""`--launcher slurm` against SLURM's commands in miniature: scripts, dependencies, and jobs that are requeued."""

from __future__ import annotations

import os
import signal

import pytest

from benchmarks.suite import cluster as suite_cluster, suite
from sslight.core.errors import InputError
from sslight.core.result import read_result
from tests.benchmarks.suite.fake_slurm import Slurm, wait_until

pytest.importorskip("submitit", reason="comes with the cluster extra")
SUITE = """
settings: {DATA: {RESIZE: 36, SIZE: 32, WORKERS: 0}, TRAIN: {BATCH_SIZE: 16}, FEATURES: {BATCH_SIZE: 32}}
evaluations:
  knn: {benchmark: knn}
  cached: {benchmark: linear, settings: {PROBE.CACHED: True, PROBE.HOLDOUT: 0.2}}
  trained: {benchmark: linear, settings: {SOLVER.TOTAL_EPOCHS: 8, TRAIN.EVAL_PERIOD: 4, TRAIN.LOG_PERIOD: 1}}
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    cluster = Slurm(tmp_path)
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    return cluster


@pytest.fixture
def words(tmp_path, image_folder):
    (tmp_path / "suite.yaml").write_text(SUITE)
    return [
        "--weights",
        "random",
        "--arch",
        "resnet18",
        "--suite",
        str(tmp_path / "suite.yaml"),
        "--launcher",
        "slurm",
        "DATA.PATH_TO_DATA_DIR",
        str(image_folder),
        "OUTPUT_DIR",
        str(tmp_path / "out"),
    ]


def test_jobs_are_submitted_once_and_wait_for_the_features_they_share(slurm, words, tmp_path, capsys):
    assert suite.main([*words, "--slurm", "partition=small", "--slurm", "time=90", "--slurm", "gpus_per_node=0"]) == 0
    assert slurm.jobs() == ["1000", "1001", "1002"]
    options = {job: slurm.options(job) for job in slurm.jobs()}
    for job, name in zip(options, ("knn", "cached", "trained"), strict=True):
        assert options[job]["partition"] == "small" and options[job]["time"] == "90"
        assert options[job]["signal"] == "USR2@180" and "requeue" in options[job]
        assert options[job]["job-name"] == f"random-resnet18-{name}" and options[job]["gpus-per-node"] == "0"
    assert [options[job].get("dependency") for job in options] == [None, "afterany:1000", None]
    assert "submitted random-resnet18/knn: job 1000" in capsys.readouterr().out

    (slurm.folder / "1000.state").write_text("FAILED")
    assert suite.main(words) == 0  # only what is no longer in the queue
    assert slurm.jobs() == ["1000", "1001", "1002", "1003"] and "dependency" not in slurm.options("1003")
    assert "queued    random-resnet18/cached: job 1001 already" in capsys.readouterr().out


def test_stopped_jobs_save_are_requeued_and_go_on(slurm, words, tmp_path):
    """The signals that SLURM sends, start after start: at a preemption or before the time limit, then by scancel."""
    suite.main([*words, "--slurm", "gpus_per_node=0"])
    folder, job = tmp_path / "out" / "random-resnet18" / "trained", "1002"
    log, steps = folder / "jobs" / f"{job}_0_log.err", folder / "seed_0" / "metrics.jsonl"

    def begin(number):
        """A start that has taken steps of its own."""
        before = steps.read_text() if number else ""
        process = slurm.start(job)
        wait_until(lambda: steps.exists() and len(steps.read_text()) > len(before), process)
        return process

    process = begin(0)
    slurm.signal(process, signal.SIGTERM)  # comes first where a job is preempted, to the task alone
    slurm.signal(process, signal.SIGUSR2, everyone=True)
    slurm.finish(job, process)
    assert slurm.requeued() == [job] and slurm.state(job) == "PENDING", log.read_text()
    assert log.read_text().count("stopped: saved") == 1 and not (folder / "result.json").exists()
    process = begin(1)
    slurm.signal(process, signal.SIGTERM)
    wait_until(lambda: log.read_text().count("stopped: saved") == 2, process)
    assert process.poll() is None  # SLURM's to end: of itself it would count as finished
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert slurm.requeued() == [job]
    assert slurm.finish(job, slurm.start(job)) == 0
    result = read_result(folder)
    assert [row["epoch"] for row in result["per_seed"][0]["curve"]] == [4, 8]
    trained = (folder / "log.txt").read_text()
    assert all(trained.count(f"epoch {epoch}/8") == 1 for epoch in (4, 8))  # nothing twice


@pytest.mark.parametrize(
    "option, message",
    [
        ("partion=x", r"--slurm partion=x \(did you mean 'partition'\?\)"),
        ("time=1-00", "in minutes"),
        ("partition", "OPTION=VALUE"),
    ],
)
def test_wrong_options_are_found_before_anything_is_submitted(slurm, words, tmp_path, option, message):
    with pytest.raises(InputError, match=message):
        suite.main([*words, "--slurm", option])
    assert not slurm.jobs()


def test_what_sbatch_refuses_is_said_in_one_line(slurm, words):
    (slurm.folder / "bin" / "sbatch").write_text("#!/bin/bash\necho 'sbatch: error: invalid partition' >&2; exit 1\n")
    with pytest.raises(InputError, match="sbatch refused random-resnet18/knn: .*invalid partition"):
        suite.main([*words, "--slurm", "partition=nowhere", "--slurm", "exclusive=True"])


def test_without_slurm_or_submitit_one_line_says_so(words, monkeypatch):
    monkeypatch.setattr(suite_cluster.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"submitit is not installed: pip install -e '.\[cluster\]'"):
        suite.main(words)
    monkeypatch.undo()
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InputError, match="needs SLURM's sbatch, srun, squeue, which is not on PATH"):
        suite.main(words)
