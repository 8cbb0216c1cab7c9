"""Write the table of projects, files and results into docs/converting/README.md: python -m tests.convert.peers."""

from __future__ import annotations

import importlib
from pathlib import Path

from tests.convert.peers.case import Case

PAGE = Path(__file__).parents[3] / "docs" / "converting" / "README.md"
BEGIN, END = "<!-- begin: python -m tests.convert.peers -->\n", "<!-- end -->\n"


def cases() -> list[Case]:
    """The cases of every test file of this folder, in order."""
    files = sorted(Path(__file__).parent.glob("test_*.py"))
    modules = [importlib.import_module(f"tests.convert.peers.{file.stem}") for file in files]
    return [case for module in modules for case in getattr(module, "CASES", [])]


def table() -> str:
    """The table in Markdown: a row per project and result, its files side by side."""
    rows: dict[tuple[str, str], list[str]] = {}
    for case in sorted(cases(), key=lambda case: case.project.lower()):
        ask = {key: value for key, value in case.ask.items() if key != "options"}
        words = [
            f"--{key.replace('_', '-')}" + (f" {value}" if value is not True else "") for key, value in ask.items()
        ]
        words += [f"--set {key}={value}" for key, value in case.ask.get("options", {}).items()]
        file = case.file.replace("|", "\\|") + (f" (`{' '.join(words)}`)" if words else "")
        options = " ".join(f"{key}={value}" for key, value in case.options.items() if value is not None)
        read = (
            f"refused: {case.refused}" if case.refused else f"`{case.arch}`" + (f" with {options}" if options else "")
        )
        rows.setdefault((case.project, read), []).append(file)
    lines = [f"| {project} | {'; '.join(files)} | {read} |" for (project, read), files in rows.items()]
    return "\n".join(["| project | files | read as |", "|---|---|---|", *lines]) + "\n"


def split(page: str) -> tuple[str, str, str]:
    """The page before, in and after the place of the table."""
    before, _, rest = page.partition(BEGIN)
    inside, _, after = rest.partition(END)
    return before, inside, after


if __name__ == "__main__":
    before, _, after = split(PAGE.read_text())
    PAGE.write_text(before + BEGIN + table() + END + after)
    print(f"{len(cases())} cases")
