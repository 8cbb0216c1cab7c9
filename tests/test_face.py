"""The Python functions give what the commands of the same names give, and leave the process as it was."""

from __future__ import annotations

import errno
import json
import os
import pickle
import signal
import sys
import threading
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

import sslight
from convert.reader import network_of, read_checkpoint
from pretrain.backbones import build_backbone
from sslight import cli
from sslight.core import devices, processes
from sslight.core.checkpoint import read_backbone_file, save_backbone
from sslight.core.logs import Bar
from sslight.core.result import read_result
from sslight.core.rundir import StopSignal

SMALL = {"DATA.RESIZE": 36, "DATA.SIZE": 32, "DATA.WORKERS": 0, "KNN.K": [10, 20]}
TINY = {
    "METHOD": "moco",
    "VIEWS.GLOBAL_SIZE": 32,
    "VIEWS.LOCAL_NUMBER": 0,
    "TRAIN.BATCH_SIZE": 16,
    "SOLVER.TOTAL_EPOCHS": 1,
    "SOLVER.WARMUP_EPOCHS": 0,
    "MOCO.QUEUE_LENGTH": 32,
    "MOCO.HIDDEN_SIZE": 16,
    "DATA.WORKERS": 0,
}
SIGNALS = (*processes.STOP_SIGNALS, signal.SIGALRM)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "backbone.safetensors"
    preprocess = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "color_order": "BGR", "size": 32}
    save_backbone(path, build_backbone("resnet18").state_dict(), arch="resnet18", method="dino", preprocess=preprocess)
    return path


@pytest.fixture(autouse=True)
def same_process_afterwards():
    """Handlers, the timer, the process group and the visible GPUs are as they were."""

    def state():
        ours = torch.distributed.is_initialized(), processes.CALLED.get(), os.environ.get("CUDA_VISIBLE_DEVICES")
        return [signal.getsignal(number) for number in SIGNALS], signal.getitimer(signal.ITIMER_REAL), ours

    before = state()
    yield
    assert state() == before


def words(settings: dict) -> list[str]:
    return [str(word) for pair in settings.items() for word in pair]


def test_the_package_has_its_version_and_needs_no_torch(run):
    done = run(
        "-c",
        "import sslight, sys\nassert sslight.__version__ == sslight.__version__ != 'unknown'\n"
        "assert set(sslight.__all__) <= set(dir(sslight)) and callable(sslight.convert)\n"
        "assert 'torch' not in sys.modules and not hasattr(sslight, 'evalute')\nprint(sslight.__version__)",
    )
    assert done.stdout[0].isdigit()


def test_the_version_of_a_source_tree_is_its_project_files(monkeypatch, tmp_path):
    def absent(name):
        raise PackageNotFoundError(name)

    from importlib.metadata import PackageNotFoundError

    monkeypatch.setattr("importlib.metadata.version", absent)
    monkeypatch.setattr(sslight, "__file__", str(tmp_path / "sslight" / "__init__.py"))
    assert sslight._version() == "unknown"
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n')
    assert sslight._version() == "1.2.3"


def test_evaluate_gives_the_commands_result_and_can_be_called_twice(image_folder, weights, tmp_path, capsys):
    command = ["--weights", str(weights), "--data", str(image_folder), "--out", str(tmp_path / "command")]
    assert cli.dispatch(["bench", "knn", *command, *words(SMALL)]) == 0
    expected = read_result(tmp_path / "command")
    for name in ("one", "two"):
        result = sslight.evaluate("knn", weights=weights, data=image_folder, out=tmp_path / name, DEVICE="cpu", **SMALL)
        assert result == json.loads((tmp_path / name / "result.json").read_text())
        for key in ("benchmark", "protocol", "metrics", "per_seed", "data", "checkpoint"):
            assert result[key] == expected[key], key
        assert result["command"] == (
            f"sslight bench knn --weights={weights} --data={image_folder} --out={tmp_path / name} DEVICE cpu "
            "DATA.RESIZE 36 DATA.SIZE 32 DATA.WORKERS 0 KNN.K '[10, 20]'"
        )
    torch.backends.cuda.matmul.allow_tf32 = True  # neither torch's default nor what a command leaves
    again = sslight.evaluate("knn", weights=weights, data=image_folder, out=tmp_path / "two", DEVICE="cpu", **SMALL)
    assert again["metrics"] == expected["metrics"] and torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False


