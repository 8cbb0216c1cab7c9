"""What is imported is declared and what is declared is imported; one version, found without importing a library."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
OURS = ("sslight", "pretrain", "convert", "benchmarks", "configs", "tools")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOT_ON_AN_INDEX = {"detectron2"}
IMPORTED_BY_OTHERS = {
    "tensorboard",  # torch.utils.tensorboard
    "setuptools",  # mmengine's pkg_resources
    "onnx",  # torch.onnx and onnxscript
    "mmcv-lite",  # mmdet's `mmcv`
}


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(*groups: list[str]) -> set[str]:
    return {plain(Requirement(line).name) for group in groups for line in group}


def imported() -> dict[str, set[str]]:
    """Third-party modules that the product imports, at the top or inside functions, with the files that do."""
    modules: dict[str, set[str]] = {}
    for file in (file for package in OURS for file in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for name in {name.split(".")[0] for name in names} - set(OURS) - set(sys.stdlib_module_names):
                modules.setdefault(name, set()).add(str(file.relative_to(ROOT)))
    return modules


def test_every_import_is_declared_and_every_requirement_imported():
    owners = metadata.packages_distributions()
    extras = PROJECT["optional-dependencies"]
    product = declared(PROJECT["dependencies"], extras["mmdet"], extras["onnx"], extras["cluster"])
    peers = declared(extras["peers"])  # a source's own project, asked where it is installed
    modules = imported()
    used = set()
    for module, files in modules.items():
        distributions = {plain(owner) for owner in owners.get(module, ())}
        tools_only = all(file.startswith("tools/") for file in files)
        allowed = product | peers | (declared(extras["test"], extras["docs"]) if tools_only else set())
        assert not distributions or distributions & allowed, f"{module}: {sorted(files)}"
        used |= distributions
    missing = modules.keys() - owners.keys() - NOT_ON_AN_INDEX - peers
    if missing:
        pytest.skip(f"not installed, so that its distribution is unknown: {', '.join(sorted(missing))}")
    assert product - used <= IMPORTED_BY_OTHERS


def test_constraints_pin_what_is_declared():
    pins = declared([line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")])
    extras = PROJECT["optional-dependencies"]
    assert declared(PROJECT["dependencies"], *extras.values()) - pins == {"sslight"}  # `all` names the others


def test_every_package_says_that_it_is_typed():
    for package in ("sslight", "pretrain", "convert", "benchmarks"):
        assert (ROOT / package / "py.typed").is_file()


def test_version_names_the_project_and_what_is_installed_without_importing_it(run):
    done = run("-c", "import sys; sys.modules['torch'] = None\nfrom sslight import cli; cli.dispatch(['--version'])")
    printed = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert printed["sslight"] == metadata.version("sslight")
    assert printed["Python"] == sys.version.split()[0]
    for name in ("torch", "torchvision", "timm"):
        assert printed[name] == metadata.version(name)


def test_a_module_without_metadata_is_a_source_tree(tmp_path, monkeypatch):
    from sslight.versions import version_of

    (tmp_path / "only_source").mkdir()
    (tmp_path / "only_source" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert version_of("only_source") == "source tree" and version_of("absent_altogether") is None
