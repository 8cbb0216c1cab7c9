"""Every command in README.md and docs/ is run: in the order of its page, on small data, made smaller where it must be.

What is shrunk stands in SMALLER, what stands for the reader's data in `place`. Commands that install or submit to a
cluster are not run: NOT_RUN says why, and what is checked instead.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sslight
from benchmarks import evaluation
from sslight import cli
from sslight.core.result import write_result
from tests.benchmarks.detection.coco_sets import write_set
from tests.benchmarks.detection.coco_tiny import tiny_detectron2, tiny_mmdet
from tests.convert.family_files import CASES
from tests.convert.own_networks import random_like
from tests.convert.peers.case import from_record
from tests.docs.pages import PAGES, ROOT, blocks, commands

NETWORK = (
    "VIEWS.GLOBAL_SIZE 40 VIEWS.LOCAL_SIZE 32 VIEWS.LOCAL_NUMBER 2 TRAIN.BATCH_SIZE 16 TRAIN.ACCUMULATE 1 "
    "SOLVER.TOTAL_EPOCHS 1 "
)
PRETRAIN = (
    NETWORK
    + (
        "SOLVER.WARMUP_EPOCHS 0 DATA.WORKERS 0 DINO.HIDDEN_SIZE 16 DINO.BOTTLENECK_DIM 8 "
        "DINO.OUTPUT_DIM 16 KNN.PERIOD 0"
    ).strip()
)
IMAGES = "DATA.RESIZE 36 DATA.SIZE 32 DATA.WORKERS 0 FEATURES.BATCH_SIZE 32 FEATURES.AMP none"
TRAINED = IMAGES + " TRAIN.BATCH_SIZE 32 SOLVER.TOTAL_EPOCHS 1"
# part of a command -> arguments appended to it
SMALLER = {
    "sslight pretrain": PRETRAIN,
    "-m pretrain": PRETRAIN,
    "sslight bench knn": IMAGES,
    "sslight bench linear": TRAINED,
    "-m benchmarks.linear": TRAINED,
    "sslight bench semisup": TRAINED + " HEAD.HIDDEN_SIZE 16",
    "-m benchmarks.semisup": TRAINED + " HEAD.HIDDEN_SIZE 16",
    "sslight bench cost": "--seconds 0.01 --batch-size 1 --size 64",
}
NOT_RUN = {
    "make": "runs for minutes; the target must exist",
    "pip": "needs a network",
    "sbatch": "needs SLURM",
    "srun": "needs SLURM",
    "sslight bench all .*--launcher slurm": "test_suite_cluster.py submits to a SLURM in miniature",
    "git": "needs a network",
    "sslight demo": "is make demo",
    "torchrun --nnodes 2": "needs two machines; test_coco_launch.py starts two processes",
    "torchrun .* bench coco": "test_coco_launch.py starts it with two processes",
    ".*tools/train_": "test_detection_scripts.py runs both scripts with shrunk recipes; files must exist",
}


@pytest.fixture
def place(tmp_path, image_folder, monkeypatch):
    """A folder in which the commands see the project's files; results land there. $DATA, $IN1K and $COCO are set."""
    for entry in ROOT.iterdir():
        if not entry.name.startswith(".") and entry.name not in ("runs", "results"):
            (tmp_path / entry.name).symlink_to(entry)
    for name in ("DATA", "IN1K"):
        monkeypatch.setenv(name, str(image_folder))
    monkeypatch.setenv("COCO", str(write_set(tmp_path / "coco")))
    torch.save(small_file("moco", tmp_path), tmp_path / "my_checkpoint.pth")
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shrink(words: list[str], place, processes: str) -> list[str]:
    """The command on fewer processes, pixels, epochs and iterations."""
    words = [
        processes if previous in ("--nproc_per_node", "--nproc-per-node") else word
        for previous, word in zip(["", *words], words, strict=False)
    ]
    text = " ".join(words)
    if "bench all" in text and "--dry-run" not in words:
        words[words.index("--suite") + 1] = str(knn_suite(place))
        at = words.index("coco.DATA.PATH_TO_DATA_DIR")  # the small suite has no such evaluation
        return [*words[:at], *words[at + 2 :], *IMAGES.split()]
    if "bench coco" in text:
        at = words.index("--framework")
        return [*words[:at], "--config", coco_recipe(words, place), *words[at:], "EVAL.BOOTSTRAP", "10"]
    return words + next((extra.split() for start, extra in SMALLER.items() if start in text), [])