def test_options_of_a_command_are_keyword_arguments(image_folder, weights, tmp_path):
    """Options, a flag and a configuration file, under the command's names: leave-one-out, of the third seed."""
    place = {"weights": weights, "data": image_folder, "out": tmp_path, "cfg": "configs/classification/knn.yaml"}
    result = sslight.evaluate("knn", **place, loo=True, seed=2, trials=None, **SMALL)
    assert result["config"]["SEEDS"] == [2] and result["config"]["KNN"]["LEAVE_ONE_OUT"] is True
    assert result["protocol"] == "knn --loo"


def test_cost_of_several_networks(tmp_path, weights):
    settings = {"out": tmp_path, "size": 32, "batch_size": 2, "seconds": 0.01}
    costs = sslight.evaluate("cost", weights=[weights, "mobilenet_v2"], **settings)
    assert list(costs) == ["resnet18", "mobilenetv2_100"]
    assert costs["resnet18"]["parameters"] == 11_176_512  # torchvision's 11,689,512 without the classifier's 513,000
    assert costs["mobilenetv2_100"] == json.loads((tmp_path / "mobilenetv2_100" / "cost.json").read_text())


@pytest.mark.parametrize(
    ("command", "call"),
    [
        (["bench", "knnn"], lambda: sslight.evaluate("knnn")),
        (["bench", "knn", "-o", "x"], lambda: sslight.evaluate("knn", out="x")),
        (["bench", "knn", "KNN.KK", "3"], lambda: sslight.evaluate("knn", **{"KNN.KK": 3})),
        (["bench", "knn", "--tirals=3"], lambda: sslight.evaluate("knn", tirals=3)),
        (["bench", "knn", "--weights=no.pth", "-o", "x", "--data=no"], None),
        (["bench", "coco", "--task=dett"], lambda: sslight.evaluate("coco", task="dett")),
        (["pretrain", "--data=no", "--out=x"], lambda: sslight.pretrain(data="no", out="x")),
        (["pretrain", "--data=no", "--out=x", "--dyr-run"], lambda: sslight.pretrain(data="no", out="x", dyr_run=True)),
        (["pretrain", "--out=x"], lambda: sslight.pretrain(out="x")),
        (["report", "no"], lambda: sslight.report("no")),
        (["report", "--out", "a.pdf", "--", "no"], lambda: sslight.report("no", out="a.pdf")),
        (["convert", "no.pth", "--to", "timm", "-o", "x.pth"], lambda: sslight.convert("no.pth", "timm", "x.pth")),
    ],
)
def test_wrong_input_is_the_commands_line_as_an_exception(command, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call = call or (lambda: sslight.evaluate("knn", weights="no.pth", out="x", data="no"))
    with pytest.raises(sslight.InputError) as error:
        call()
    if command[1] == "knnn":  # the umbrella answers a wrong command itself
        assert "did you mean 'knn'" in str(error.value)
    else:
        with pytest.raises(sslight.InputError) as expected:
            cli.dispatch(command)
        assert str(error.value) == str(expected.value)
    assert list(tmp_path.iterdir()) == []


def without_source(backbone: Path) -> bytes:
    _, header = read_backbone_file(backbone)
    return backbone.read_bytes().replace(header["source_sha256"].encode(), b"")


def test_pretrain_writes_the_commands_backbone(image_folder, tmp_path, run):
    """Every byte but the hash of `last.pth`, whose pickled order of objects differs between any two processes."""
    out = tmp_path / "run"
    command = ["--data", image_folder, "--out", out, "--arch", "test_vit", "--seed", "5"]
    run("-m", "pretrain", *command, *words(TINY))
    expected = without_source(out / "backbone.safetensors")
    *_, last_step, last_epoch = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    for name in ("command", "first"):
        out.rename(tmp_path / name)
        done = sslight.pretrain(data=image_folder, out=out, arch="test_vit", seed=5, **TINY)
        assert done.folder == out and done.checkpoint.samefile(out / "checkpoints" / "last.pth")
        assert without_source(done.backbone) == expected
        assert done.metrics["knn_top1"] == last_epoch["knn_top1"] and done.metrics["loss"] == last_step["loss"]
    picture = tmp_path / "views.png"
    assert sslight.pretrain(data=image_folder, out=tmp_path / "no", show_views=picture, **TINY) is None
    assert picture.is_file() and not (tmp_path / "no").exists()


def test_convert_is_the_commands_function(weights, tmp_path, capsys):
    report = sslight.convert(weights, "torchvision", tmp_path / "a.pth")
    command = ["convert", str(weights), "--to", "torchvision", "-o", str(tmp_path / "b.pth")]
    assert cli.dispatch([*command, "--report", str(tmp_path / "b.json")]) == 0
    expected = json.loads((tmp_path / "b.json").read_text())
    for same in (report, expected):
        same.pop("seconds"), same["target"].pop("path"), same["target"].pop("snippet"), same["target"].pop("sha256")
    assert json.loads(json.dumps(report)) == expected


def test_a_backbone_comes_with_what_feeds_it(weights):
    """Its features equal those of the converter's network, on an image that PIL and NumPy prepared."""
    network = sslight.load_backbone(weights)
    assert not network.training and network.arch == "resnet18" and network.feature_dim == 512
    assert network.preprocess["color_order"] == "BGR"
    pixels = np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    small = np.asarray(image.resize((37, 46), Image.Resampling.BICUBIC))[7:39, 2:34]  # 40 x 50 to a shorter side of 37
    mean, std = np.array([0.4, 0.5, 0.6]), np.array([0.2, 0.25, 0.3])  # in the network's order, blue first
    expected = ((small[..., ::-1] / 255 - mean) / std).transpose(2, 0, 1)
    given = network.transform(image)
    np.testing.assert_allclose(given.numpy(), expected, atol=1e-6)
    with torch.no_grad():
        features = network(given[None])
        assert torch.equal(features, network_of(read_checkpoint(weights)).eval()(given[None]))
    assert network.transform(image.convert("L")).shape == (3, 32, 32)
    assert not any("transform" in name for name, _ in network.named_modules()) and pickle.dumps(network.transform)


def test_report_returns_what_the_command_writes(image_folder, weights, tmp_path, capsys):
    sslight.evaluate("knn", weights=weights, data=image_folder, out=tmp_path / "mine", **SMALL)
    sslight.evaluate("knn", weights="random", arch="resnet18", data=image_folder, out=tmp_path / "random", **SMALL)
    files = [tmp_path / "a.csv", tmp_path / "a.md"]
    report = sslight.report(tmp_path / "mine", tmp_path / "random", out=files, title="Mine")
    top1 = read_result(tmp_path / "mine")["metrics"]["top1"]["value"]
    assert report.title == "Mine" and next(row for row in report.rows if row.headline).value == top1
    command = ["report", str(tmp_path / "mine"), str(tmp_path / "random"), "--out", str(tmp_path / "b.csv")]
    assert cli.dispatch(command) == 0
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text() and files[1].is_file()
    paired = sslight.report(diff=(tmp_path / "mine", tmp_path / "random"))
    assert paired.against and paired.rows[0].baseline.random


def interrupt_after(steps: int, monkeypatch):
    """A Ctrl-C in the main thread once so many steps are done."""
    from pretrain import train

    one_step = train.one_step

    def counted(cfg, state, *rest):
        if state.step == steps:
            os.kill(os.getpid(), signal.SIGINT)
        return one_step(cfg, state, *rest)

    monkeypatch.setattr(train, "one_step", counted)


def test_ctrl_c_saves_and_raises_and_the_same_call_goes_on(image_folder, tmp_path, monkeypatch):
    whole = sslight.pretrain(data=image_folder, out=tmp_path / "whole", arch="test_vit", **TINY)
    with monkeypatch.context() as patch:
        interrupt_after(2, patch)
        with pytest.raises(sslight.Stopped, match="at step 3 of 6"):
            sslight.pretrain(data=image_folder, out=tmp_path / "cut", arch="test_vit", **TINY)
    done = sslight.pretrain(data=image_folder, out=tmp_path / "cut", arch="test_vit", **TINY)
    ours, theirs = (sslight.load_backbone(one.backbone).state_dict() for one in (done, whole))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_second_ctrl_c_is_a_keyboard_interrupt():
    """Which a notebook survives; a command ends at once."""
    with pytest.raises(KeyboardInterrupt), processes.as_function("pretrain"), StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested()
        os.kill(os.getpid(), signal.SIGINT)


def test_a_stop_where_nothing_needs_saving_disarms_its_alarm():
    with pytest.raises(sslight.Stopped), processes.as_function("bench", "knn"), StopSignal(immediate=True):
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_notebook_gets_progress_bars(monkeypatch, capsys):
    bar = Bar(3, "steps")
    bar.update(3)
    assert bar.bar is None  # nobody watches
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    bar = Bar(3, "steps")
    bar.update(3, loss=0.5)
    bar.close()
    assert "steps: " in capsys.readouterr().err


def test_cpu_means_the_cpu_in_a_session_that_has_used_its_gpu(monkeypatch):
    """Where CUDA runs already, hiding the GPUs in the environment no longer hides them from torch."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with devices.restored():
        devices.prepare("cpu")
        assert devices.own_device().type == "cpu"


def test_another_thread_gets_the_same_result(image_folder, weights, tmp_path):
    results = []
    place = {"weights": weights, "data": image_folder, "out": tmp_path / "thread"}
    thread = threading.Thread(target=lambda: results.append(sslight.evaluate("knn", **place, **SMALL)))
    thread.start()
    thread.join()
    here = sslight.evaluate("knn", **{**place, "out": tmp_path / "here"}, **SMALL)
    assert [result["metrics"] for result in results] == [here["metrics"]]


def test_forked_children_can_be_ended_once_a_call_is_over():
    """Their stop signals are blocked while a command runs, so that a Ctrl-C does not kill loader workers."""

    def blocked() -> bool:
        read, write = os.pipe()
        if os.fork() == 0:
            os.write(write, b"%d" % (signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, [])))
            os._exit(0)
        os.wait()
        return os.read(read, 1) == b"1"

    with processes.as_function("pretrain"):
        assert blocked()
    assert not blocked()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 588.00 MiB."), "GPU out of memory"),
        (OSError(errno.ENOSPC, "No space left on device", "out/log.txt"), "cannot write out/log.txt: No space left"),
    ],
)
def test_too_small_a_memory_or_disk_is_an_input_error(error, line):
    with pytest.raises(sslight.InputError, match=line), processes.as_function("pretrain"):
        raise error


def test_other_errors_pass_through():
    with pytest.raises(RuntimeError, match="sizes differ"), processes.as_function("pretrain"):
        raise RuntimeError("sizes differ")


def test_a_refusal_in_another_process_is_an_input_error():
    with pytest.raises(sslight.InputError, match="another process of `sslight bench` refused its input"):
        with processes.as_function("bench", "coco"):
            sys.exit(2)
