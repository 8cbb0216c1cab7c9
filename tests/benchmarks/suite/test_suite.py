"""`sslight bench all`: planned before it runs, killed and started again, nothing measured twice, faults named early."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.classification import knn
from benchmarks.evaluation import main
from benchmarks.report import report
from benchmarks.suite import suite
from benchmarks.suite.estimate import seconds_per_image
from benchmarks.suite.parts import Part, find_networks, make_parts
from benchmarks.suite.settings import SUITES, read_suite
from convert.reader import read_checkpoint
from convert.sources import short_name
from pretrain.backbones import build_backbone
from sslight.core.checkpoint import save_backbone
from sslight.core.errors import EXIT_PARTS_FAILED, InputError, Stopped
from sslight.core.result import read_result
from tests.benchmarks.detection.coco_sets import write_set
from tests.benchmarks.report.report_sets import result

ROOT = Path(__file__).resolve().parents[3]
PREPROCESS = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "color_order": "RGB", "size": 32}
SUITE = {
    "settings": {"DATA": {"RESIZE": 36, "SIZE": 32, "WORKERS": 0}, "TRAIN": {"BATCH_SIZE": 16}},
    "evaluations": {
        "knn": {"benchmark": "knn", "settings": {"KNN.K": [5], "KNN.HEADLINE_K": 5}},
        "linear": {
            "benchmark": "linear",
            "settings": {"PROBE.CACHED": True, "PROBE.HOLDOUT": 0.2, "PROBE.PENALTIES": [0.1], "PROBE.STEPS": 5},
        },
        "semi": {
            "benchmark": "semisup",
            "settings": {"LABELS.FRACTION": 0.5, "SOLVER.TOTAL_EPOCHS": 2, "HEAD.HIDDEN_SIZE": 16},
        },
    },
}


@pytest.fixture(scope="module")
def place(tmp_path_factory, image_folder):
    """A suite file and two checkpoints, of which the second has the published form of a run directory."""
    folder = tmp_path_factory.mktemp("suite")
    (folder / "suite.yaml").write_text(json.dumps(SUITE))  # JSON is YAML
    (folder / "run" / "checkpoints").mkdir(parents=True)
    for seed, file in enumerate((folder / "one.safetensors", folder / "run" / "checkpoints" / "last.safetensors")):
        torch.manual_seed(seed)
        network = build_backbone("resnet18")
        save_backbone(file, network.state_dict(), arch=network.arch, method="dino", preprocess=PREPROCESS)
    return folder


@pytest.fixture
def words(place, image_folder, tmp_path):
    """The command line without --weights."""
    return [
        "--suite",
        str(place / "suite.yaml"),
        "DATA.PATH_TO_DATA_DIR",
        str(image_folder),
        "OUTPUT_DIR",
        str(tmp_path / "out"),
    ]


def start(words) -> subprocess.Popen:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return subprocess.Popen(
        [sys.executable, "-m", "sslight", "bench", "all", *words],
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def wait_for(path: Path, process: subprocess.Popen) -> None:
    end = time.monotonic() + 120
    while not path.exists() or not path.stat().st_size:
        assert process.poll() is None and time.monotonic() < end, process.communicate()[0]
        time.sleep(0.02)


@pytest.mark.parametrize(
    "names", [["knn", "linear"], pytest.param(["knn", "linear", "semi"], marks=pytest.mark.slow)], ids="-".join
)
def test_a_killed_suite_goes_on_and_measures_nothing_twice(place, words, names, tmp_path):
    out = tmp_path / "out"
    suite = {**SUITE, "evaluations": {name: SUITE["evaluations"][name] for name in names}}
    (tmp_path / "suite.yaml").write_text(json.dumps(suite))
    words[1] = str(tmp_path / "suite.yaml")
    words = [
        "--weights",
        str(place / "one.safetensors"),
        str(place / "run/checkpoints/last.safetensors"),
        "random",
        *words,
    ]
    killed = start(words)
    wait_for(out / "one" / "linear" / "output.log", killed)
    killed.kill()
    killed.communicate()
    first = {path: path.stat().st_mtime_ns for path in out.glob("*/*/result.json")}
    assert out / "one" / "knn" / "result.json" in first
    again = start(words)
    assert "skipped  one/knn: its result is there" in again.communicate(timeout=600)[0] and again.returncode == 0

    networks = ("one", "run-last", "random-resnet18")
    results = {(network, name): read_result(out / network / name) for network in networks for name in names}
    assert {path: path.stat().st_mtime_ns for path in first} == first
    for network in networks:  # the linear probe found what k-NN had extracted: train and val, once
        assert len(list((out / network / "features").iterdir())) == 2
    assert len({result["checkpoint"]["sha256"] for result in results.values()}) == 3
    assert len({result["data"]["fingerprint"] for result in results.values()}) == 1
    assert results["random-resnet18", "knn"]["checkpoint"]["family"] == "random"
    report.main([str(out), "-o", str(tmp_path / "report.json")])
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    compared = {(row["benchmark"], Path(row["file"]).parts[-3]) for row in rows if row["difference"] is not None}
    kinds = [SUITE["evaluations"][name]["benchmark"] for name in names]
    assert compared == {(kind, network) for kind in kinds for network in ("one", "run-last")}


WRITES = """
import os, shutil, sys
os.makedirs(sys.argv[2], exist_ok=True)
shutil.copy(sys.argv[1], sys.argv[2])
"""
BREAKS = "import sys; print('noise', flush=True); sys.exit(1)"
SAVES = """
import os, signal, sys, time
def save(*_):
    print('saved', flush=True)
    sys.exit(75)
