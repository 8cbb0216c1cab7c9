"""The umbrella command: `sslight pretrain | convert | bench | report | pack | demo`. Imports a part only to run it.

`--help` and shell completion import the parser of a command, not what it runs: they need no torch.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from sslight.core.arguments import Command, Imported
from sslight.core.errors import EXIT_BAD_INPUT, EXIT_DONE, nearest
from sslight.core.processes import run_command
from sslight.core.registry import load
from sslight.versions import versions


@dataclass(frozen=True)
class Group:
    """Commands below a command; `where`: the `module:function` that lists them."""

    before: str
    where: str

    @property
    def commands(self) -> dict[str, Command]:
        return load(self.where)()

    @property
    def text(self) -> str:
        return f"{self.before}: {', '.join(self.commands)}"


COMMANDS: dict[str, Command | Group] = {
    "pretrain": Imported(
        "pre-train a backbone without labels: images in, run directory out",
        "pretrain.train:main",
        "pretrain.settings:pretrain",
    ),
    "convert": Imported(
        "turn a checkpoint of any family into a verified file for a framework",
        "convert.convert_ckpt:main",
        "convert.convert_ckpt:parser",
    ),
    "bench": Group("measure a checkpoint downstream", "benchmarks.evaluation:commands"),
    "report": Imported(
        "one page over many results, beside the published numbers",
        "benchmarks.report.report:main",
        "benchmarks.report.report:parser",
    ),
    "pack": Imported(
        "convert a data directory between class folders, HDF5 and tar shards",
        "pretrain.data.pack:main",
        "pretrain.settings:pack",
    ),
    "demo": Imported(
        "everything once on real handwritten digits, in about 14 minutes",
        "benchmarks.demo:main",
        "benchmarks.demo:parser",
    ),
}


def usage(program: str, commands: Mapping[str, Command | Group]) -> str:
    lines = "\n".join(f"  {name:<10}{command.text}" for name, command in commands.items())
    return (
        f"usage: {program} COMMAND ...\n\ncommands:\n{lines}\n\nexample:\n  {program} {next(iter(commands))} --help\n"
    )


def dispatch(
    arguments: list[str], program: str = "sslight", commands: Mapping[str, Command | Group] = COMMANDS
) -> int | None:
    """Hand the arguments to the command; a wrong name is answered with the nearest one."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage(program, commands), file=sys.stdout if arguments else sys.stderr)
        return EXIT_DONE if arguments else EXIT_BAD_INPUT
    name, *rest = arguments
    if name == "--version" and commands is COMMANDS:
        print(versions())
        return EXIT_DONE
    if name not in commands:
        print(
            f"error: {program} has no command '{name}'{nearest(name, commands)}: use {', '.join(commands)}",
            file=sys.stderr,
        )
        return EXIT_BAD_INPUT
    command = commands[name]
    if isinstance(command, Group):
        return dispatch(rest, f"{program} {name}", command.commands)
    if "-h" in rest or "--help" in rest:
        command.arguments().print_help()
        return EXIT_DONE
    command.arguments().parse_intermixed_args(rest)  # a wrong option is answered before anything heavy is imported
    return command.run(rest)


def complete() -> None:
    """Answer the shell, and exit. Of all commands only the one typed so far is imported."""
    import argcomplete

    *_, typed, _ = argcomplete.split_line(os.environ["COMP_LINE"], int(os.environ["COMP_POINT"]))
    root = here = argparse.ArgumentParser("sslight")
    words = iter(typed[1:])
    commands: Mapping[str, Command | Group] = COMMANDS
    while commands:
        chosen, sub, further = next(words, ""), here.add_subparsers(), {}
        for name, command in commands.items():
            parents: list[argparse.ArgumentParser] = []
            if name == chosen:
                if isinstance(command, Group):
                    further = command.commands
                else:
                    parents = [command.arguments()]
            parser = sub.add_parser(name, parents=parents, add_help=not parents)
            here = parser if name == chosen else here
        commands = further
    argcomplete.autocomplete(root)


def main() -> None:
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what could follow
        complete()
    run_command(lambda: dispatch(sys.argv[1:]))


if __name__ == "__main__":
    main()
