"""Mutated and hostile YAML files as the configuration of every command: refused in one line, or settings of the right
types. Nothing that a file says is run, opened or unfolded beyond bounds."""

from __future__ import annotations

import importlib.util
import json
import random
from collections.abc import Iterator
from pathlib import Path

import yaml

from benchmarks.evaluation import EVALUATIONS
from benchmarks.report.published import beside_published
from benchmarks.suite.settings import read_suite
from pretrain.original import translate
from pretrain.settings import DEFAULTS
from sslight.core.config import dump, flatten, load_config, to_dict
from sslight.core.errors import InputError
from tests.convert.mutations import flipped, inserted, overwritten, swapped_blocks, truncated
from tests.faults.processes import ROOT
from tests.faults.sandbox import attempts, row_of
from tests.faults.table import Row

COMMANDS = {
    "pretrain": (DEFAULTS, translate),
    **{name: (EVALUATIONS[name].settings, None) for name in ("knn", "linear", "semisup")},
}


def rows(size: str, place: Path) -> Iterator[Row]:
    files = originals()
    names, count = list(files), 5000 if size == "long" else 100

    def mutated(number: int) -> str:
        name, chance = names[number % len(names)], random.Random(number)
        change = chance.choice(
            (flipped, truncated, swapped_blocks, overwritten, inserted, other_value, other_value, hostile_line)
        )
        return read(name.split()[0], change(files[name], chance), place)

    outcomes = attempts(mutated, range(count), place, seconds=20, gigabytes=1)
    yield row_of(
        "mutated YAML files, the configuration of every command", outcomes, lambda number: names[number % len(names)]
    )
    readers = (*COMMANDS, *others()) if size == "long" else ("pretrain",)
    crafted = [(command, text) for text in hostile(place) for command in readers]
    outcomes = attempts(
        lambda number: read(*crafted[number], place), range(len(crafted)), place, seconds=30, gigabytes=1
    )
    yield row_of(
        "YAML with tags, alias bombs, circles of _BASE_, devices, deep nesting",
        outcomes,
        lambda number: f"{crafted[number][0]} {crafted[number][1][:60]!r}",
    )


def others() -> list[str]:
    """Readers of YAML beside `load_config`: the table of published numbers, suites, and detectron2's recipes."""
    there = all(map(importlib.util.find_spec, ("detectron2", "omegaconf")))
    return ["published", "suite", *(["detectron2"] if there else [])]


def originals() -> dict[str, bytes]:
    """One file for each command, and one in the published system's spelling; named by the command first."""
    golden = json.loads((ROOT / "tests" / "data" / "golden" / "original_configs.json").read_text())
    files = {
        "pretrain ours": ROOT / "configs/pretrain/dino_vit_sslight.yaml",
        "pretrain base": ROOT / "configs/pretrain/dino_cnn_baseline.yaml",
        "knn": ROOT / "configs/classification/knn.yaml",
        "linear": ROOT / "configs/classification/linear_sweep.yaml",
        "semisup": ROOT / "configs/classification/semi_1percent.yaml",
        "suite": ROOT / "configs/suites/paper.yaml",
        "published": ROOT / "configs/suites/published.yaml",
    }
    found = {
        name: path.read_bytes().replace(b"_BASE_: ", b"_BASE_: %s/" % bytes(path.parent))
        for name, path in files.items()
    }
    return {**found, "pretrain original": yaml.safe_dump(next(iter(golden["pretrain"].values()))).encode()}


def read(command: str, data: bytes, place: Path) -> str:
    """Read a file as a command does; returns how it ended. AssertionError where settings of other types come out."""
    file = place / "settings.yaml"
    file.write_bytes(data)
    try:
        if command == "published":
            beside_published([], file)
            return "right"
        if command == "suite":
            read_suite(str(file), [])
            return "right"
        if command == "detectron2":
            from benchmarks.detection.in_detectron2 import run as coco_detectron2

            coco_detectron2.load_config(file)
            return "right"
        defaults, translation = COMMANDS[command]
        cfg = load_config(defaults, file, [], translation)
    except InputError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000, f"said too much: {error}"
        return "refused"
    kinds = {key: type(value) for key, value in flatten(defaults)}
    assert {key: type(value) for key, value in flatten(to_dict(cfg))} == kinds
    assert yaml.safe_load(dump(cfg)) == to_dict(cfg)
    return "right"


VALUES = (
    "",
    "~",
    "-1",
    "1e400",
    ".nan",
    "-.inf",
    "9" * 400,
    "9" * 5000,
    "0x" + "f" * 300,
    "[]",
    "[1, [2, [3]]]",
    "{}",
    "{a: 1}",
    "true",
    "2001-02-30",
    "!!python/name:os.system",
    "!!binary x",
    "!!timestamp x",
    "!!bool x",
    "!!int x",
    "!!float x",
    "!!set {1, 2}",
    "'" + "(" * 300 + "'",
    "'" + "-" * 5000 + "1'",
    "'" + "[" * 2000 + "'",
    "'{[]: 1}'",
    "'\\0'",
    '"\\ud800"',
    "1:59:59:59",
    "*unknown",
    "&a [*a]",
    "| \n  text",
    "[.nan]",
    "['a', 'b']",
    "[[], {}]",
    "'[' + 'x' * 9**9 + ']'",
    "9**9**9",
    "__import__('os').system('true')",
)


