"""The shipped recipes against the published system's settings, fact by fact."""

import pytest

from pretrain.original import translate
from pretrain.settings import DEFAULTS
from sslight.core.config import flatten, load_config, to_dict
from tests.conftest import ROOT
from tests.pretrain.test_original import original

RECIPES = sorted(path.stem for path in (ROOT / "configs" / "pretrain").glob("*_*_*.yaml"))

# Every fact of a recipe that the published files or defaults state: ours must equal it.
COMMON = """
METHOD SEED MODEL.BACKBONE_ARCH DATA.MEAN DATA.STD DATA.WORKERS
VIEWS.GLOBAL_SIZE VIEWS.GLOBAL_SCALE VIEWS.LOCAL_NUMBER VIEWS.LOCAL_SIZE VIEWS.LOCAL_SCALE VIEWS.FLIP_PROB
VIEWS.COLOR_JITTER VIEWS.COLOR_JITTER_PROB VIEWS.GRAYSCALE_PROB VIEWS.BLUR_PROB VIEWS.SOLARIZE_PROB LOSS.WEIGHTS
MODEL.DROP_PATH_RATE
SOLVER.OPTIMIZER SOLVER.BASE_LR SOLVER.MIN_LR SOLVER.START_WARMUP SOLVER.WARMUP_EPOCHS SOLVER.TOTAL_EPOCHS
SOLVER.WEIGHT_DECAY SOLVER.WEIGHT_DECAY_END SOLVER.MOMENTUM SOLVER.CLIP_GRAD
TRAIN.BATCH_SIZE TRAIN.AMP TRAIN.CHECKPOINT_FILE_PATH TRAIN.CHECKPOINT_PERIOD TRAIN.JOINT_LINEAR_PROBE TRAIN.LOG_PERIOD
""".split()
OF_METHOD = {
    "dino": """
DINO.STUDENT_TEMP DINO.TEACHER_TEMP DINO.WARMUP_TEACHER_TEMP DINO.WARMUP_TEACHER_TEMP_EPOCHS DINO.CENTER_MOMENTUM
DINO.MOMENTUM DINO.MOMENTUM_END DINO.FREEZE_LAST_LAYER_EPOCHS DINO.HIDDEN_SIZE DINO.NUM_LAYERS DINO.BOTTLENECK_DIM
DINO.OUTPUT_DIM DINO.HEAD_BN DINO.NORM_LAST_LAYER""".split(),
    "swav": """
SWAV.TEMPERATURE SWAV.EPSILON SWAV.SINKHORN_ITERATIONS SWAV.QUEUE_LENGTH SWAV.EPOCH_QUEUE_STARTS
SWAV.FREEZE_PROTOTYPES_EPOCHS SWAV.PROTOTYPES SWAV.HIDDEN_SIZE SWAV.NUM_LAYERS SWAV.OUTPUT_DIM SWAV.HEAD_BN""".split(),
    "moco": """
MOCO.TEMPERATURE MOCO.QUEUE_LENGTH MOCO.MOMENTUM MOCO.HIDDEN_SIZE MOCO.NUM_LAYERS MOCO.OUTPUT_DIM
MOCO.HEAD_BN""".split(),
}

# Deliberate differences: (ours, theirs) and why.
DIFFERENT = {
    "DATA.PATH_TO_DATA_DIR": ("", "datasets/imagenet_ori/"),  # asked for instead of guessed
    "OUTPUT_DIR": ("", "./tmp"),  # likewise
}
# Differences that settings cannot show: the memory layout is channels_last (same numbers up to rounding); MoCo's
# shuffle is drawn from the step, not sent round.
# TRAIN.JOINT_LINEAR_PROBE is off by default and on in every published run, on the command line as in the comments.

# Of methods that the published system lacks.
OURS = {
    "SIMSIAM.HIDDEN_SIZE": 2048,
    "SIMSIAM.NUM_LAYERS": 3,
    "SIMSIAM.OUTPUT_DIM": 2048,
    "SIMSIAM.BOTTLENECK_DIM": 512,
}

