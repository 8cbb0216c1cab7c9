"""The umbrella command: `sslight pretrain | convert | bench | report | pack | demo`. Imports a part only to run it.

`--help` and shell completion import the parser of a command, not what it runs: they need no torch.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from dataclasses import dataclass

from sslight.core.arguments import Parser
from sslight.core.errors import EXIT_BAD_INPUT, EXIT_DONE, nearest
from sslight.core.processes import run_command


@dataclass(frozen=True)
class Command:
    """`main`: the module whose `main(argv)` runs it; `parser`: module:function of its arguments, quick to import."""

    text: str
    main: str
    parser: str


BENCHMARKS = {
    "knn": Command(
        "weighted k-NN on frozen features", "benchmarks.classification.knn", "benchmarks.classification.settings:knn"
    ),
    "linear": Command(
        "linear classification on frozen features",
        "benchmarks.classification.linear",
        "benchmarks.classification.settings:linear",
    ),
    "semisup": Command(
        "fine-tuning on 1%, 10% or all of the labels",
        "benchmarks.classification.semisup",
        "benchmarks.classification.settings:semisup",
    ),
    "coco": Command(
        "detection and instance segmentation in mmdet or detectron2",
        "benchmarks.detection.coco",
        "benchmarks.detection.settings:parser",
    ),
    "all": Command(
        "a suite of these for several checkpoints, here or as SLURM jobs",
        "benchmarks.suite.suite",
        "benchmarks.suite.settings:parser",
    ),
    "cost": Command(
        "parameters, FLOPs, latency and throughput on this machine",
        "benchmarks.deployment.cost",
        "benchmarks.deployment.cost:parser",
    ),
}
COMMANDS = {
    "pretrain": Command(
        "pre-train a backbone without labels: images in, run directory out",
        "pretrain.train",
        "pretrain.settings:pretrain",
    ),
    "convert": Command(
        "turn a checkpoint of any family into a verified file for a framework",
        "convert.convert_ckpt",
        "convert.convert_ckpt:parser",
    ),
    "bench": BENCHMARKS,
    "report": Command(
        "one page over many results, beside the published numbers",
        "benchmarks.report.report",
        "benchmarks.report.report:parser",
    ),
    "pack": Command(
        "convert a data directory between class folders, HDF5 and tar shards",
        "pretrain.data.pack",
        "pretrain.settings:pack",
    ),
    "demo": Command(
        "the whole road on real handwritten digits, in about 14 minutes", "benchmarks.demo", "benchmarks.demo:parser"
    ),
}


def usage(program: str, commands: dict) -> str:
    texts = {
        name: f"measure a checkpoint downstream: {', '.join(command)}" if isinstance(command, dict) else command.text
        for name, command in commands.items()
    }
    lines = "\n".join(f"  {name:<10}{text}" for name, text in texts.items())
    return (
        f"usage: {program} COMMAND ...\n\ncommands:\n{lines}\n\nexample:\n  {program} {next(iter(commands))} --help\n"
    )


def dispatch(arguments: list[str], program: str = "sslight", commands: dict | None = None) -> int | None:
    """Hand the arguments to the command's own `main(argv)`; a wrong name is answered with the nearest one."""
    commands = COMMANDS if commands is None else commands
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage(program, commands), file=sys.stdout if arguments else sys.stderr)
        return EXIT_DONE if arguments else EXIT_BAD_INPUT
    name, *rest = arguments
    if name not in commands:
        print(
            f"error: {program} has no command '{name}'{nearest(name, commands)}: use {', '.join(commands)}",
            file=sys.stderr,
        )
        return EXIT_BAD_INPUT
    command = commands[name]
    if isinstance(command, dict):
        return dispatch(rest, f"{program} {name}", command)
    if "-h" in rest or "--help" in rest:
        parser_of(command).print_help()
        return EXIT_DONE
    parser_of(command).parse_intermixed_args(rest)  # a wrong option is answered before anything heavy is imported
    return importlib.import_module(command.main).main(rest)


def parser_of(command: Command) -> Parser:
    module, function = command.parser.split(":")
    return getattr(importlib.import_module(module), function)()


def complete() -> None:
    """Answer the shell, and exit. Of all commands only the one typed so far is imported."""
    import argcomplete

    *_, typed, _ = argcomplete.split_line(os.environ["COMP_LINE"], int(os.environ["COMP_POINT"]))
    root = here = argparse.ArgumentParser("sslight")
    commands, words = COMMANDS, iter(typed[1:])
    while isinstance(commands, dict):
        chosen, sub = next(words, ""), here.add_subparsers()
        for name in commands:
            parents = [parser_of(commands[name])] if name == chosen and isinstance(commands[name], Command) else []
            parser = sub.add_parser(name, parents=parents, add_help=not parents)
            here = parser if name == chosen else here
        commands = commands.get(chosen)
    argcomplete.autocomplete(root)


def main() -> None:
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what could follow
        complete()
    run_command(lambda: dispatch(sys.argv[1:]))


if __name__ == "__main__":
    main()