def knn_suite(place) -> Path:
    suite = place / "knn_suite.yaml"
    suite.write_text(f"evaluations: {{knn: {{benchmark: knn, config: {ROOT / 'configs/classification/knn.yaml'}}}}}\n")
    return suite


def coco_recipe(words: list[str], place) -> str:
    task = "faster" if words[words.index("--task") + 1] == "det" else "mask"
    make = tiny_mmdet if "mmdet" in words else tiny_detectron2
    (place / "recipes").mkdir(exist_ok=True)
    return str(make(f"{task}_rcnn_r18_fpn_1x", place / "recipes"))


def run_command(line: str, place, processes: str) -> None:
    """Run one command; the umbrella in this process, everything else as a process."""
    words = [os.path.expandvars(word) for word in shlex.split(line, comments=True)]
    if any(re.match(start, " ".join(words)) for start in NOT_RUN):
        if words[0] == "make":
            assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text(), f"no such target: {line}"
        assert all((ROOT / word).exists() for word in words if word.startswith(("tools/", "configs/"))), line
        return
    words = shrink(words, place, processes)
    if words[0] == "sslight":
        assert cli.dispatch(words[1:]) in (0, None), line
        return
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]  # on a port that no other test uses
    programs = {"python": [sys.executable], "torchrun": torchrun}
    assert words[0] in programs, f"unknown program in: {line}"
    done = subprocess.run([*programs[words[0]], *words[1:]], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{line}\nexit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


RUNNABLE = [page for page in PAGES if commands(page) and page.parent.name != "converting"]


@pytest.mark.parametrize("page", RUNNABLE, ids=[str(page.relative_to(ROOT)) for page in RUNNABLE])
@pytest.mark.parametrize("processes", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_every_command_of_a_page_runs(page, processes, place, capsys):
    """A pre-training's last words are commands, too: they are run as they were printed."""
    if any("mmdet" in command for command in commands(page)):
        pytest.importorskip("mmdet", reason="comes with the mmdet extra")
    for command in commands(page):
        capsys.readouterr()
        run_command(command, place, processes)
        _, _, last_words = capsys.readouterr().out.partition("\nnext:\n")
        for following in re.findall(r"^  (sslight .*)$", last_words, re.MULTILINE):
            run_command(following, place, processes)


@contextlib.contextmanager
def shrunk_functions():
    """sslight's functions with the commands' smaller settings, where a call does not name them itself."""
    pretrain, evaluate = sslight.pretrain, sslight.evaluate

    def smaller(command: str) -> dict[str, str]:
        words = SMALLER[command].split()
        names = (word.removeprefix("--").replace("-", "_") for word in words[::2])
        return dict(zip(names, words[1::2], strict=True))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sslight, "pretrain", lambda **given: pretrain(**{**smaller("sslight pretrain"), **given}))
        patch.setattr(
            sslight, "evaluate", lambda name, **given: evaluate(name, **{**smaller(f"sslight bench {name}"), **given})
        )
        yield


WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=[str(page.relative_to(ROOT)) for page in WITH_PYTHON])
def test_every_python_block_runs(page, place, capsys):
    (place / "my_checkpoint.pth").rename(place / "last.pth")
    write_result(
        place / "results" / "r18" / "knn",
        benchmark="knn",
        protocol="knn",
        checkpoint=dict.fromkeys(("path", "sha256", "arch", "method", "family"), ""),
        data={"path": "", "counts": {}, "fingerprint": ""},
        metrics={"top1": {"value": 61.5, "interval": [61.0, 62.0]}},
        per_seed=[],
        config={},
        seconds=1,
    )
    (place / "digits").symlink_to(os.environ["DATA"])
    with shrunk_functions():
        for block in blocks(page, "python"):
            exec(compile(block, str(page), "exec"), {})
    assert "results" not in page.name or capsys.readouterr().out.strip() == "61.5 [61.0, 62.0]"


