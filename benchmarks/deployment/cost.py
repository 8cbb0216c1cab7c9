"""What a backbone costs on this machine: `sslight bench cost resnet18 last.pth ... -o results/cost`.

One `cost.json` a network: parameters, FLOPs, latency at batch 1 and throughput. It depends on the architecture and the
machine, not on the weights; what has been measured on this machine with these settings is kept. A network that a device
runs in another form than the training's is measured in that form. Needs no torch to read.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.evaluation import Context, Plan, Work
from sslight.core.arguments import Parser
from sslight.core.errors import InputError
from sslight.core.files import write_json

SCHEMA = "sslight-cost-2"
DEFAULT = ("mobilenet_v2", "resnet18", "resnet34", "resnet50", "vit_tiny")
SAME = ("arch", "image_size", "batch_size", "machine", "threads", "torch")  # equal: the same measurement
FORMS = {"single": "", "deployed": "deployed form", "training": "training form"}  # of convert.deployment.Deployed
NUMBERS = ("parameters", "flops", "latency_ms", "images_per_second")


def parser() -> Parser:
    parser = Parser(
        "sslight bench cost",
        "Parameters, FLOPs, latency at batch 1 and throughput, on this machine.",
        "sslight bench cost my_checkpoint.pth mobilenet_v2 -o results/cost",
        epilog="FLOPs are the multiply-adds of convolutions and matrix products. Latency is the median.\n"
        "Networks with a deployed form (MobileOne, FastViT, RepViT, RepVGG, ...) are measured in it.",
    )
    parser.add_place(
        "networks",
        "--weights",
        "--arch",
        nargs="*",
        metavar="ARCH",
        default=DEFAULT,
        help=f"timm's names, aliases or checkpoints (default: {' '.join(DEFAULT)})",
    )
    parser.add_option("--out", required=True, metavar="DIR", help="where ARCH/cost.json is written")
    parser.add_build_options()
    parser.add_argument("--size", type=int, default=224, metavar="PX", help="pixels of the square image (224)")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="images at once for throughput (64)")
    parser.add_argument("--seconds", type=float, default=3.0, metavar="S", help="time for each of the two (3)")
    parser.add_argument("--force", action="store_true", help="measure again what was measured here before")
    return parser


class Cost:
    """`benchmarks.evaluation.Evaluation` of an architecture on this machine; its result is `cost.json`."""

    settings: Mapping = {}
    frameworks: Sequence[str] = ()
    per_architecture = True
    spreads = True

    parser = staticmethod(parser)

    def check(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        args = parser().parse_args(argv)
        if args.size < 1 or args.batch_size < 1 or not args.seconds > 0:
            raise InputError("--size, --batch-size and --seconds want positive numbers")
        return args

    def plan(self, request: argparse.Namespace, context: Context) -> Plan:
        from benchmarks.deployment import measure
        from sslight.core import devices

        if context.here:
            devices.check()
        [(arch, options)] = measure.architectures(request.networks, request.options)
        about = measure.about(arch, request.size, request.batch_size, options)
        done = measured_before(context.folder / "cost.json", about) is not None
        return Plan(Work(arch, seconds=2 * request.seconds), done)

    def run(self, request: argparse.Namespace) -> None:
        from benchmarks.deployment import measure
        from sslight.core import devices

        devices.prepare()
        for arch, options in measure.architectures(request.networks, request.options):
            file = Path(request.out) / label(arch, options) / "cost.json"
            about = measure.about(arch, request.size, request.batch_size, options)
            cost = None if request.force else measured_before(file, about)
            kept = cost is not None
            if cost is None:
                numbers = measure.measure(arch, request.size, request.batch_size, request.seconds, options)
                cost = {"schema": SCHEMA, **about, **numbers}
                write_json(file, cost)
            form = f" ({form_of(cost)})" if form_of(cost) else ""
            print(
                f"{label(arch, options)}{form}: {cost['parameters'] / 1e6:.2f} M parameters, "
                f"{cost['flops'] / 1e9:.2f} GFLOPs, {cost['latency_ms']:.2f} ms an image alone, "
                f"{cost['images_per_second']:.0f} images/s in batches of {cost['batch_size']}"
                f"{' (measured before)' if kept else ''}",
                flush=True,
            )

    def result(self, request: argparse.Namespace) -> dict[str, dict]:
        """The costs by network."""
        from benchmarks.deployment import measure

        labels = [label(*network) for network in measure.architectures(request.networks, request.options)]
        return {name: read_cost(Path(request.out) / name / "cost.json") for name in labels}

    def fault(self, folder: Path) -> str:
        try:
            read_cost(folder / "cost.json")
            return ""
        except InputError as error:
            return str(error)


def label(arch: str, options: Mapping[str, object]) -> str:
    """A network's name and folder: timm's name, and the build options where there are any."""
    return "_".join([arch, *(f"{key}={value}" for key, value in options.items())])


def form_of(cost: dict) -> str:
    """Which form of a network was measured, and why; "" of a network that has one."""
    return ": ".join(filter(None, (FORMS[cost["form"]], str(cost["form_note"]))))


def measured_before(file: Path, about: dict) -> dict | None:
    """The cost in a file, if there is one of this version, and of the same network, settings and machine."""
    try:
        cost = read_cost(file)
    except InputError:
        return None
    same = all(cost[key] == about[key] for key in SAME) and cost.get("options", {}) == about.get("options", {})
    return cost if same else None


def read_cost(file: Path) -> dict:
    """A cost file. Raises InputError if it is not one."""
    try:
        cost = json.loads(file.read_text(encoding="utf-8"))
        numbers = [*(cost[key] for key in NUMBERS), *cost["latency_ms_quartiles"]]
        whole = (
            len(numbers) == len(NUMBERS) + 2
            and cost["form"] in FORMS
            and all(key in cost for key in (*SAME, "form_note", "command"))
        )
        if cost["schema"] == SCHEMA and whole and all(0 < number < math.inf for number in numbers):
            return cost
    except (ValueError, OSError, KeyError, TypeError):
        pass
    raise InputError(f"not a file of this version's `sslight bench cost`: {file}; measure again")


EVALUATION = Cost()
