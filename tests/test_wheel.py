"""A wheel built from this tree, run in an empty folder: it brings its configs and finds them there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from sslight.core.config import CONFIGS, find_config, load_config
from sslight.core.errors import InputError
from tests.benchmarks.report.report_sets import result

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("sslight", "pretrain", "convert", "benchmarks", "configs")
# Several commands in one process, to import torch once; each is printed with its exit code.
RUN = """
import sys, configs, pretrain
from sslight.cli import dispatch
from sslight.core.processes import run_command
assert "/elsewhere/" not in pretrain.__file__ and "/elsewhere/" in configs.__file__, (pretrain, configs)
for line in sys.stdin.read().splitlines():
    try:
        run_command(lambda: dispatch(line.split()))
    except SystemExit as ended:
        print(f"exit {ended.code or 0}: {line}", flush=True)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    source, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            source,
            "--no-deps",
            "--no-build-isolation",
            "--no-index",
            "--disable-pip-version-check",
            "--quiet",
            "--wheel-dir",
            made,
        ],
        check=True,
        timeout=120,
    )
    (file,) = made.glob("sslight-*.whl")
    return file


def test_every_file_of_the_packages_is_in_the_wheel(wheel):
    there = {
        file.relative_to(ROOT).as_posix()
        for name in PACKAGES
        for file in (ROOT / name).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert there and not there - set(zipfile.ZipFile(wheel).namelist())


def test_commands_of_an_installed_wheel_find_their_configs(wheel, tmp_path, image_folder):
    """In a folder that holds nothing, while another `configs` is first on the path."""
    site, empty, elsewhere = (tmp_path / name for name in ("site", "empty", "elsewhere"))
    zipfile.ZipFile(wheel).extractall(site)
    (elsewhere / "configs").mkdir(parents=True)
    (elsewhere / "configs" / "__init__.py").touch()
    empty.mkdir()
    result(
        tmp_path / "results" / "linear",
        benchmark="linear",
        metrics={"top1_best_epoch": {"value": 60.0, "interval": None}},
    )
    (tmp_path / "suite.yaml").write_text("evaluations: {cost: {benchmark: cost}}")
    calls = [
        f"report {tmp_path}/results -o report.html",
        f"pretrain --cfg configs/pretrain/demo.yaml --dry-run DATA.PATH_TO_DATA_DIR {image_folder} OUTPUT_DIR a",
        "bench all --suite paper --weights random --dry-run OUTPUT_DIR a",
        "bench linear --cfg configs/classification/linear_vit.yaml",
        "bench linear --cfg configs/classification/linear_vit.yml",
    ]
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        input="\n".join(calls),
        cwd=empty,
        text=True,
        capture_output=True,
        timeout=300,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(elsewhere), str(site), os.environ.get("PYTHONPATH", "")]).rstrip(
                os.pathsep
            ),
        },
    )
    codes = [line for line in done.stdout.splitlines() if line.startswith("exit ")]
    assert codes == [f"exit {code}: {call}" for code, call in zip((0, 0, 2, 2, 2), calls, strict=True)], done
    assert "66.7" in (empty / "report.html").read_text()  # the published table
    assert "16, 16" in done.stdout  # the demo's views
    *_, suite, linear, absent = done.stderr.splitlines()
    assert "needs --arch" in suite  # after the suite and all its files were found
    assert "OUTPUT_DIR is not set" in linear
    assert "config file not found: configs/classification/linear_vit.yml" in absent


def test_recipes_of_the_frameworks_are_found_with_their_bases(wheel, tmp_path):
    """`_base_` and `_BASE_` are relative to a recipe, wherever that lies."""
    pytest.importorskip("mmdet")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = """
from benchmarks.detection.framework import FRAMEWORKS, recipe_name, shipped_recipe
from sslight.core.config import read_settings
for framework in ("mmdet", "detectron2"):
    print(shipped_recipe(framework, recipe_name(framework, "det", "resnet18", None, "2x"))[0])
run = FRAMEWORKS["mmdet"]
print(run.recipe_of(run.load_config("configs/mmdet/mask_rcnn_r18_fpn_1x.py"))["max_iter"])
print(read_settings("configs/detectron2/mask_rcnn_r18_fpn_1x.yaml")["INPUT.FORMAT"])
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
    )
    shipped = tmp_path / "site" / "configs"
    recipes = [shipped / "mmdet" / "faster_rcnn_r18_fpn_1x.py", shipped / "detectron2" / "faster_rcnn_r18_fpn_1x.yaml"]
    assert done.stdout.splitlines() == [*map(str, recipes), "90000", "RGB"], done


def test_a_users_own_file_comes_before_the_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "configs/pretrain/demo.yaml"
    assert find_config(name) == CONFIGS / "pretrain" / "demo.yaml"
    assert find_config("pretrain/demo.yaml") == Path("pretrain/demo.yaml")  # only what begins with configs/
    (tmp_path / "configs" / "pretrain").mkdir(parents=True)
    (tmp_path / name).write_text("SEED: 7\n")
    assert find_config(name) == Path(name) and load_config({"SEED": 0}, name).SEED == 7
    with pytest.raises(InputError, match="config file not found: configs/pretrain/deno.yaml .*did you mean"):
        load_config({}, "configs/pretrain/deno.yaml")
