"""`result.json`: what is written is read back equal, and a malformed one is refused in one line."""

import json
import sys
from types import SimpleNamespace

import pytest

from sslight.core.errors import InputError
from sslight.core.result import SCHEMA, command, read_result, write_result


def fields(**changes):
    return {
        "benchmark": "knn",
        "protocol": "knn",
        "checkpoint": {"path": "a.pth", "sha256": "00", "arch": "resnet18", "method": "dino", "family": "sslight"},
        "data": {"path": "data", "counts": {"train": 8, "val": 4}, "fingerprint": "ff"},
        "metrics": {"top1": {"value": 50.0, "interval": [40.0, 60.0]}, "top5": {"value": 90.0, "interval": None}},
        "per_seed": [{"seed": 0, "top1": 50.0}],
        "config": {"SEED": 0},
        "seconds": 1,
        **changes,
    }


def test_round_trip_with_environment_and_extra_fields(tmp_path):
    path = write_result(tmp_path, **fields(k_sweep={"10": 50.0}))
    result = read_result(tmp_path)
    assert read_result(path) == result
    assert result["schema"] == SCHEMA and result["k_sweep"] == {"10": 50.0}
    assert result["metrics"] == fields()["metrics"]
    assert "torch" in result["environment"]["versions"] and result["command"]
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize(
    "changes, word",
    [
        ({"benchmark": "k-nn"}, "no evaluation's name"),
        ({"checkpoint": {"path": "a"}}, "sha256"),
        ({"metrics": {}}, "metrics is empty"),
        ({"metrics": {"top1": 50.0}}, "metrics.top1"),
        ({"metrics": {"top1": {"value": float("nan"), "interval": None}}}, "finite"),
        ({"metrics": {"top1": {"value": 70.0, "interval": [40.0, 60.0]}}}, "outside"),
        ({"per_seed": [{"top1": 1.0}]}, "seed"),
    ],
)
def test_malformed_results_are_neither_written_nor_read(tmp_path, changes, word):
    with pytest.raises(ValueError, match=word):
        write_result(tmp_path, **fields(**changes))
    assert not (tmp_path / "result.json").exists()
    write_result(tmp_path, **fields())
    result = json.loads((tmp_path / "result.json").read_text()) | changes
    (tmp_path / "result.json").write_text(json.dumps(result))
    with pytest.raises(InputError, match=word) as error:
        read_result(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_files_that_are_no_results(tmp_path):
    with pytest.raises(InputError, match="not found"):
        read_result(tmp_path)
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(InputError, match="not a result file"):
        read_result(tmp_path)
    (tmp_path / "result.json").write_text("[]")
    with pytest.raises(InputError, match="not a JSON object"):
        read_result(tmp_path)


@pytest.mark.parametrize(
    ("spec", "program", "environment", "typed"),
    [
        (None, "/usr/bin/sslight", {}, "sslight"),
        (None, "tools/x.py", {}, "python tools/x.py"),
        ("pretrain.__main__", "/p/pretrain/__main__.py", {}, "python -m pretrain"),
        (
            "benchmarks.knn",
            "/b/knn.py",
            {"LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "4"},
            "torchrun --nproc_per_node 4 -m benchmarks.knn",
        ),
        (
            "benchmarks.knn",
            "/b/knn.py",
            {"LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"},
            "torchrun --nnodes 2 --nproc_per_node 4 -m benchmarks.knn",
        ),
    ],
)
def test_the_command_can_be_typed_again(monkeypatch, spec, program, environment, typed):
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec and SimpleNamespace(name=spec))
    monkeypatch.setattr(sys, "argv", [program, "OUTPUT_DIR", "my results"])
    for name, value in {**environment, **({"TORCHELASTIC_RUN_ID": "1"} if environment else {})}.items():
        monkeypatch.setenv(name, value)
    assert command() == f"{typed} OUTPUT_DIR 'my results'"
