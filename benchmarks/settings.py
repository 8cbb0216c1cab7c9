"""Configuration that every classification benchmark shares, and its command line: `--cfg FILE KEY VALUE...`."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

from fvcore.common.config import CfgNode

from pretrain.config import flatten, load_config, to_dict
from pretrain.errors import InputError

COMMON = {
    "PROTOCOL": "",  # the name in the result; by default the config file's
    "WEIGHTS": "",  # a checkpoint of any family that convert reads, or random
    "MODEL": {
        "BACKBONE_ARCH": "",  # needed for random weights, and where a checkpoint does not tell
        "NETWORK": "",  # which of a checkpoint's networks (student, teacher, ...); by default the published choice
        "INIT_SEED": 0,  # of random weights
    },
    "OUTPUT_DIR": "",
    "SEEDS": [0],  # one run each; knn has none
    "DATA": {
        "PATH_TO_DATA_DIR": "",
        "RESIZE": 256,  # pixels of the shorter side, before the central crop
        "SIZE": 224,  # pixels of the crop
        "MEAN": [],  # RGB, of images in [0, 1]; empty: as the checkpoint says, else ImageNet's
        "STD": [],
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
        "EVAL_PERIOD": 1,  # epochs between evaluations on val; the last epoch always counts
        "LOG_PERIOD": 20,  # steps
    },
}

# What may differ between two starts of one run: where things lie and how fast they go.
FREE_KEYS = ("OUTPUT_DIR", "DATA.PATH_TO_DATA_DIR", "DATA.WORKERS", "WEIGHTS", "FEATURES.CACHE_DIR",
             "TRAIN.LOG_PERIOD")
# What may differ from a protocol's file without changing the protocol.
OWN_KEYS = (*FREE_KEYS, "PROTOCOL", "SEEDS", "MODEL.BACKBONE_ARCH", "MODEL.NETWORK", "MODEL.INIT_SEED",
            "DATA.NUM_CLASSES", "FEATURES.BATCH_SIZE", "FEATURES.DTYPE")


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


def parse(name: str, description: str, settings: Mapping, argv: Sequence[str] | None,
          flags: Mapping[str, tuple[str, tuple[str, str]]] | None = None) -> tuple[CfgNode, dict]:
    """The configuration of a command line, and what in it departs from its protocol's file: {key: value}.

    `flags` maps an option such as --loo to (its help, the KEY VALUE pair that it stands for).
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    parser.add_argument("--cfg", metavar="FILE", help="YAML configuration, e.g. one of configs/classification/")
    for flag, (text, pair) in (flags or {}).items():
        parser.add_argument(flag, action="append_const", const=pair, dest="pairs", help=text)
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="override configuration keys")
    parser.set_defaults(pairs=[])
    args = parser.parse_intermixed_args(argv)
    overrides = [*args.overrides, *(word for pair in args.pairs for word in pair)]
    cfg = load_config(settings, args.cfg, overrides)
    published = dict(flatten(to_dict(load_config(settings, args.cfg))))
    departures = {key: value for key, value in flatten(to_dict(cfg))
                  if value != published[key] and key not in OWN_KEYS}
    if not cfg.PROTOCOL:
        cfg.defrost()
        cfg.PROTOCOL = Path(args.cfg).stem if args.cfg else name
        cfg.freeze()
    _check(cfg)
    return cfg, departures


def _check(cfg: CfgNode) -> None:
    if not cfg.OUTPUT_DIR:
        raise InputError("OUTPUT_DIR is not set: add OUTPUT_DIR PATH to say where the result is written")
    if not cfg.WEIGHTS:
        raise InputError("WEIGHTS is not set: add WEIGHTS CHECKPOINT, or WEIGHTS random for an untrained network")
    if not cfg.SEEDS or any(not isinstance(seed, int) or seed < 0 for seed in cfg.SEEDS):
        raise InputError(f"config key 'SEEDS' wants a list of non-negative integers such as [0,1,2], not {cfg.SEEDS}")
    if len(set(cfg.SEEDS)) < len(cfg.SEEDS):
        raise InputError(f"config key 'SEEDS' names a seed twice: {cfg.SEEDS}")
    for key in ("MEAN", "STD"):
        if len(cfg.DATA[key]) not in (0, 3):
            raise InputError(f"config key 'DATA.{key}' wants three numbers (or none), not {cfg.DATA[key]}")
    choices = [("FEATURES.AMP", ("none", "bf16")), ("FEATURES.DTYPE", ("float32", "float16")),
               ("TRAIN.AMP", ("none", "bf16")), ("SOLVER.OPTIMIZER", ("SGD", "LARS")),
               ("SOLVER.SCHEDULE", ("cosine", "steps"))]
    known = dict(flatten(to_dict(cfg)))
    for key, allowed in choices:
        if key in known and known[key] not in allowed:
            raise InputError(f"config key '{key}' wants one of {', '.join(allowed)}, not {known[key]!r}")
    for key in ("FEATURES.BATCH_SIZE", "TRAIN.BATCH_SIZE", "TRAIN.EVAL_PERIOD", "SOLVER.TOTAL_EPOCHS"):
        if key in known and known[key] < 1:
            raise InputError(f"config key '{key}' wants a positive number, not {known[key]}")
