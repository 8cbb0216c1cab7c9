"""`sslight demo`: everything once on real handwritten digits, by the public commands alone, each printed first."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.detection.framework import FRAMEWORKS
from benchmarks.suite.run import Runner
from sslight.core.arguments import Parser
from sslight.core.errors import EXIT_DONE, EXIT_STOPPED, Stopped

ROOT = Path(__file__).resolve().parents[1]
TARGETS = {
    "timm": "timm.safetensors",
    "torchvision": "torchvision.pth",
    "detectron2": "detectron2.pth",
    "mmdet": "mmdet.pth",
}


def steps(out: Path) -> Iterator[tuple[str, list[str | Path]]]:
    """Pairs (what it does, the command), run one after the other from the project's folder."""
    data, checkpoint = out / "data", out / "pretrain" / "checkpoints" / "last.pth"
    yield "draw the data", ["-m", "benchmarks.demo_data", data]
    yield (
        "pre-train without labels",
        [
            "-m",
            "pretrain",
            "--cfg",
            "configs/pretrain/demo.yaml",
            "DATA.PATH_TO_DATA_DIR",
            data,
            "OUTPUT_DIR",
            out / "pretrain",
        ],
    )
    for target, name in TARGETS.items():
        yield (
            f"convert to {target}",
            ["convert/convert_ckpt.py", checkpoint, "--to", target, "--force", "-o", out / "converted" / name],
        )
    yield (
        "evaluate, beside a random network",
        [
            "-m",
            "sslight",
            "bench",
            "all",
            "--suite",
            "demo",
            "--weights",
            f"pretrained={checkpoint}",
            "random",
            *(f"--framework={name}" for name in FRAMEWORKS.installed()),
            "DATA.PATH_TO_DATA_DIR",
            data,
            "OUTPUT_DIR",
            out / "results",
        ],
    )
    yield "report", ["-m", "benchmarks.report", out / "results", out / "pretrain", "-o", out / "report.html"]


def parser() -> Parser:
    parser = Parser("sslight demo", __doc__.splitlines()[0], "sslight demo runs/demo")
    parser.add_place(
        "out", "--out", default="runs/demo", metavar="DIR", help="where everything goes (default: runs/demo)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    started, spent = time.monotonic(), []
    with Runner() as runner:
        for title, command in steps(Path(args.out).resolve()):
            words = [str(word) for word in command]
            print(f"\n== {title}\n$ python {shlex.join(words)}", flush=True)
            begun = time.monotonic()
            code = EXIT_STOPPED if runner.signals else runner.run_here([sys.executable, *words], cwd=ROOT)
            if runner.signals or code == EXIT_STOPPED:
                raise Stopped(f"in '{title}'; start the same command again to go on")
            if code != EXIT_DONE:
                print(
                    f"error: '{title}' ended with exit code {code}; the same command goes on from here", file=sys.stderr
                )
                return code if code > 0 else 1
            spent.append((title, time.monotonic() - begun))
    print("\n" + "\n".join(f"{seconds:7.1f} s  {title}" for title, seconds in spent))
    print(f"{time.monotonic() - started:7.1f} s  in all; open {Path(args.out) / 'report.html'}")
    return EXIT_DONE


if __name__ == "__main__":
    from sslight.core.processes import run_command

    run_command(main)