signal.signal(signal.{saves_on}, save)
os.kill(os.getppid(), signal.{signal})
time.sleep(60)
"""


def replace_commands(monkeypatch, tmp_path, middle):
    """The plan stays the real one; the second evaluation runs the program `middle`, the others leave a result."""

    def command(part, processes):
        program = middle if part.entry.name == "linear" else WRITES
        return [sys.executable, "-c", program, str(tmp_path / "result.json"), str(part.folder)]

    result(tmp_path)
    monkeypatch.setattr(Part, "command", command)
    return tmp_path / "out" / "one" / "linear" / "output.log"


def test_a_failure_is_named_with_its_log_and_the_others_run(place, words, tmp_path, monkeypatch, capsys):
    log = replace_commands(monkeypatch, tmp_path, BREAKS)
    assert suite.main(["--weights", str(place / "one.safetensors"), *words]) == EXIT_PARTS_FAILED
    captured = capsys.readouterr()
    assert log.read_text() == "noise\n" and "noise" in captured.out
    assert re.search(rf"failed    one/linear: \d+ s, exit code 1, see {log}", captured.out)
    assert "done      one/semi" in captured.out
    assert captured.err.startswith("error: 1 of 3 evaluations failed: one/linear")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_reaches_the_running_evaluation_which_saves(place, words, tmp_path, monkeypatch, name):
    saves_on = name if name == "SIGINT" else "SIGTERM"  # of SIGUSR1 torchrun would die
    log = replace_commands(monkeypatch, tmp_path, SAVES.replace("{signal}", name).replace("{saves_on}", saves_on))
    before = signal.getsignal(getattr(signal, name))
    with pytest.raises(Stopped, match="in one/linear, 1 more to come; start the same command again"):
        suite.main(["--weights", str(place / "one.safetensors"), *words])
    assert log.read_text() == "saved\n" and signal.getsignal(getattr(signal, name)) is before


SAVES_LONG = """
import hashlib, os
from sslight.core.processes import run_command
from sslight.core.rundir import StopSignal

def main():
    with StopSignal() as stop:
        print(os.getpid(), flush=True)
        while not stop.received:
            pass
        print("saving", flush=True)
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # a call into C, which no handler of Python's interrupts

run_command(main)
"""
RUNS = """
import sys
from pathlib import Path
from benchmarks.suite.run import Runner
from sslight.core.processes import run_command

def main():
    with Runner() as runner:
        return runner.run([sys.executable, "-c", sys.argv[1]], Path(sys.argv[2]))

