"""The arrows between the packages point one way (the table in the README)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = ("pretrain", "convert", "benchmarks", "configs", "tools", "tests", "sslight")
MAY_IMPORT = {
    "pretrain": ["pretrain"],
    "convert": ["convert", "pretrain.backbones", "pretrain.checkpoint", "pretrain.errors"],
    "benchmarks": ["benchmarks", "convert", "pretrain"],
}
MUST_NOT_IMPORT = {"benchmarks": ["pretrain.train", "pretrain.methods"]}


def imported(path: Path) -> set[str]:
    """Dotted names of our modules that a file imports, at the top or inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] in OURS}


def within(name: str, allowed: list[str]) -> bool:
    return any(name == one or name.startswith(one + ".") for one in allowed)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_import_directions(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for file in files:
        for name in imported(file):
            if name == "pretrain" and file.name == "__init__.py":
                continue  # a package's own start sets the threads up, and nothing else
            # `from pretrain import errors` shows as both `pretrain` and `pretrain.errors`: judge the longer one
            if name in OURS and any(other.startswith(name + ".") for other in imported(file)):
                continue
            assert within(name, MAY_IMPORT[package]), f"{file.relative_to(ROOT)} imports {name}"
            assert not within(name, MUST_NOT_IMPORT.get(package, [])), f"{file.relative_to(ROOT)} imports {name}"


def test_no_module_is_named_like_a_library():
    # A script's folder comes first on the path: convert/timm.py would shadow timm.
    libraries = {"timm", "onnx", "torch", "torchvision", "mmdet", "detectron2", "mmcv", "numpy", "types", "logging"}
    for package in MAY_IMPORT:
        assert not {file.stem for file in (ROOT / package).glob("*.py")} & libraries
