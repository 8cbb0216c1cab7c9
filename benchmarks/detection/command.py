"""`sslight bench coco`: detection as an evaluation, for commands and suites. Imports nothing heavy."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.detection.settings import DEFAULTS, FRAMEWORKS, SPELLED, Request, parser, split_overrides
from benchmarks.evaluation import Context, Plan, result_fault
from sslight.core.errors import InputError
from sslight.core.result import read_result


class Detection:
    """`benchmarks.evaluation.Evaluation` of detectors, in each of the frameworks."""

    settings = DEFAULTS
    frameworks = FRAMEWORKS
    per_architecture = False
    spreads = True

    parser = staticmethod(parser)
    fault = staticmethod(result_fault)

    def check(self, argv: Sequence[str] | None = None) -> Request:
        """The command line's options, our settings, and the pairs that belong to the framework's own config."""
        args = parser().parse_intermixed_args(argv)
        args.words = list(sys.argv[1:] if argv is None else argv)
        args.overrides += ["TRAIN.AMP", "True"] * args.amp
        for key, option in SPELLED.items():  # other commands' keys for what is an option here
            while key in args.overrides[::2]:
                at = 2 * args.overrides[::2].index(key)
                setattr(args, option, args.overrides[at + 1])
                del args.overrides[at : at + 2]
        if not args.weights:
            raise InputError("--weights is not set: add --weights CHECKPOINT, or --weights random with --arch")
        return args, *split_overrides(args.overrides, args.framework)

    def plan(self, request: Request, context: Context) -> Plan:
        from benchmarks.detection import coco

        return coco.plan(request, context)

    def run(self, request: Request) -> int:
        from benchmarks.detection import coco

        return coco.run(request)

    def result(self, request: Request) -> dict | None:
        args, settings, _ = request
        return None if args.check else read_result(settings.OUTPUT_DIR)


EVALUATION = Detection()
