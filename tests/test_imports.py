"""The arrows between the packages point one way (the table in the README)."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = ("sslight", "pretrain", "convert", "benchmarks", "configs", "tools", "tests")
# The longest prefix of a module's name decides what it may import.
MAY_IMPORT = {
    "sslight": ["sslight"],  # anything else only inside a function, or by a name in text
    "sslight.core": ["sslight.core"],
    "pretrain": ["sslight.core", "pretrain"],
    "convert": ["sslight.core", "convert", "pretrain.backbones"],
    "benchmarks": ["sslight.core", "benchmarks", "convert", "pretrain"],
}
MUST_NOT_IMPORT = {"benchmarks": ["pretrain.train", "pretrain.methods"]}
LAZY = ("sslight",)
# What a package imports by its name alone, when it is asked for: the table names it, too.
BY_NAME = {"pretrain": {"convert.reader:read_checkpoint"}}


def imported(path: Path, inside_functions: bool = True) -> set[str]:
    """Dotted names of our modules that a file imports, at the top or inside functions."""
    names, tree = set(), ast.parse(path.read_text())
    for node in ast.walk(tree) if inside_functions else tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] in OURS}


def within(name: str, allowed: list[str]) -> bool:
    return any(name == one or name.startswith(one + ".") for one in allowed)


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("package", ["sslight", "pretrain", "convert", "benchmarks"])
def test_import_directions(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for file in files:
        rule = max((name for name in MAY_IMPORT if within(module(file), [name])), key=len)
        names = imported(file, inside_functions=rule not in LAZY)
        for name in names:
            # `from sslight.core import errors` shows as `sslight.core` and `sslight.core.errors`: judge the longer one
            if any(other.startswith(name + ".") for other in names):
                continue
            assert within(name, MAY_IMPORT[rule]), f"{file.relative_to(ROOT)} imports {name}"
            assert not within(name, MUST_NOT_IMPORT.get(rule, [])), f"{file.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("package", BY_NAME)
def test_names_in_text_that_cross_the_arrows(package):
    texts = {
        node.value
        for file in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    names = {text for text in texts if re.fullmatch(r"(sslight|convert|benchmarks)(\.\w+)+(:\w+)?", text)}
    assert {name for name in names if not within(name.split(":")[0], MAY_IMPORT[package])} == BY_NAME[package]


def circles(arrows: dict[str, set[str]]) -> list[str]:
    """Modules from which a path of imports leads back to themselves."""

    def reached(start: str) -> set[str]:
        seen, todo = set(), [start]
        while todo:
            new = arrows.get(todo.pop(), set()) - seen
            seen |= new
            todo += new
        return seen

    return [name for name in arrows if name in reached(name)]


def test_no_module_imports_itself_through_others():
    files = {
        module(file): file
        for package in ("sslight", "pretrain", "convert", "benchmarks")
        for file in (ROOT / package).rglob("*.py")
    }
    arrows = {
        name: {
            other
            for other in imported(file)
            if other in files
            and other != name
            and not any(more.startswith(other + ".") for more in imported(file) if more in files)
        }
        for name, file in files.items()
        if not within(name, list(LAZY)) or within(name, ["sslight.core"])
    }
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert not circles(arrows)


def test_no_module_is_named_like_a_library():
    # A script's folder comes first on the path: convert/timm.py would shadow timm.
    libraries = {"timm", "onnx", "torch", "torchvision", "mmdet", "detectron2", "mmcv", "numpy", "types", "logging"}
    for package in ("sslight", "pretrain", "convert", "benchmarks"):
        assert not {file.stem for file in (ROOT / package).rglob("*.py")} & libraries
