"""A checkpoint of any family in, a verified file for a framework out.

Every tensor is accounted for by a named rule; the file is read back, compared with the framework's full list of
tensors, loaded by the framework where it is installed, and its features compared with the source network's.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # as a script, the project's root takes the place of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from convert.support import FAMILIES, TARGETS, matrix_text
from sslight.core.arguments import Parser
from sslight.core.errors import InputError
from sslight.core.processes import run_command


def convert(
    src: Path | str,
    to: str,
    out: Path | str,
    *,
    family: str | None = None,
    arch: str | None = None,
    network: str | None = None,
    model: str | None = None,
    prefix: str = "",
    from_detector: bool = False,
    stages: bool = False,
    verify: bool = True,
    verify_with: Path | str | None = None,
    force: bool = False,
    report: Path | str | None = None,
    options: Sequence[str] = (),
) -> dict:
    """Convert a checkpoint and verify the result; returns the report.

    Parameters
    ----------
    src: a checkpoint of any family. `family`, `arch`, `network` override what is recognised.
    to, out: the target framework and the file to write. A config snippet is written beside it.
    model: detectron2 only: "fpn", "c4" or "vitdet". `prefix`: mmdet only, e.g. "backbone." for `load_from`.
    from_detector: `src` is a trained detector, whose backbone is taken.
    stages: ONNX only: output the stage features, too.
    verify: load the file in the framework and compare features (reading back and the full list are always checked).
    verify_with: compare on this picture instead of the built-in image.
    report: write the report here as JSON.
    options: of the timm network, what shapes do not show, as `num_heads=12`.

    Raises InputError for anything wrong; then nothing was written (a file that `force` would have replaced stays).
    """
    from convert.conversion import Request, run

    return run(
        Request(
            Path(src),
            to,
            Path(out),
            family,
            arch,
            network,
            model,
            prefix,
            from_detector,
            stages,
            verify,
            Path(verify_with) if verify_with else None,
            force,
            Path(report) if report else None,
            tuple(options),
        )
    )


def parser() -> Parser:
    """The command line."""
    made = Parser(
        "sslight convert",
        __doc__,
        "sslight convert my_checkpoint.pth --to mmdet -o net.pth",
        epilog=f"\n{matrix_text()}",
    )
    made.add_argument("src", metavar="SRC", help=".pth, .pth.tar, .pt, .ckpt, .pkl or .safetensors")
    made.add_argument("--to", required=True, choices=TARGETS)
    made.add_argument("-o", "--out", required=True, metavar="OUT", help="the file to write")
    made.add_argument("--family", choices=FAMILIES, metavar="NAME", help="instead of recognising it from the keys")
    made.add_argument("--arch", metavar="NAME", help="timm's name of the network, instead of inferring it from shapes")
    made.add_argument(
        "--set",
        dest="options",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of timm's network that shapes do not show, e.g. num_heads=12; may be repeated",
    )
    made.add_argument("--network", metavar="NAME", help="student, teacher, ...; default: the one to evaluate")
    made.add_argument(
        "--model", choices=("fpn", "c4", "vitdet"), help="detectron2: the detector (default: fpn, ViT: vitdet)"
    )
    made.add_argument(
        "--prefix", default="", metavar="TEXT", help="mmdet: put before every key, e.g. backbone. for load_from"
    )
    made.add_argument("--from-detector", action="store_true", help="take the backbone out of a trained detector")
    made.add_argument("--stages", action="store_true", help="ONNX: output the stage features, too")
    made.add_argument(
        "--no-verify",
        dest="verify",
        action="store_false",
        help="do not load the file in the framework (it is read back and compared by name in any case)",
    )
    made.add_argument("--verify-with", metavar="IMAGE", help="compare features on this picture")
    made.add_argument("--report", metavar="JSON", help="write what was done and seen here")
    made.add_argument("--force", action="store_true", help="replace OUT")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0 or InputError."""
    options = vars(parser().parse_args(argv))
    if options["verify_with"] and not options["verify"]:
        raise InputError("--verify-with and --no-verify exclude each other")
    from convert.conversion import summary

    for line in summary(convert(options.pop("src"), options.pop("to"), options.pop("out"), **options)):
        print(line)
    return 0


if __name__ == "__main__":
    run_command(main)
