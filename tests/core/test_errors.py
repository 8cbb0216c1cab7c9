"""What one-line errors suggest: names of files that lie beside the one that is not there; who hears signals to stop."""

from __future__ import annotations

import signal
from functools import partial

import pytest
import torch

from benchmarks.classification import knn, linear, semisup
from benchmarks.deployment import cost
from benchmarks.detection import command as coco_options
from benchmarks.evaluation import main
from pretrain import train
from sslight.core import distributed, processes as errors
from sslight.core.checkpoint import check_archive
from sslight.core.errors import InputError, nearest_file


def test_the_nearest_file_is_named_with_its_folder(tmp_path, monkeypatch):
    for name in ("last.pth", "epoch_0020.pth"):
        (tmp_path / name).touch()
    assert nearest_file(tmp_path / "lsat.pth") == f" (did you mean '{tmp_path / 'last.pth'}'?)"
    assert nearest_file(f"{tmp_path}/lsat.pth/") == f" (did you mean '{tmp_path / 'last.pth'}'?)"
    assert nearest_file(tmp_path / "knn.yaml") == nearest_file(tmp_path / "nowhere" / "last.pth") == ""
    monkeypatch.chdir(tmp_path)
    assert nearest_file("last.pht") == " (did you mean 'last.pth'?)"


def test_a_run_directory_for_a_checkpoint_is_answered_with_its_last_one(tmp_path):
    with pytest.raises(InputError, match="is a directory; name the file in it$"):
        check_archive(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.pth").touch()
    with pytest.raises(InputError, match="is a directory; name the file, e.g. .*checkpoints/last.pth$"):
        check_archive(tmp_path)


WORKERS = """
import os, signal, time
from torch.utils.data import DataLoader
from sslight.core.processes import STOP_SIGNALS, run_command

def stop_me(*_):
    for number in STOP_SIGNALS:
        os.kill(os.getpid(), number)

class Items:
    def __len__(self):
        return 4
    def __getitem__(self, index):
        stop_me()
        return index

def main():
    print(list(DataLoader(Items(), batch_size=None, num_workers=2, worker_init_fn=stop_me)), flush=True)
    stop_me()
    time.sleep(60)

os.register_at_fork(after_in_child=stop_me)
run_command(main)
"""


LEFT_OPEN = """
from torch.utils.data import DataLoader
from sslight.core.processes import run_command

class Items:
    def __len__(self):
        return 4
    def __getitem__(self, index):
        return index

def main():
    global batches
    batches = iter(DataLoader(Items(), batch_size=None, num_workers=2, persistent_workers=True))
    print(next(batches))

run_command(main)
"""


def test_workers_that_a_framework_leaves_open_end_in_silence(run):
    """torch's own handler takes their end for a crash, and would say so while Python exits."""
    done = run("-c", LEFT_OPEN)
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_signals_to_stop_reach_the_main_process_alone_and_at_no_instant_a_worker(run):
    """A worker gets them in its very fork, before torch sets handlers of its own there, between and after."""
    done = run("-c", WORKERS, expect=75, timeout=50)
    assert done.stdout == "[0, 1, 2, 3]\n"
    assert done.stderr.splitlines()[-1].startswith("stopped: ")


@pytest.mark.parametrize(
    "command, words, advice",
    [
        (
            train.main,
            [],
            "lower TRAIN.BATCH_SIZE, raise TRAIN.ACCUMULATE by as much to keep the global batch, turn on TRAIN.AMP",
        ),
        (partial(main, knn.EVALUATION), ["WEIGHTS", "random"], "lower FEATURES.BATCH_SIZE, turn on FEATURES.AMP"),
    ],
)
def test_a_full_gpu_is_one_line_with_the_commands_own_keys(command, words, advice, monkeypatch, capsys):
    def start(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 588.00 MiB. GPU 0 has a total capacity")

    monkeypatch.setattr(distributed, "start", start)
    with pytest.raises(SystemExit) as ended:
        errors.run_command(lambda: command(["OUTPUT_DIR", "out", *words]))
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        f"error: GPU out of memory (it tried to allocate 588.00 MiB): {advice}, or end "
        "what else runs on the GPU (nvidia-smi lists it)\n"
    )


@pytest.mark.parametrize(
    "parser, keys",
    [
        (linear.EVALUATION.parser, ["TRAIN.BATCH_SIZE", "FEATURES.BATCH_SIZE", "TRAIN.AMP", "FEATURES.AMP"]),
        (semisup.EVALUATION.parser, ["TRAIN.BATCH_SIZE", "TRAIN.AMP"]),
        (cost.parser, ["--batch-size"]),
        (coco_options.parser, ["SOLVER.IMS_PER_BATCH", "--num-gpus", "TRAIN.AMP"]),
    ],
)
def test_every_command_has_something_to_lower(parser, keys, monkeypatch, capsys):
    monkeypatch.setattr(errors.Parser, "last", parser())
    for said in ("CUDA error: out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"):
        text = errors._too_small(RuntimeError(said))
        assert text.startswith("GPU out of memory: ") and all(key in text for key in keys), text


@pytest.mark.parametrize(
    "said",
    [
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
        "shared memory. Please try to raise your shared memory limit.",
        "unable to allocate shared memory(shm) for file </torch_7_1_0>: No space left on device (28)",
    ],
)
def test_shared_memory_that_ran_out_all_the_same_is_one_line(said, capsys):
    def main():
        raise RuntimeError(said)

    with pytest.raises(SystemExit) as ended:
        errors.run_command(main)
    told = capsys.readouterr().err
    assert ended.value.code == 2 and told.count("\n") == 1
    assert told.startswith("error: the shared memory is too small (") and "--shm-size" in told


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_where_nothing_needs_saving_unwinds_and_is_said(run, number):
    done = run(
        "-c",
        f"""
import os, time
from sslight.core.processes import run_command

def main():
    try:
        os.kill(os.getpid(), {int(number)})
        time.sleep(60)
    finally:
        print("unwound")

run_command(main)
""",
        expect=75,
    )
    assert done.stdout == "unwound\n"
    assert done.stderr == f"stopped: saved already when {number.name} came; start the same command again to go on\n"


def test_a_signal_that_an_import_swallowed_is_said_all_the_same(run):
    """Importing numpy anew after one that was broken off fails, for example; no alarm cuts the end short either."""
    done = run(
        "-c",
        """
import os, signal
from sslight.core.processes import run_command

def main():
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except Exception:
        pass
    raise ImportError("cannot load module more than once per process")

run_command(main)
""",
        expect=75,
    )
    assert done.stderr.startswith("stopped: saved already when SIGINT came") and done.stderr.count("\n") == 1