def other_value(data: bytes, chance: random.Random) -> bytes:
    """A setting's value replaced by one that is odd."""
    lines = data.decode().splitlines()
    place = chance.choice([k for k, line in enumerate(lines) if ": " in line or line.endswith(":")] or [0])
    lines[place] = f"{lines[place].partition(':')[0]}: {chance.choice(VALUES)}"
    return "\n".join(lines).encode()


def hostile_line(data: bytes, chance: random.Random) -> bytes:
    """A line that does not belong there."""
    lines = data.splitlines(keepends=True)
    lines.insert(
        chance.randrange(len(lines) + 1),
        chance.choice(
            (
                b"_BASE_: settings.yaml\n",
                b"_BASE_: [settings.yaml, settings.yaml]\n",
                b"_BASE_: 7\n",
                b"? [1, 2]\n: 3\n",
                b"---\n",
                b"%YAML 9.9\n",
                b"<<: {SEED: 1}\n",
                b"SEED: 1\nSEED: 2\n",
                b"DATA: 5\n",
                b"DATA.WORKERS: 2\n",
                b"2: 2\n",
                b"~: ~\n",
                b"MODEL: !!python/object/apply:os.system ['true']\n",
                b"\t\n",
                b"\xff\n",
                b"TRAIN: {TRAIN: {TRAIN: 1}}\n",
            )
        ),
    )
    return b"".join(lines)


def hostile(place: Path) -> list[bytes]:
    """Whole files with a purpose."""
    canary = place.parent / "canary"
    bomb = "a0: &a0 {x: 1, y: 1}\n" + "".join(
        f"a{k}: &a{k} {{{', '.join(f'k{j}: *a{k - 1}' for j in range(9))}}}\n" for k in range(1, 30)
    )
    listed = (
        "x0: &x0 [lol, lol]\n"
        + "".join(f"x{k}: &x{k} [{', '.join([f'*x{k - 1}'] * 9)}]\n" for k in range(1, 30))
        + "SEED: *x29\n"
    )
    (place / "bomb.yaml").write_text(bomb)
    (place / "circle.yaml").write_text("_BASE_: circle.yaml\n")
    (place / "fork.yaml").write_text("_BASE_: [fork.yaml, fork.yaml]\n")
    for k in range(30):
        (place / f"tree{k}.yaml").write_text(f"_BASE_: [tree{k + 1}.yaml, tree{k + 1}.yaml]\n")
    (place / "tree30.yaml").write_text("SEED: 1\n")
    (place / "folder.yaml").mkdir()
    tags = (
        "!!python/object/apply:os.system ['touch {}']",
        "!!python/object/new:os.system ['touch {}']",
        "!!python/object/apply:subprocess.check_output [[touch, '{}']]",
        "!!python/name:os.system",
        "!!python/object/apply:builtins.eval [\"open('{}', 'w')\"]",
        "!!python/module:antigravity",
        "!!python/object/apply:builtins.open ['{}', w]",
        "!<tag:yaml.org,2002:python/object/apply:os.mkdir> ['{}']",
    )
    return [
        *(f"SEED: {tag.format(canary)}\n".encode() for tag in tags),
        *(
            f"_BASE_: {base}\n".encode()
            for base in (
                "circle.yaml",
                "fork.yaml",
                "tree0.yaml",
                "folder.yaml",
                "/dev/zero",
                "/dev/stdin",
                "/proc/self/mem",
                "http://127.0.0.1:9/x.yaml",
                "https://127.0.0.1:9/x.yaml",
                "../" * 40 + "etc/passwd",
                "~",
                "''",
                "[]",
                "{}",
                "[bomb.yaml, bomb.yaml]",
                "bomb.yaml",
            )
        ),
        bomb.encode(),
        listed.encode(),
        b"SEED: &a [*a]\n",
        b"MODEL: &a {BACKBONE_ARCH: *a}\n",
        b"&a [*a]\n",
        b"[" * 20_000,
        b"{a: " * 20_000,
        b"a:\n" + b" " * 9 + b"- " * 20_000,
        b"- " * 20_000,
        b"? " * 20_000,
        b"!" * 20_000,
        b"SEED: " + b"9" * 60_000,
        b"x: '" + b"y" * 60_000,
        b"SEED: 1\n" * 300_000,
        b"#" * (10**7),
        b"\0" * 999,
        b"\xff\xfeS\0E\0E\0D\0",
        b"",
        b"[]",
        b"7",
        b"_BASE_",
        b"- _BASE_",
        b"--- 1\n--- 2\n",
    ]