def test_every_example_of_a_help_stands_on_a_page():
    """So every example is run: by the test above."""
    pages = [shlex.split(command, comments=True) for page in PAGES for command in commands(page)]
    for command in [*cli.COMMANDS.values(), *evaluation.commands().values()]:
        if not isinstance(command, cli.Group):
            text = command.arguments().epilog.partition("example:\n")[2].replace("\\\n", " ")
            examples = re.findall(r"^  (\S.*)$", text.partition("\n\n")[0], re.MULTILINE)
            assert examples, command
            for example in examples:
                assert shlex.split(example) in pages, f"not on any page: {example}"


# Families whose files are those that a checkout of the project wrote down.
RECORDED = {
    "clip": "clip_vit",
    "dinov3": "dinov3_small",
    "esvit": "esvit_deit_tiny",
    "fcmae": "convnextv2_fcmae",
    "ibot": "ibot_tiny16_full",
    "ijepa": "ijepa_tiny",
    "lightly-train": "lightly_train_simclr_torchvision_resnet18",
    "mae": "mae_base_pretrain",
    "mae-lite": "maelite_tiny_pretrain",
    "msn": "msn_tiny",
}


def small_file(family: str, folder: Path):
    """A checkpoint in the family's layout, of its smallest network, with random weights."""
    if family == "detectron2-detector":
        shapes = json.loads((ROOT / "tests/data/golden/detectron2_state_dict/mask_rcnn_R_18_FPN.json").read_text())
        return {
            "model": {
                key: random_like(key, shape if ".bottom_up." in key else [min(n, 8) for n in shape])
                for key, shape in shapes.items()
            },
            "iteration": 9,
            "trainer": {"_trainer": {"optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}}}},
        }
    if family == "detectron2":
        own = CASES["torchvision training resnet18"][2]()
        return own.state
    if family in RECORDED:
        return torch.load(from_record(RECORDED[family])(folder).path, weights_only=False)
    sizes = ("vit-s",) if family == "mocov3" else ("resnet18", "mobilenet", "resnet50", "vit-s")  # its page's example
    names = [name for size in sizes for name, case in CASES.items() if case[0] == family and size in name]
    _, layout, network = CASES[names[0]]
    return layout(network())


FAMILY_PAGES = [page for page in PAGES if page.parent.name == "converting" and page.stem != "README"]


@pytest.mark.parametrize("page", FAMILY_PAGES, ids=[page.stem for page in FAMILY_PAGES])
def test_every_command_of_a_familys_page_converts_its_checkpoint(page, place):
    for command in commands(page):
        words = shlex.split(command)
        assert words[:2] == ["sslight", "convert"]
        if "mmdet" in words:
            pytest.importorskip("mmdet", reason="comes with the mmdet extra")
        source, out = place / words[2], place / words[words.index("-o") + 1]
        if not source.exists():
            torch.save(small_file(page.stem, place), source)
            if page.stem == "detectron2":
                raw = source.rename(place / "resnet18.pth")
                assert cli.dispatch(["convert", str(raw), "--to", "detectron2", "-o", str(source)]) in (0, None)
        report = place / "report.json"
        report.unlink(missing_ok=True)
        extra = [] if "--report" in words else ["--report", str(report)]
        assert cli.dispatch([*words[1:], *extra]) in (0, None), command
        assert out.exists()
        assert json.loads(report.read_text())["source"]["family"] == page.stem, command


def test_every_family_has_a_page():
    from convert.families import FAMILIES

    assert {page.stem for page in FAMILY_PAGES} == set(FAMILIES)


def test_the_table_of_targets_is_the_registry_s():
    from convert.naming.rules import CLASSES
    from convert.targets import TARGETS

    page = (ROOT / "docs" / "converting" / "README.md").read_text()
    assert "--to {" + ",".join(TARGETS) + "}" in page
    for name in CLASSES:
        assert " | ".join([f"| {name}", *(target.matrix[name] for target in TARGETS.values())]) + " |" in page
