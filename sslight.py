"""The umbrella command: `sslight pretrain | convert | bench | report | pack | demo`. Imports a part only to run it."""

from __future__ import annotations

import importlib
import sys

from pretrain.errors import EXIT_BAD_INPUT, EXIT_DONE, nearest, run_command

COMMANDS = {
    "pretrain": ("pretrain.train", "pre-train a backbone without labels: images in, run directory out"),
    "convert": ("convert.convert_ckpt", "turn a checkpoint of any family into a verified file for a framework"),
    "bench": (None, "measure a checkpoint downstream: knn, linear, semisup, coco"),
    "report": ("benchmarks.report", "one page over many results, beside the published numbers"),
    "pack": ("pretrain.pack", "convert a data directory between class folders, HDF5 and tar shards"),
    "demo": ("benchmarks.demo", "the whole road on real handwritten digits, in about fifteen minutes"),
}
BENCHMARKS = {
    "knn": ("benchmarks.knn", "weighted k-NN on frozen features"),
    "linear": ("benchmarks.linear", "linear classification on frozen features"),
    "semisup": ("benchmarks.semisup", "fine-tuning on 1%, 10% or all of the labels"),
    "coco": ("benchmarks.coco", "detection and instance segmentation in mmdet or detectron2"),
}


def usage(program: str, commands: dict[str, tuple[str | None, str]]) -> str:
    lines = "\n".join(f"  {name:<10}{text}" for name, (_, text) in commands.items())
    return (f"usage: {program} COMMAND ...\n\ncommands:\n{lines}\n\n"
            f"example:\n  {program} {next(iter(commands))} --help\n")


def dispatch(arguments: list[str], program: str = "sslight", commands: dict | None = None) -> int | None:
    """Hand the arguments to the command's own `main(argv)`; a wrong name is answered with the nearest one."""
    commands = COMMANDS if commands is None else commands
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage(program, commands))
        return EXIT_DONE if arguments else EXIT_BAD_INPUT
    name, *rest = arguments
    if name not in commands:
        print(f"error: {program} has no command '{name}'{nearest(name, commands)}: use {', '.join(commands)}",
              file=sys.stderr)
        return EXIT_BAD_INPUT
    if name == "bench" and commands is COMMANDS:
        return dispatch(rest, "sslight bench", BENCHMARKS)
    return importlib.import_module(commands[name][0]).main(rest)


def main() -> None:
    run_command(lambda: dispatch(sys.argv[1:]))


if __name__ == "__main__":
    main()
