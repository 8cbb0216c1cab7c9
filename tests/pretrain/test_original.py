"""Files and overrides written for the published system."""

import json
from functools import cache

import pytest
import yaml

from pretrain.original import ORIGINAL_DEFAULTS, translate
from pretrain.settings import DEFAULTS
from sslight.core.config import flatten, load_config, to_dict
from sslight.core.errors import InputError
from tests.pretrain.golden import DATA


@cache
def original() -> dict:
    return json.loads((DATA / "original_configs.json").read_text())


def load(tmp_path, settings: dict, *overrides: str) -> dict:
    file = tmp_path / "original.yaml"
    file.write_text(yaml.safe_dump(settings))
    return dict(flatten(to_dict(load_config(DEFAULTS, file, overrides, translate))))


EXPECTED = {  # what decides the result, by hand from the published tables
    "dino_cnn_baseline": {
        "METHOD": "dino",
        "VIEWS.GLOBAL_SCALE": [0.14, 1.0],
        "LOSS.WEIGHTS": [0.142857, 0.857143],
        "DINO.HEAD_BN": True,
        "DINO.NORM_LAST_LAYER": True,
        "SOLVER.OPTIMIZER": "LARS",
        "MODEL.DROP_PATH_RATE": 0.0,
        "DINO.FREEZE_LAST_LAYER_EPOCHS": 1,
    },
    "dino_vit_sslight": {
        "METHOD": "dino",
        "VIEWS.LOCAL_NUMBER": 10,
        "VIEWS.LOCAL_SIZE": 128,
        "DINO.OUTPUT_DIM": 65536,
        "DINO.NORM_LAST_LAYER": False,
        "SOLVER.OPTIMIZER": "AdamW",
        "SOLVER.WEIGHT_DECAY_END": 0.4,
        "MODEL.DROP_PATH_RATE": 0.1,
        "SOLVER.MIN_LR": 1e-5,
    },
    "swav_cnn_sslight": {
        "METHOD": "swav",
        "VIEWS.COLOR_JITTER": [0.8, 0.8, 0.8, 0.2],
        "SWAV.PROTOTYPES": 3000,
        "SWAV.QUEUE_LENGTH": 3840,
        "SOLVER.START_WARMUP": 0.075,
        "VIEWS.SOLARIZE_PROB": [0.0, 0.0],
    },
    "moco_cnn_baseline": {
        "METHOD": "moco",
        "MOCO.QUEUE_LENGTH": 65536,
        "MOCO.HEAD_BN": False,
        "VIEWS.LOCAL_SIZE": 96,
        "SOLVER.BASE_LR": 0.48,
    },
}


@pytest.mark.parametrize(
    "name",
    [
        "dino_cnn_baseline",
        "dino_cnn_sslight",
        "dino_vit_baseline",
        "dino_vit_sslight",
        "swav_cnn_baseline",
        "swav_cnn_sslight",
        "moco_cnn_baseline",
        "moco_cnn_sslight",
    ],
)
def test_every_published_file_runs_unmodified(name, tmp_path, caplog):
    cfg = load(tmp_path, original()["pretrain"][name])
    assert {key: cfg[key] for key in EXPECTED.get(name, {})} == EXPECTED.get(name, {})
    (warning,) = caplog.messages
    for key in ("DISTRIBUTED", "DIST_BACKEND", "DIST_URL", "WORLD_SIZE"):
        assert key in warning
    for key in ("LAMBDAS", "LOCAL_CROPS_NUMBER", "STAGE"):
        assert key not in warning


def test_every_key_of_the_published_system_is_known():
    """No default of it is rejected, and the table of its defaults is its own, complete where ours differ."""
    flat = dict(flatten(original()["pretrain_defaults"]))
    assert {key: flat[key] for key in ORIGINAL_DEFAULTS} == ORIGINAL_DEFAULTS
    ours = dict(flatten(DEFAULTS))
    everything = translate(flat)
    assert everything.keys() <= ours.keys()
    filled = translate({"SSL_METHOD": "DINO"}, whole_file=True)
    differing = {key: value for key, value in everything.items() if ours[key] != value}
    assert differing.items() <= filled.items()


