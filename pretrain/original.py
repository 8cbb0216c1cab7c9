"""Settings written for the published system, in its files or as overrides, in this project's spelling.

One table (`RENAMED`, `PAIRS`, `FIXED`, `MEANINGLESS`) covers every key of the published system. A file written for it
also starts from its defaults, since those it leaves out are part of its recipe.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from sslight.core.config import literal
from sslight.core.errors import InputError

V = "MULTI_VIEWS_TRANSFORMS."

# The published key -> ours; the value is the same.
RENAMED = {
    "WORKERS": "DATA.WORKERS",
    "LOG_STEP": "TRAIN.LOG_PERIOD",
    "MODEL.MODEL_MOMENTUM": "DINO.MOMENTUM",
    "MODEL.MODEL_MOMENTUM_END": "DINO.MOMENTUM_END",
    "VIT.DROP_PATH_RATE": "MODEL.DROP_PATH_RATE",
    f"{V}GLOBAL_CROP_SIZE": "VIEWS.GLOBAL_SIZE",
    f"{V}GLOBAL_CROPS_SCALE": "VIEWS.GLOBAL_SCALE",
    f"{V}LOCAL_CROPS_NUMBER": "VIEWS.LOCAL_NUMBER",
    f"{V}LOCAL_CROP_SIZE": "VIEWS.LOCAL_SIZE",
    f"{V}LOCAL_CROPS_SCALE": "VIEWS.LOCAL_SCALE",
    f"{V}COLOR_JITTER_INTENSITY": "VIEWS.COLOR_JITTER",
    f"{V}GAUSSIAN_BLUR_PROB": "VIEWS.BLUR_PROB",
    f"{V}SOLARIZATION_PROB": "VIEWS.SOLARIZE_PROB",
    f"{V}LAMBDAS": "LOSS.WEIGHTS",
    "DINOHead.HIDDEN_SIZE": "DINO.HIDDEN_SIZE",
    "DINOHead.NUM_LAYERS": "DINO.NUM_LAYERS",
    "DINOHead.BOTTLENECK_DIM": "DINO.BOTTLENECK_DIM",
    "DINOHead.OUTPUT_DIM": "DINO.OUTPUT_DIM",
    "DINOHead.USE_BN_IN_HEAD": "DINO.HEAD_BN",
    "DINOHead.NORM_LAST_YEAR": "DINO.NORM_LAST_LAYER",  # the published spelling
    "SWAV.NMB_PROTOTYPES": "SWAV.PROTOTYPES",
    "SWAV.USE_BN_IN_HEAD": "SWAV.HEAD_BN",
    "MOCO.USE_BN_IN_HEAD": "MOCO.HEAD_BN",
    "SOLVER.OPTIMIZING_METHOD": "SOLVER.OPTIMIZER",
    "SOLVER.FREEZE_LAST_LAYER": "DINO.FREEZE_LAST_LAYER_EPOCHS",
}

# A value for global and one for local crops -> one value for both.
PAIRS = {
    f"{V}COLOR_JITTER_PROB": "VIEWS.COLOR_JITTER_PROB",
    f"{V}GREYSCALE_PROB": "VIEWS.GRAYSCALE_PROB",
    f"{V}RANDOM_HORIZONTAL_FLIP_PROB": "VIEWS.FLIP_PROB",
}

# Settings of which this project implements one value, and what to say about any other.
FIXED = {
    "DINO.GLOBAL_ONLY": (False, "two-view training is VIEWS.LOCAL_NUMBER 0 with LOSS.WEIGHTS '[1.0, 0.0]'"),
    "MOCO.GLOBAL_ONLY": (False, "two-view training is VIEWS.LOCAL_NUMBER 0 with LOSS.WEIGHTS '[1.0, 0.0]'"),
    "SOLVER.SCHEDULER": ("cos", "the schedule is a cosine"),
    "SOLVER.LARS_EXCLUDE_BIAS": (True, "LARS does not adapt 1-d parameters"),
    "SOLVER.LARS_EXCLUDE_DW": (False, "LARS adapts depthwise convolutions"),
    "SOLVER.WD_FACTOR_FOR_BIAS": (0.0, "1-d parameters are not decayed"),
    "SOLVER.WD_FACTOR_FOR_DW": (0.0, "depthwise convolutions are not decayed"),
    f"{V}CROPS_FOR_ASSIGN": ([0, 1], "targets come from the two global crops"),
    f"{V}CROP_PROB": ([1.0, 1.0], "every view is a random crop"),
    "VIT.PATCH_SIZE": (16, "name the network instead, e.g. MODEL.BACKBONE_ARCH vit_small_patch8_224"),
    "TRAIN.SUBSET_FILE_PATH": ("", "make a data directory of the subset instead"),
    "VAL.SUBSET_FILE_PATH": ("", "make a data directory of the subset instead"),
    "TRAIN.FILE_NAME": ("train.h5", "the data directory holds train/, train.h5 or train-*.tar"),
    "VAL.FILE_NAME": ("val.h5", "the data directory holds val/, val.h5 or val-*.tar"),
    "STAGE": ("TRAIN", "this command trains"),
}

# Launching, logging, and options of code paths that are never taken: without effect on the result.
MEANINGLESS = (
    "DISTRIBUTED",
    "DIST_BACKEND",
    "DIST_URL",
    "NODE_RANK",
    "NUM_GPUS_PER_NODE",
    "N_NODES",
    "WORLD_SIZE",
    "LOG_GRAD",
    "TENSORBOARD_PATH",
    "TRAIN.DATASET",
    "TRAIN.NUM_CLASSES",
    "VAL.DATASET",
    "VAL.BATCH_SIZE",
    "SOLVER.MILESTONES",
)
MEANINGLESS_SECTION = "TWO_VIEWS_TRANSFORMS."

# Its defaults where they differ from ours or have another spelling.
ORIGINAL_DEFAULTS = {
    "SSL_METHOD": "DINO",
    "DATA.PATH_TO_DATA_DIR": "datasets/imagenet_ori/",
    "OUTPUT_DIR": "./tmp",
    "WORKERS": 8,
    "LOG_STEP": 10,
    "MODEL.BACKBONE_ARCH": "vit_tiny",
    "MODEL.MODEL_MOMENTUM": 0.99,
    "VIT.DROP_PATH_RATE": 0.1,
    f"{V}GLOBAL_CROPS_SCALE": [0.25, 1.0],
    f"{V}LOCAL_CROPS_SCALE": [0.05, 0.25],
    f"{V}LOCAL_CROP_SIZE": 96,
    f"{V}LAMBDAS": [0.142857, 0.857143],
    "DINO.WARMUP_TEACHER_TEMP_EPOCHS": 30,
    "DINOHead.USE_BN_IN_HEAD": False,
    "SWAV.QUEUE_LENGTH": 0,
    "SOLVER.BASE_LR": 0.3,
    "SOLVER.MIN_LR": 0.0,
    "SOLVER.TOTAL_EPOCHS": 300,
    "SOLVER.FREEZE_LAST_LAYER": 0,
    "SOLVER.WEIGHT_DECAY_END": 0.0,
}

OUR_SPELLINGS = frozenset((*RENAMED.values(), *PAIRS.values(), "METHOD"))


def translate(settings: Mapping[str, object], whole_file: bool = False) -> dict[str, object]:
    """Flat settings in this project's keys; keys that are neither system's stay for `load_config` to reject by name.

    A whole file that has keys in the published spelling and none in ours is taken as written for the published system
    and completed with its defaults. Keys without a meaning here are named in one warning.
    Raises InputError for a value that would change the result and has no counterpart.
    """
    if whole_file and any(map(_is_original, settings)) and not OUR_SPELLINGS & settings.keys():
        settings = {**ORIGINAL_DEFAULTS, **settings}
    result: dict[str, object] = {}
    meaningless = []
    for key, value in settings.items():
        value = literal(value)
        if key in RENAMED:
            result[RENAMED[key]] = value
        elif key in PAIRS:
            result[PAIRS[key]] = _one_of_pair(key, value)
        elif key in FIXED:
            _require(key, value, *FIXED[key])
        elif key == "SSL_METHOD":
            result["METHOD"] = str(value).lower()
        elif key == "USE_FP16":
            result["TRAIN.AMP"] = "fp16" if value else "none"
        elif key in MEANINGLESS or key.startswith(MEANINGLESS_SECTION):
            meaningless.append(key)
        elif key == "SOLVER.CLIP_GRAD" and value and str(settings.get("SSL_METHOD", "")).upper() == "SWAV":
            raise InputError(
                f"config key '{key}' of the original system: its SwAV never clips: set it to 0, or write "
                "METHOD swav to clip all the same"
            )
        elif key != f"{V}NMB_CROPS":
            result[key] = value
    if f"{V}NMB_CROPS" in settings:
        _crop_numbers(literal(settings[f"{V}NMB_CROPS"]), result)
    if "VIT.DROP_PATH_RATE" in settings and not _is_vit(settings):
        del result["MODEL.DROP_PATH_RATE"]  # it never reaches the published CNNs
    if meaningless:
        logging.getLogger(__name__).warning(
            "settings of the original system without a meaning here, ignored: %s", ", ".join(sorted(meaningless))
        )
    return result


def _is_original(key: str) -> bool:
    tables = (*RENAMED, *PAIRS, *FIXED, *MEANINGLESS, "SSL_METHOD", "USE_FP16", f"{V}NMB_CROPS")
    return key in tables or key.startswith(MEANINGLESS_SECTION)


def _is_vit(settings: Mapping[str, object]) -> bool:
    return str(settings.get("MODEL.BACKBONE_ARCH", "vit")).startswith("vit")


def _same(value: object, other: object) -> bool:
    value, other = (list(item) if isinstance(item, (list, tuple)) else item for item in (value, other))
    return value == other


def _require(key: str, value: object, only: object, why: str) -> None:
    if not _same(value, only):
        raise InputError(
            f"config key '{key}' of the original system: {value!r} has no counterpart here, only {only!r} ({why})"
        )


def _one_of_pair(key: str, value: object) -> object:
    if not isinstance(value, (list, tuple)):
        return value
    if len(value) != 2 or value[0] != value[1]:
        raise InputError(
            f"config key '{key}' of the original system: {value!r} has no counterpart here, the values "
            f"for global and local crops must be equal ('{PAIRS[key]}' is one value for both)"
        )
    return value[0]


def _crop_numbers(value: object, result: dict[str, object]) -> None:
    """NMB_CROPS [2, n] repeats LOCAL_CROPS_NUMBER: it sets the number where that is absent, else must agree."""
    key = f"{V}NMB_CROPS"
    if not isinstance(value, (list, tuple)) or len(value) != 2 or value[0] != 2:
        raise InputError(
            f"config key '{key}' of the original system: {value!r} has no counterpart here, "
            "only two global crops (VIEWS.LOCAL_NUMBER sets the local ones)"
        )
    if result.setdefault("VIEWS.LOCAL_NUMBER", value[1]) != value[1]:
        raise InputError(
            f"config key '{key}' of the original system: {list(value)} disagrees with "
            f"{V}LOCAL_CROPS_NUMBER {result['VIEWS.LOCAL_NUMBER']}: make them equal"
        )
