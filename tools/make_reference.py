"""The site's generated pages: the reference, from the code's own tables, and the README and its companions.

A hook of mkdocs (mkdocs.yml names it); `python -m tools.make_reference DIR` writes the same pages into a folder.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import io
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sslight.cli import Group
    from sslight.core.arguments import Command

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # mkdocs is started from anywhere

# Title and `module:REGISTRY` of the registries whose names and texts are listed. A new kind of part is a line here.
REGISTRIES = [
    ("Pre-training methods", "pretrain.methods.base:METHODS"),
    ("Formats of images", "pretrain.data.sources:FORMATS"),
    ("Targets of a conversion", "convert.targets:TARGETS"),
    ("Evaluations", "benchmarks.evaluation:EVALUATIONS"),
    ("Detection frameworks", "benchmarks.detection.framework:FRAMEWORKS"),
]
# Page of the site -> file at the project's root.
PAGES = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}


def comments(source: str) -> dict[str, str]:
    """{dotted key: the comment on the last line of its value} of all dictionaries written out in a module."""
    lines = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }

    def walk(node: ast.Dict, prefix: str) -> Iterator[tuple[str, str]]:
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                if isinstance(value, ast.Dict):
                    at = key.lineno
                    yield from walk(value, f"{prefix}{key.value}.")
                else:
                    at = value.end_lineno or value.lineno
                if at in lines:
                    yield f"{prefix}{key.value}", lines[at]

    nested = set()
    texts: dict[str, str] = {}
    for node in ast.walk(ast.parse(source)):  # outer dictionaries come before those within them
        if isinstance(node, ast.Dict) and node not in nested:
            nested |= {child for child in ast.walk(node) if isinstance(child, ast.Dict)}
            texts |= dict(walk(node, ""))
    return texts


def cell(text: object) -> str:
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    lines = [list(head), ["---"] * len(list(head)), *rows]
    return "\n".join("| " + " | ".join(map(cell, line)) + " |" for line in lines) + "\n"


def kind(value: object) -> str:
    if isinstance(value, list):
        return f"list of {kind(value[0])}" if value else "list"
    return type(value).__name__


def settings() -> Iterator[tuple[str, Mapping, list[Path]]]:
    """(title, nested keys and defaults, files with the comments beside these) of pre-training and each evaluation."""
    import pretrain.settings
    from benchmarks.evaluation import EVALUATIONS

    yield "Pre-training", pretrain.settings.DEFAULTS, [Path(pretrain.settings.__file__)]
    for name, evaluation in EVALUATIONS.items():
        if evaluation.settings:
            module = Path(inspect.getfile(type(evaluation)))
            files = [file for file in (module.with_name("settings.py"), module) if file.is_file()]
            yield f"sslight bench {name}", evaluation.settings, files


def settings_page() -> str:
    from sslight.core.config import flatten

    text = (
        "# Configuration keys\n\nIn a YAML file nested, on the command line as `KEY VALUE`. A misspelt key is "
        "an error that names the nearest known one.\n"
    )
    for title, defaults, files in settings():
        beside = {key: comment for file in files for key, comment in comments(file.read_text("utf-8")).items()}
        rows = [
            (f"`{key}`", kind(value), f"`{value!r}`", beside.get(key, beside.get(key.rpartition(".")[0], "")))
            for key, value in flatten(defaults)
        ]
        text += f"\n## {title}\n\n" + table(("key", "type", "default", ""), rows)
    return text


def commands(prefix: str, group: Mapping[str, Command | Group]) -> Iterator[tuple[str, Command]]:
    """(words, command) of all commands, those within groups too."""
    from sslight.cli import Group

    for name, command in group.items():
        if isinstance(command, Group):
            yield from commands(f"{prefix} {name}", command.commands)
        else:
            yield f"{prefix} {name}", command


def commands_page() -> str:
    from sslight.cli import COMMANDS

    text = "# Commands\n\n"
    for words, command in commands("sslight", COMMANDS):
        parser = command.arguments()
        text += f"## {words}\n\n{parser.description}\n\n"
        text += table(("option", "values", "default", ""), options(parser))
        text += f"\n```text\n{(parser.epilog or '').strip()}\n```\n\n"
    return text


def options(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str, str, str]]:
    from sslight.core.compat import actions

    for action in actions(parser):
        if action.help == argparse.SUPPRESS:
            continue
        names = ", ".join(f"`{word}`" for word in action.option_strings) or f"`{action.metavar or action.dest}`"
        values = ", ".join(map(str, action.choices)) if action.choices else str(action.metavar or "")
        default = "" if action.default in (None, False, [], argparse.SUPPRESS) else f"`{action.default}`"
        yield (
            names,
            values,
            default,
            (action.help or "") + " (required)" * (action.required and bool(action.option_strings)),
        )


def conversion_page() -> str:
    from convert.families import FAMILIES
    from convert.naming.rules import CLASSES
    from convert.targets import TARGETS

    text = "# Checkpoint families and targets\n\n## Families\n\n"
    text += table(
        ("family", "recognised by", "architectures"),
        ((f"`{family.name}`", family.rule, ", ".join(family.architectures)) for family in FAMILIES.values()),
    )
    text += "\n## Targets\n\nEvery family goes to every target of its architecture's row.\n\n"
    return text + table(
        ("architecture", *TARGETS), ((name, *(target.matrix[name] for target in TARGETS.values())) for name in CLASSES)
    )


def parts_page() -> str:
    from sslight.core.registry import load

    text = "# Parts and suites\n"
    for title, where in REGISTRIES:
        registry = load(where)
        text += f"\n## {title}\n\n" + table(("name", ""), ((f"`{name}`", registry.text(name)) for name in registry))
    return text + "".join(suites())


def suites() -> Iterator[str]:
    from benchmarks.suite.settings import SUITES
    from sslight.core.config import read_yaml

    for file in sorted(SUITES.glob("*.yaml")):
        suite = read_yaml(file)
        if not isinstance(suite, dict) or "evaluations" not in suite:  # settings of one of a suite's evaluations
            continue
        rows = (
            (
                f"`{name}`",
                entry["benchmark"],
                ", ".join(entry.get("frameworks", [])),
                config if isinstance(config := entry.get("config", ""), str) else ", ".join(config.values()),
                " ".join(map(str, entry.get("options", []))),
            )
            for name, entry in suite["evaluations"].items()
        )
        yield f"\n## Suite {file.stem}\n\n`configs/suites/{file.name}`\n\n"
        yield table(("name", "benchmark", "frameworks", "configuration", "options"), rows)


def root_page(name: str) -> str:
    """A page at the project's root, with its links as they are within the site."""
    text = (ROOT / name).read_text(encoding="utf-8")
    pages = {file: page for page, file in PAGES.items()}

    def moved(match: re.Match[str]) -> str:
        target, anchor = match[1], match[2] or ""
        target = pages.get(target, target.removeprefix("docs/"))
        return f"]({'contents.md' if target == 'README.md' else target}{anchor})"

    return re.sub(r"\]\((?![a-z]+:|#)([^)#\s]+)(#[\w-]*)?\)", moved, text)


def generated() -> dict[str, str]:
    """{path of the page: Markdown}"""
    return {page: root_page(file) for page, file in PAGES.items()} | {
        "contents.md": (ROOT / "docs" / "README.md").read_text(encoding="utf-8"),
        "reference/settings.md": settings_page(),
        "reference/commands.md": commands_page(),
        "reference/conversion.md": conversion_page(),
        "reference/parts.md": parts_page(),
    }


def on_files(files, config):
    """mkdocs: add the generated pages to those of docs/."""
    from mkdocs.structure.files import File

    for page, text in generated().items():
        files.append(File.generated(config, page, content=text))
    return files


if __name__ == "__main__":
    out = Path(sys.argv[1])
    for page, text in generated().items():
        (out / page).parent.mkdir(parents=True, exist_ok=True)
        (out / page).write_text(text, encoding="utf-8")
