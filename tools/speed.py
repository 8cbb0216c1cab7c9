"""Speed as ratios, measured side by side in one run: `python tools/speed.py {views,step,convert} [--json FILE]`.

Every ratio is the reference's time divided by ours, the median over paired runs, so a noisy machine blurs it but
does not bias it. Each part is a module `tools/speed_NAME.py` with `add_arguments(parser)` and `run(args) -> ratios`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

PARTS = {
    "views": "multi-crop views: our data path against the PIL / torchvision reference",
    "step": "one optimisation step against the papers' pseudo-code",
    "probe": "linear evaluation: a sweep against one head, cached features against an epoch, extraction",
    "knn": "exact k-NN against matmul + topk and against faiss",
    "convert": "converting a ResNet50 checkpoint against reading and writing it",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = parser.add_subparsers(dest="part", required=True)
    chosen = sys.argv[1] if len(sys.argv) > 1 else ""
    for name, text in PARTS.items():
        part = parts.add_parser(name, help=text, description=text)
        part.add_argument("--json", metavar="FILE", help="write the ratios here")
        if name == chosen:
            importlib.import_module(f"tools.speed_{name}").add_arguments(part)
    args = parser.parse_args()
    ratios = importlib.import_module(f"tools.speed_{args.part}").run(args)
    if args.json:
        Path(args.json).write_text(json.dumps(ratios, indent=2) + "\n")


if __name__ == "__main__":
    main()
