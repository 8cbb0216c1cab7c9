"""Settings that the evaluations on labelled images share: keys, defaults, checks. Needs no torch."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

from fvcore.common.config import CfgNode

from sslight.core.arguments import Parser
from sslight.core.config import CONFIGS, check_numbers, flatten, load_config, to_dict
from sslight.core.errors import InputError

COMMON = {
    "PROTOCOL": "",  # the name in the result; by default the config file's
    "WEIGHTS": "",  # a checkpoint as `convert.sources` names it, or random
    "NAME": "",  # what the report calls the network; by default its method
    "MODEL": {
        "BACKBONE_ARCH": "",  # needed for random weights, and where a checkpoint does not tell
        "OPTIONS": "",  # build options of the network that a checkpoint does not tell, such as num_heads=12
        "NETWORK": "",  # which of a checkpoint's networks (student, teacher, ...); by default the published choice
        "INIT_SEED": 0,  # of random weights
        "POS_RESIZE": "",  # a ViT's positions at another image size: published or timm; empty: as trained, else timm
    },
    "OUTPUT_DIR": "",
    "DEVICE": "auto",  # auto: a GPU of its own for every process where there are GPUs; cpu
    "SEEDS": [0],  # one run each; knn has none
    "DATA": {
        "PATH_TO_DATA_DIR": "",
        "RESIZE": 256,  # pixels of the shorter side, before the central crop
        "SIZE": 224,  # pixels of the crop
        "MEAN": [],  # RGB, of images in [0, 1]; empty: as the checkpoint says, else ImageNet's
        "STD": [],
        "MAX_VALUE": 0.0,  # white in images of 16 bits or floats whose files do not say; 0: such images are refused
        "WORKERS": 4,  # loader processes per process
        "NUM_CLASSES": 0,  # expected number of classes; 0: whatever train holds
    },
    "FEATURES": {
        "CACHE_DIR": "",  # where extracted features are kept and found again; by default OUTPUT_DIR/features
        "BATCH_SIZE": 256,  # per forward
        "AMP": "none",  # none or bf16: precision of the frozen forward
        "DTYPE": "float32",  # float32 or float16: precision on disk
    },
}

TRAINING = {
    "SOLVER": {
        "OPTIMIZER": "SGD",  # SGD or LARS
        "BASE_LR": 0.1,  # per 256 images of the global batch
        "MIN_LR": 0.0,  # absolute; where the cosine ends
        "SCHEDULE": "cosine",  # cosine, or steps: times GAMMA at MILESTONES
        "PER_STEP": False,  # follow the schedule per step instead of per epoch
        "MILESTONES": [60, 80],  # epochs
        "GAMMA": 0.1,
        "TOTAL_EPOCHS": 100,
        "MOMENTUM": 0.9,
        "NESTEROV": False,
        "WEIGHT_DECAY": 0.0,
        "BACKBONE_LR_FACTOR": 1.0,  # backbone's learning rate over the head's, where the backbone is trained
    },
    "TRAIN": {
        "BATCH_SIZE": 256,  # images per process
        "AMP": "none",  # none or bf16
        "SAVE_SECONDS": 600.0,  # at most this much work is lost in a crash
        "EVAL_PERIOD": 1,  # epochs between evaluations on val; the last epoch always counts
        "LOG_PERIOD": 20,  # steps
    },
}


def defaults(*parts: Mapping) -> dict:
    """COMMON with further sections; a section that occurs twice is merged."""
    merged: dict = copy.deepcopy(COMMON)
    for part in parts:
        for key, value in copy.deepcopy(dict(part)).items():
            if isinstance(value, dict) and isinstance(merged.get(key), dict):
                merged[key].update(value)
            else:
                merged[key] = value
    return merged


# What `check_numbers` asks of all of them.
POSITIVE = {
    "DATA.RESIZE",
    "DATA.SIZE",
    "DATA.STD",
    "FEATURES.BATCH_SIZE",
    "TRAIN.BATCH_SIZE",
    "TRAIN.EVAL_PERIOD",
    "TRAIN.LOG_PERIOD",
    "SOLVER.TOTAL_EPOCHS",
    "SOLVER.MOMENTUM",
    "HEAD.HIDDEN_SIZE",
    "HEAD.LAYERS",
}
MOST = {
    "DATA.WORKERS": 1024,
    "DATA.RESIZE": 4096,
    "SOLVER.MOMENTUM": 1,
    "LABELS.FRACTION": 1,
    "PROBE.HOLDOUT": 1,
    "HEAD.LAYERS": 100,
}

# What may differ between two starts of one run: where things lie and how fast they go. The batch size may change with
# the number of processes; the training sees to it that their product, the global batch, stays.
FREE_KEYS = (
    "OUTPUT_DIR",
    "DEVICE",
    "NAME",
    "DATA.PATH_TO_DATA_DIR",
    "DATA.WORKERS",
    "WEIGHTS",
    "FEATURES.CACHE_DIR",
    "TRAIN.LOG_PERIOD",
    "TRAIN.SAVE_SECONDS",
    "TRAIN.BATCH_SIZE",
)
# What may differ from a protocol's file without changing the protocol.
OWN_KEYS = (
    *(key for key in FREE_KEYS if key != "TRAIN.BATCH_SIZE"),
    "PROTOCOL",
    "SEEDS",
    "MODEL.BACKBONE_ARCH",
    "MODEL.OPTIONS",
    "MODEL.NETWORK",
    "MODEL.INIT_SEED",
    "DATA.NUM_CLASSES",
    "FEATURES.BATCH_SIZE",
    "FEATURES.DTYPE",
)


def parse(parser: Parser, settings: Mapping, argv: Sequence[str] | None) -> tuple[CfgNode, dict]:
    """The configuration of a command line, and what in it departs from its protocol's file: {key: value}."""
    args = parser.parse_intermixed_args(argv)
    cfg = load_config(settings, args.cfg, [*args.overrides, *_seeds(args)], translate=_one_seed)
    if not cfg.PROTOCOL:
        cfg.defrost()
        cfg.PROTOCOL = Path(args.cfg).stem if args.cfg else parser.prog.split()[-1]
        cfg.freeze()
    _check(cfg)
    protocol = dict(flatten(to_dict(_protocol(cfg.PROTOCOL, settings, args.cfg))))
    return cfg, {key: value for key, value in flatten(to_dict(cfg)) if value != protocol[key] and key not in OWN_KEYS}