run_command(main)
"""


def test_a_second_ctrl_c_ends_the_suite_and_its_evaluation_at_once(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", RUNS, SAVES_LONG, str(tmp_path / "log")],
        text=True,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    evaluation = int(process.stdout.readline())
    try:
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout.readline() == "saving\n"
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(10) == -signal.SIGINT
        deadline = time.monotonic() + 10
        while Path(f"/proc/{evaluation}").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not Path(f"/proc/{evaluation}").exists()
    finally:
        for pid in (process.pid, evaluation):
            if Path(f"/proc/{pid}").exists():
                os.kill(pid, signal.SIGKILL)


def test_the_plan_says_what_is_done_and_estimates_the_rest(place, words, tmp_path, capsys):
    checkpoint = str(place / "one.safetensors")
    part = next(part for part in planned([checkpoint], words) if part.entry.name == "knn")
    assert main(knn.EVALUATION, part.words[1:]) == 0
    assert suite.main(["--dry-run", "--weights", checkpoint, "random", *words]) == 0
    text = capsys.readouterr().out
    seconds = read_result(part.folder)["seconds"]
    assert "skip      one/knn: its result is there" in text
    assert f"run       random-resnet18/knn: about {seconds:.0f} s (as one took)" in text
    # 2 epochs of 48 labelled images, trained (three passes each), and twice 32 for val
    assert "one/semi: about" in text and "(352 passes of 32 px)" in text
    assert not (tmp_path / "out" / "random-resnet18").exists()
    # other settings, other weights: not done, and no other run's folder is entered
    for more in (["knn.KNN.TEMPERATURE", "0.1"], ["DATA.SIZE", "24"]):
        with pytest.raises(InputError, match="one/knn: OUTPUT_DIR .* belongs to a run with another recipe"):
            suite.main(["--dry-run", "--weights", checkpoint, *words, *more])
    other = f"one={place / 'run/checkpoints/last.safetensors'}"
    with pytest.raises(InputError, match="another recipe .*RUN.WEIGHTS"):
        suite.main(["--dry-run", "--weights", other, *words])
    result = part.folder / "result.json"
    result.write_text(result.read_text()[:-100])  # cut off: measured again
    assert suite.main(["--dry-run", "--weights", checkpoint, *words]) == 0
    assert "run       one/knn" in capsys.readouterr().out


def planned(weights, words):
    args = suite.parser().parse_intermixed_args(["--weights", *weights, *words])
    given, out_dir = suite.read_overrides(args.overrides)
    return make_parts(suite.find_networks(args.weights, None, out_dir), read_suite(args.suite, []), given, out_dir, 1)


def test_speed_is_measured_on_the_network_that_is_asked_for():
    assert 0 < seconds_per_image("resnet18", 32, 0.1) < seconds_per_image("resnet50", 64, 0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--suite", "papr"], r"suite not found: papr \(did you mean 'paper'\?\)"),
        (["--suite", str(SUITES / "published.yaml")], "is not a suite: it needs 'evaluations:'"),
        (["--weights", "nowhere.pth"], "nowhere.pth"),
        (["--weights", "random"], "needs --arch"),
        (["DATA.SIZES", "3"], r"unknown config key 'DATA.SIZES' \(command line\) \(did you mean 'DATA.SIZE'\?\)"),
        (["knn.KNN.KK", "[1]"], r"unknown config key 'KNN.KK'.*did you mean 'KNN.K'"),
        (["DATA.PATH_TO_DATA_DIR", "nowhere"], "one/knn: data directory not found: nowhere"),
        (["DATA.PATH_TO_DATA_DIR"], "'DATA.PATH_TO_DATA_DIR' has no value"),
        (["OUTPUT_DIR", ""], "OUTPUT_DIR is not set"),
        (["KNN.HEADLINE_K", "7"], "is not one of KNN.K"),
        (["PROBE.FEATURES", "['cls4']"], "feature 'cls4' does not suit resnet18"),
    ],
)
def test_bad_input_is_found_before_anything_runs(place, words, tmp_path, change, message):
    weights = [] if "--weights" in change else ["--weights", str(place / "one.safetensors")]
    with pytest.raises(InputError, match=message) as error:
        suite.main([*weights, *words, *change])
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_more_processes_than_gpus_are_found_before_anything_runs(place, words, monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match="one/knn: 4 processes for 2 GPU"):
        suite.main(["--weights", str(place / "one.safetensors"), *words, "--num-gpus", "4"])
    assert not (tmp_path / "out").exists()


def test_a_suite_file_is_checked(tmp_path):
    file = tmp_path / "suite.yaml"
    for text, message in (
        ("{settings: {DATA.SIZES: 3}, evaluations: {knn: {benchmark: knn}}}", "mean 'DATA.SIZE'"),
        ("evaluations: {knn: {benchmark: nn}}", "one of knn, linear, semisup, coco, cost"),
        ("evaluations: {knn: {benchmark: knn, confg: x}}", "did you mean 'config'"),
        ("evaluations: {a/b: {benchmark: knn}}", "names a folder"),
        ("evaluations: {knn: {benchmark: knn, options: --loo}}", "'options' cannot be '--loo'"),
        ("evaluations: {knn: {benchmark: knn, config: no.yaml}}", "config file not found"),
        ("evaluations: [", "is not a YAML file"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=message) as error:
            read_suite(str(file), [])
        assert "\n" not in str(error.value)


def test_supervised_weights_become_one_file_for_all_evaluations(tmp_path, monkeypatch):
    """torchvision's, as a download leaves them in its cache; the file's hash is the same every time."""
    import torchvision

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    url = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "hub" / "checkpoints" / url.rsplit("/", 1)[1])
    (network,), (again,) = (suite.find_networks(["SUPERVISED"], "resnet18", tmp_path / out) for out in ("a", "b"))
    assert network.name == "supervised-resnet18" and network.recorded
    one, other = read_checkpoint(network.weights), read_checkpoint(again.weights)
    assert one.method == "supervised" and one.sha256 == other.sha256


def test_two_checkpoints_of_one_name_are_told_apart_by_hand(place, words, tmp_path):
    two = [place / "one.safetensors", tmp_path / "one.safetensors"]
    two[1].write_bytes(two[0].read_bytes())
    with pytest.raises(InputError, match="two checkpoints would be called 'one': name them, as in --weights NAME="):
        suite.main(["--dry-run", "--weights", *map(str, two), *words])
    with pytest.raises(InputError, match="'a/b' is to name a folder"):
        suite.main(["--dry-run", "--weights", f"a/b={place / 'one.safetensors'}", *words])
    assert short_name("runs/r18/checkpoints/epoch_0020.pth") == "r18-epoch_0020" and short_name("x.pth") == "x"
    assert short_name("timm:resnet18.a1_in1k") == "resnet18.a1_in1k" and short_name("hf:org/net@v1") == "net"


def test_a_name_that_was_given_goes_with_the_network_and_no_other_does(place):
    file = place / "one.safetensors"
    networks = find_networks([f"mine={file}", str(file), "random"], None, Path("out"))
    parts = make_parts(networks, read_suite("paper", ["mmdet"]), {}, Path("out"), 1)
    given = {part.name: part.words[part.words.index("NAME") + 1] for part in parts if "NAME" in part.words}
    names = ("knn", "linear", "semi_1", "semi_10", "det_mmdet", "seg_mmdet")
    assert given == {f"mine/{name}": "mine" for name in names}


def paper(arch, **given):
    """{evaluation: command} of the shipped paper.yaml for an architecture."""
    from benchmarks.suite.parts import Candidate

    parts = make_parts([Candidate("net", "net.pth", arch)], read_suite("paper", []), given, Path("out"), 1)
    return {part.entry.name: list(part.words) for part in parts}


def test_the_paper_suite_takes_each_architectures_protocol():
    evaluations = ["knn", "linear", "semi_1", "semi_10", "det_mmdet", "det_detectron2", "seg_mmdet", "seg_detectron2"]
    for arch, linear in (
        ("resnet18", "linear_cnn"),
        ("mobilenetv2_100", "linear_cnn"),
        ("vit_tiny_patch16_224", "linear_vit"),
    ):
        found = paper(arch)
        assert list(found) == [*evaluations, arch]  # the last is the architecture's cost
        configs = {
            name: Path(command[command.index("--cfg") + 1]) for name, command in found.items() if "--cfg" in command
        }
        assert {name: file.stem for name, file in configs.items()} == {
            "knn": "knn",
            "linear": linear,
            "semi_1": "semi_1percent",
            "semi_10": "semi_10percent",
        }
        assert all(file.is_file() for file in configs.values())
    detection = " ".join(found["det_mmdet"])
    assert "--framework mmdet" in detection and "--task det --schedule 1x" in detection and "--config" not in detection


def test_settings_go_where_they_are_named():
    found = paper(
        "resnet18",
        **{
            "SEEDS": "[1]",
            "linear.SEEDS": "[2]",
            "DATA.WORKERS": "3",
            "seg.SEED": "4",
            "semisup.SOLVER.BASE_LR": "9",
            "coco.DATA.PATH_TO_DATA_DIR": "coco",
            "det_mmdet.SEED": "5",
        },
    )

    def value(name, key):
        command = found[name]
        return command[command.index(key) + 1] if key in command else None

    assert [value(name, "SEEDS") for name in ("knn", "linear", "semi_1")] == ["[1]", "[2]", "[1]"]
    assert {value(name, "DATA.WORKERS") for name in found if name != "resnet18"} == {"3"}
    assert [value(name, "SOLVER.BASE_LR") for name in ("linear", "semi_1", "semi_10")] == [None, "9", "9"]
    assert [value(name, "SEED") for name in ("det_mmdet", "det_detectron2", "seg_mmdet")] == ["5", None, "4"]
    assert value("det_mmdet", "DATA.PATH_TO_DATA_DIR") == "coco" and value("knn", "DATA.PATH_TO_DATA_DIR") is None


def test_build_options_reach_every_evaluation_and_the_cost(tmp_path):
    networks = suite.find_networks(["random"], "vit_tiny", tmp_path, "num_heads=12")
    parts = make_parts(networks, read_suite("paper", []), {"MODEL.OPTIONS": "num_heads=12"}, tmp_path, 1)
    for part in parts:
        key = "--set" if part.entry.benchmark == "cost" else "MODEL.OPTIONS"
        assert part.words[part.words.index(key) + 1] == "num_heads=12"
    assert parts[-1].folder.name == "vit_tiny_patch16_224_num_heads=12"
    with pytest.raises(InputError, match="no build option 'heads'"):
        suite.find_networks(["random"], "vit_tiny", tmp_path, "heads=12")


@pytest.mark.parametrize(
    "arch, framework, message",
    [
        ("resnet18", "detectron2", "detectron2 is not installed: pip install --no-build-isolation"),
        ("resnet18", "mmdt", r"'mmdt' is unknown \(did you mean 'mmdet'\?\)"),
    ],
)
def test_an_absent_framework_is_an_error_that_says_how_to_install_it(
    words, tmp_path, monkeypatch, arch, framework, message
):
    find_spec, import_module = importlib.util.find_spec, importlib.import_module

    def without_detectron2(name):
        if "detectron2" in name:
            raise ModuleNotFoundError("No module named 'detectron2'", name="detectron2")
        return import_module(name)

    monkeypatch.setattr(importlib, "import_module", without_detectron2)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "detectron2" else find_spec(name))
    with pytest.raises(InputError, match=message):
        suite.main(["--weights", "random", "--arch", arch, "--suite", "demo", "--framework", framework, *words[2:]])
    assert not (tmp_path / "out").exists()


def test_detection_is_planned_and_what_has_no_recipe_is_left_out(tmp_path, words, capsys):
    pytest.importorskip("mmdet", reason="comes with the mmdet extra")
    file = tmp_path / "suite.yaml"
    file.write_text("evaluations: {seg: {benchmark: coco, options: [--task, seg], frameworks: [mmdet]}}")
    coco = ["DATA.PATH_TO_DATA_DIR", str(write_set(tmp_path / "coco"))]
    arguments = ["--weights", "random", "--dry-run", "--suite", str(file), *words[2:], *coco]
    for arch, text in (
        ("resnet18", "run       random-resnet18/seg_mmdet: about"),
        ("vit_tiny", "leave out random-vit_tiny_patch16_224/seg_mmdet: no recipe mask_rcnn_vit_tiny"),
    ):
        assert suite.main([*arguments, "--arch", arch]) == 0
        assert text in capsys.readouterr().out
    with pytest.raises(InputError, match="COCO annotation file not found"):
        suite.main([*arguments, "--arch", "resnet18", "coco.DATA.PATH_TO_DATA_DIR", "nowhere"])
