"""What `sslight bench all` can be told. Needs no torch."""

from __future__ import annotations

from benchmarks import coco_options, settings
from pretrain.config import flatten
from pretrain.errors import Parser

# The settings of each benchmark that a suite may set.
DEFAULTS = {"knn": settings.KNN, "linear": settings.LINEAR, "semisup": settings.SEMISUP, "coco": coco_options.DEFAULTS,
            "cost": {}}
EPILOG = """
Everything that can be wrong is looked for before anything runs. Each evaluation is a process of its own with its
results in OUTPUT_DIR/NETWORK/EVALUATION; the same command again skips what has a valid result of the same weights, data
and settings, and goes on with the rest. A failed evaluation does not stop the others: exit code 3 at the end.
Trailing KEY VALUE pairs go to every evaluation that knows the key; EVALUATION.KEY and BENCHMARK.KEY (knn, linear,
semisup, coco) to those of that name alone. benchmarks/suite_file.py says what a suite file holds.
"""


def parser() -> Parser:
    parser = Parser(
        "sslight bench all", "Every evaluation of a suite, for every checkpoint and baseline, one after the other.",
        "sslight bench all --weights mine=my_checkpoint.pth random --suite paper --framework mmdet --dry-run \\\n"
        "      DATA.PATH_TO_DATA_DIR $DATA coco.DATA.PATH_TO_DATA_DIR $COCO OUTPUT_DIR results",
        "sslight bench all --weights mine=my_checkpoint.pth random --suite paper --framework mmdet \\\n"
        "      DATA.PATH_TO_DATA_DIR $DATA coco.DATA.PATH_TO_DATA_DIR $COCO OUTPUT_DIR results",
        epilog=EPILOG)
    parser.add_argument("--weights", nargs="+", required=True, metavar="CKPT",
                        help="checkpoints that `sslight convert` reads, each FILE or NAME=FILE; baselines: random, "
                             "SUPERVISED (ImageNet weights of torchvision or timm)")
    parser.add_argument("--suite", required=True, help="a file, or the name of one in configs/suites: paper, demo")
    parser.add_argument("--framework", action="append", default=[], choices=coco_options.FRAMEWORKS,
                        help="detection in this alone, not in all of the suite's; may be repeated")
    parser.add_argument("--arch", help="backbone of the baselines, and of checkpoints that do not tell")
    parser.add_argument("--num-gpus", type=int, default=1, metavar="N", help="processes of each evaluation")
    parser.add_argument("--dry-run", action="store_true", help="show what would run, what not and why, and the cost")
    parser.add_argument("--launcher", choices=("local", "slurm"), default="local",
                        help="slurm: each evaluation a job of its own, which is requeued when it is preempted")
    parser.add_argument("--slurm", action="append", default=[], metavar="OPTION=VALUE",
                        help="an option of sbatch, e.g. partition=gpu, time=1440 (minutes); may be repeated")
    parser.add_overrides(dict(pair for known in DEFAULTS.values() for pair in flatten(known)))
    return parser