def _protocol(name: str, settings: Mapping, file: str | None) -> CfgNode:
    """The settings of a protocol: of the shipped file of its name, which a user's own `file` may have edited, or else
    of that file."""
    shipped = CONFIGS / "classification" / f"{name}.yaml"
    try:
        return load_config(settings, shipped if shipped.is_file() else file)
    except InputError:  # the shipped one is another benchmark's
        return load_config(settings, file)


def _seeds(args: argparse.Namespace) -> list[str]:
    """`--seed` and `--trials` as the key SEEDS."""
    if args.seed is None and args.trials is None:
        return []
    first = args.seed or 0
    return ["SEEDS", str(list(range(first, first + (1 if args.trials is None else args.trials))))]


def _one_seed(settings: dict, whole_file: bool) -> dict:
    """SEED N, as other commands have it, is SEEDS [N] here."""
    return {"SEEDS" if key == "SEED" else key: [value] if key == "SEED" else value for key, value in settings.items()}


def _check(cfg: CfgNode) -> None:
    if not cfg.OUTPUT_DIR:
        raise InputError("OUTPUT_DIR is not set: add OUTPUT_DIR PATH to say where the result is written")
    if not cfg.WEIGHTS:
        raise InputError("WEIGHTS is not set: add WEIGHTS CHECKPOINT, or WEIGHTS random for an untrained network")
    if not cfg.SEEDS or any(not isinstance(seed, int) or seed < 0 for seed in cfg.SEEDS):
        raise InputError(f"config key 'SEEDS' expects a list of non-negative integers such as [0,1,2], not {cfg.SEEDS}")
    if len(set(cfg.SEEDS)) < len(cfg.SEEDS):
        raise InputError(f"config key 'SEEDS' names a seed twice: {cfg.SEEDS}")
    for key in ("MEAN", "STD"):
        if len(cfg.DATA[key]) not in (0, 3):
            raise InputError(f"config key 'DATA.{key}' expects three numbers (or none), not {cfg.DATA[key]}")
    check_numbers(cfg, POSITIVE, MOST, {})
    choices = [
        ("FEATURES.AMP", ("none", "bf16")),
        ("FEATURES.DTYPE", ("float32", "float16")),
        ("TRAIN.AMP", ("none", "bf16")),
        ("SOLVER.OPTIMIZER", ("SGD", "LARS")),
        ("SOLVER.SCHEDULE", ("cosine", "steps")),
    ]
    known = dict(flatten(to_dict(cfg)))
    for key, allowed in choices:
        if key in known and known[key] not in allowed:
            raise InputError(f"config key '{key}' expects one of {', '.join(allowed)}, not {known[key]!r}")
    if cfg.DATA.SIZE > cfg.DATA.RESIZE:
        raise InputError(
            f"a central crop of DATA.SIZE {cfg.DATA.SIZE} pixels does not fit into DATA.RESIZE "
            f"{cfg.DATA.RESIZE}: the size must be at most the resize"
        )
