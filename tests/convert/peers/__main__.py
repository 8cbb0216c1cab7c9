"""Print the table of projects, files and results for docs/converting/README.md: python -m tests.convert.peers."""

from __future__ import annotations

import importlib
from pathlib import Path

from tests.convert.peers.case import Case


def cases() -> list[Case]:
    """The cases of every test file of this folder, in order."""
    files = sorted(Path(__file__).parent.glob("test_*.py"))
    modules = [importlib.import_module(f"tests.convert.peers.{file.stem}") for file in files]
    return [case for module in modules for case in getattr(module, "CASES", [])]


def table() -> str:
    """The table in Markdown, a row per case."""
    rows = ["| project | file | read as | |", "|---|---|---|---|"]
    for case in sorted(cases(), key=lambda case: case.project.lower()):
        options = " ".join(f"{key}={value}" for key, value in case.options.items())
        read = f"refused: {case.refused}" if case.refused else f"`{case.arch}`{f', {options}' if options else ''}"
        ask = {key: value for key, value in case.ask.items() if key != "options"}
        words = [
            f"--{key.replace('_', '-')}" + (f" {value}" if value is not True else "") for key, value in ask.items()
        ]
        words += [f"--set {key}={value}" for key, value in case.ask.get("options", {}).items()]
        asked = f"`{' '.join(words)}`" if words else ""
        rows.append(f"| {case.project} | {case.file} | {read} | {asked} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