def test_a_file_for_the_published_system_starts_from_its_defaults(tmp_path):
    cfg = load(tmp_path, {"SSL_METHOD": "SWAV", "MODEL": {"BACKBONE_ARCH": "resnet18"}})
    assert (cfg["SOLVER.TOTAL_EPOCHS"], cfg["SWAV.QUEUE_LENGTH"], cfg["VIEWS.LOCAL_SIZE"]) == (300, 0, 96)
    assert cfg["MODEL.DROP_PATH_RATE"] == 0.0  # 0.1 there by default, but only for its ViT
    assert load(tmp_path, {"SSL_METHOD": "DINO"})["MODEL.DROP_PATH_RATE"] == 0.1


def test_a_file_of_ours_may_borrow_a_spelling(tmp_path):
    cfg = load(tmp_path, {"METHOD": "swav", "MULTI_VIEWS_TRANSFORMS": {"LAMBDAS": [0.5, 0.5]}})
    assert (cfg["METHOD"], cfg["LOSS.WEIGHTS"], cfg["SOLVER.TOTAL_EPOCHS"]) == ("swav", [0.5, 0.5], 200)


def test_its_spellings_work_as_overrides_and_change_nothing_else():
    plain = dict(flatten(to_dict(load_config(DEFAULTS, None))))
    overrides = [
        "SSL_METHOD",
        "SWAV",
        "MULTI_VIEWS_TRANSFORMS.LOCAL_CROPS_NUMBER",
        "4",
        "USE_FP16",
        "True",
        "SOLVER.MIN_LR",
        "1e-4",
        "MULTI_VIEWS_TRANSFORMS.COLOR_JITTER_PROB",
        "[0.5,0.5]",
        "SOLVER.OPTIMIZING_METHOD",
        "AdamW",
    ]
    cfg = dict(flatten(to_dict(load_config(DEFAULTS, None, overrides, translate))))
    assert {key: value for key, value in cfg.items() if value != plain[key]} == {
        "METHOD": "swav",
        "VIEWS.LOCAL_NUMBER": 4,
        "TRAIN.AMP": "fp16",
        "SOLVER.MIN_LR": 1e-4,
        "VIEWS.COLOR_JITTER_PROB": 0.5,
        "SOLVER.OPTIMIZER": "AdamW",
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SOLVER.SCHEDULER", "step"),
        ("SOLVER.LARS_EXCLUDE_DW", "True"),
        ("SOLVER.WD_FACTOR_FOR_BIAS", "1.0"),
        ("MULTI_VIEWS_TRANSFORMS.CROPS_FOR_ASSIGN", "[0]"),
        ("MULTI_VIEWS_TRANSFORMS.GREYSCALE_PROB", "[0.2, 0.1]"),
        ("MULTI_VIEWS_TRANSFORMS.NMB_CROPS", "[1, 6]"),
        ("VIT.PATCH_SIZE", "8"),
        ("DINO.GLOBAL_ONLY", "True"),
        ("TRAIN.SUBSET_FILE_PATH", "some.txt"),
        ("STAGE", "TEST"),
    ],
)
def test_a_value_without_counterpart_is_refused_by_name(key, value):
    with pytest.raises(InputError, match=key.replace(".", r"\.")):
        load_config(DEFAULTS, None, [key, value], translate)


def test_its_swav_clips_nothing(tmp_path):
    """DINO's and MoCo's clip each tensor, as SOLVER.CLIP_GRAD does here (tests/pretrain/test_trajectories.py)."""
    assert load(tmp_path, {"SSL_METHOD": "MOCO", "SOLVER": {"CLIP_GRAD": 0.3}})["SOLVER.CLIP_GRAD"] == 0.3
    with pytest.raises(InputError, match=r"'SOLVER\.CLIP_GRAD'.*its SwAV never clips"):
        load(tmp_path, {"SSL_METHOD": "SWAV", "SOLVER": {"CLIP_GRAD": 0.3}})


def test_crop_numbers_must_agree():
    v = "MULTI_VIEWS_TRANSFORMS."
    with pytest.raises(InputError, match="disagrees"):
        load_config(DEFAULTS, None, [f"{v}NMB_CROPS", "[2,6]", f"{v}LOCAL_CROPS_NUMBER", "4"], translate)
    assert load_config(DEFAULTS, None, [f"{v}NMB_CROPS", "[2,4]"], translate).VIEWS.LOCAL_NUMBER == 4


def test_an_unknown_key_is_an_error_naming_the_nearest(tmp_path):
    with pytest.raises(InputError, match=r"SOLVER\.BASE_LRR.*SOLVER\.BASE_LR"):
        load(tmp_path, {"SSL_METHOD": "DINO", "SOLVER": {"BASE_LRR": 0.1}})