# Ours alone, with the value that leaves the published recipe as it is.
NEW = {
    "DEVICE": "auto",
    "MODEL.OPTIONS": "",
    "MODEL.INIT_WEIGHTS": "",
    "MODEL.INIT_SHA256": "",
    "MODEL.NETWORK": "",
    "MODEL.POS_RESIZE": "published",
    "DATA.PIPELINE": "fast",
    "DATA.COLOR_ON_DEVICE": False,
    "DATA.MAX_CORRUPT": 0.001,
    "DATA.MAX_VALUE": 0.0,
    "TRAIN.ACCUMULATE": 1,
    "TRAIN.CHANNELS_LAST": True,
    "TRAIN.COMPILE": False,
    "TRAIN.AUTO_RESUME": True,
    "TRAIN.SAVE_SECONDS": 600.0,
    "TRAIN.ALLOW_CHANGES": False,
    "KNN.PERIOD": 1,
    "KNN.MODE": "loo",
    "KNN.K": 20,
    "KNN.TEMPERATURE": 0.07,
}


def ours(recipe: str) -> dict:
    file = ROOT / "configs" / "pretrain" / f"{recipe}.yaml"
    return dict(flatten(to_dict(load_config(DEFAULTS, file, translate=translate))))


def theirs(recipe: str) -> dict:
    """The published file over the published defaults, in our spelling."""
    published = dict(flatten(original()["pretrain_defaults"])) | dict(flatten(original()["pretrain"][recipe]))
    return translate(published)


def test_the_recipes_are_the_published_ones():
    assert RECIPES == sorted(original()["pretrain"])


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_fact_agrees(recipe):
    mine, published = ours(recipe), theirs(recipe)
    published.setdefault("MODEL.DROP_PATH_RATE", 0.0)  # the published CNNs have none
    facts = COMMON + OF_METHOD[mine["METHOD"]]
    assert {key: mine[key] for key in facts} == {key: published[key] for key in facts}
    for key, (ours_is, theirs_is) in DIFFERENT.items():
        assert (mine[key], published[key]) == (ours_is, theirs_is)
    assert {key: mine[key] for key in NEW} == NEW
    others = {key for method, keys in OF_METHOD.items() if method != mine["METHOD"] for key in keys}
    assert mine.keys() == {*facts, *DIFFERENT, *NEW, *OURS, *others}  # no setting escapes the audit
    assert published.keys() <= {*facts, *DIFFERENT, *others}


def test_simsiam_is_the_papers():
    """Chen and He, 2021: section 3 and appendix A."""
    cfg = ours("simsiam_resnet")
    paper = {
        "METHOD": "simsiam",
        "MODEL.BACKBONE_ARCH": "resnet50",
        **OURS,
        "VIEWS.LOCAL_NUMBER": 0,
        "VIEWS.GLOBAL_SIZE": 224,
        "VIEWS.GLOBAL_SCALE": [0.2, 1.0],
        "VIEWS.FLIP_PROB": 0.5,
        "VIEWS.COLOR_JITTER": [0.4, 0.4, 0.4, 0.1],
        "VIEWS.COLOR_JITTER_PROB": 0.8,
        "VIEWS.GRAYSCALE_PROB": 0.2,
        "VIEWS.SOLARIZE_PROB": [0.0, 0.0],
        "LOSS.WEIGHTS": [1.0, 0.0],
        "SOLVER.OPTIMIZER": "SGD",
        "SOLVER.BASE_LR": 0.05,
        "SOLVER.MIN_LR": 0.0,
        "SOLVER.WARMUP_EPOCHS": 0,
        "SOLVER.TOTAL_EPOCHS": 100,
        "SOLVER.WEIGHT_DECAY": 1e-4,
        "SOLVER.WEIGHT_DECAY_END": 1e-4,
        "SOLVER.MOMENTUM": 0.9,
        "TRAIN.AMP": "none",
    }
    assert {key: cfg[key] for key in paper} == paper
    assert cfg["VIEWS.BLUR_PROB"][:2] == [0.5, 0.5] and cfg["TRAIN.BATCH_SIZE"] * 8 == 512


@pytest.mark.parametrize("recipe", [*RECIPES, "simsiam_resnet"])
def test_a_recipe_opens_with_its_command_its_cost_and_its_number(recipe):
    text = (ROOT / "configs" / "pretrain" / f"{recipe}.yaml").read_text()
    comment = text[: text.index("\n_BASE_" if "_BASE_" in text else "\nMETHOD")]
    assert f"--cfg configs/pretrain/{recipe}.yaml" in comment.splitlines()[0]
    assert "# Cost:" in comment and "# Should reach" in comment
