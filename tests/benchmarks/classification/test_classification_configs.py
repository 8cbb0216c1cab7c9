"""The classification configs against the published system's, fact by fact, and against the neighbours' papers."""

import json
from pathlib import Path

import pytest

from benchmarks.classification import knn, linear, semisup
from sslight.core.config import flatten, load_config, to_dict

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / "configs" / "classification"
GOLDEN = json.loads((ROOT / "tests" / "data" / "golden" / "original_configs.json").read_text())
DEFAULTS = {
    "knn": knn.EVALUATION.settings,
    "linear": linear.EVALUATION.settings,
    "semi": semisup.EVALUATION.settings,
    "finetune": semisup.EVALUATION.settings,
}
GPUS = 8  # of a published run: TRAIN.BATCH_SIZE is per process


def ours(name):
    kind = next(kind for kind in DEFAULTS if kind in name)
    return dict(flatten(to_dict(load_config(DEFAULTS[kind], CONFIGS / f"{name}.yaml"))))


def published(name):
    return dict(flatten(GOLDEN["classification_defaults"])) | dict(flatten(GOLDEN["classification"][name]))


def config_of(experiment):
    if experiment.endswith("semi"):
        return "semi_1percent"
    return "linear_vit" if "vit" in experiment else "linear_cnn"


@pytest.mark.parametrize("experiment", sorted(GOLDEN["classification"]))
def test_published_protocols(experiment):
    theirs, mine = published(experiment), ours(config_of(experiment))
    assert mine["SOLVER.OPTIMIZER"] == theirs["SOLVER.OPTIMIZING_METHOD"]
    for key in ("BASE_LR", "MIN_LR", "TOTAL_EPOCHS", "MOMENTUM", "WEIGHT_DECAY", "NESTEROV"):
        assert mine[f"SOLVER.{key}"] == theirs[f"SOLVER.{key}"], key
    assert theirs["SOLVER.WEIGHT_DECAY_END"] == mine["SOLVER.WEIGHT_DECAY"]
    assert (theirs["SOLVER.SCHEDULER"], theirs["SOLVER.WARMUP_EPOCHS"], theirs["SOLVER.CLIP_GRAD"]) == ("cos", 0, 0.0)
    assert mine["SOLVER.SCHEDULE"] == "cosine" and not mine["SOLVER.PER_STEP"]
    assert mine["TRAIN.BATCH_SIZE"] == theirs["TRAIN.BATCH_SIZE"]
    assert mine["SOLVER.BACKBONE_LR_FACTOR"] == 1.0 and mine["TRAIN.AMP"] == mine["FEATURES.AMP"] == "none"
    assert (mine["DATA.RESIZE"], mine["DATA.SIZE"]) == (256, 224)
    # empty: as the checkpoint says, else ImageNet's, which is what the published files state
    assert mine["DATA.MEAN"] == [] and theirs["DATA.MEAN"] == [0.485, 0.456, 0.406]
    if experiment.endswith("semi"):
        assert Path(theirs["TRAIN.SUBSET_FILE_PATH"]).stem == "semi_1percent"
        assert mine["LABELS.FRACTION"] == 0.01 and mine["LABELS.LIST"] == "standard"
        head = ("KIND", "FROM_DINO", "HIDDEN_SIZE", "LAYERS", "BN")
        assert [mine[f"HEAD.{key}"] for key in head] == ["mlp", True, 2048, 3, True]
    else:
        blocks = theirs["VIT.NUM_LAST_BLOCKS"]
        assert mine["PROBE.FEATURES"] == (["pooled"] if blocks == 1 else [f"cls{blocks}"])
        assert mine["PROBE.HOLDOUT"] == 0 and mine["PROBE.LEARNING_RATES"] == [] and not mine["PROBE.CACHED"]
        assert mine["TRAIN.EVAL_PERIOD"] == 1  # the best epoch on val is looked for in every epoch
        assert mine["TRAIN.BATCH_SIZE"] * GPUS == (1024 if "vit" in experiment else 4096)


def test_ten_percent_and_fine_tuning_differ_from_one_percent_only_where_they_should():
    one, ten, full = ours("semi_1percent"), ours("semi_10percent"), ours("finetune")
    assert {key: ten[key] for key in ten if ten[key] != one[key]} == {"LABELS.FRACTION": 0.1, "SOLVER.TOTAL_EPOCHS": 30}
    assert {key: full[key] for key in full if full[key] != ten[key]} == {"LABELS.FRACTION": 1.0}


@pytest.mark.parametrize(
    "name, facts",
    [
        (
            "linear_moco",
            dict(OPTIMIZER="SGD", rate=30, batch=256, TOTAL_EPOCHS=100, MILESTONES=[60, 80], WEIGHT_DECAY=0),
        ),
        (
            "linear_swav",
            dict(OPTIMIZER="SGD", rate=0.3, batch=256, TOTAL_EPOCHS=100, SCHEDULE="cosine", WEIGHT_DECAY=1e-6),
        ),
        ("linear_dino", dict(OPTIMIZER="SGD", rate=0.001 * 4, batch=1024, TOTAL_EPOCHS=100, SCHEDULE="cosine")),
        ("linear_simsiam", dict(OPTIMIZER="LARS", rate=1.6, batch=4096, TOTAL_EPOCHS=90, SCHEDULE="cosine")),
        ("semi_swav_1percent", dict(rate=5, batch=256, TOTAL_EPOCHS=20, MILESTONES=[12, 16], GAMMA=0.2, backbone=0.02)),
        (
            "semi_swav_10percent",
            dict(rate=0.2, batch=256, TOTAL_EPOCHS=20, MILESTONES=[12, 16], GAMMA=0.2, backbone=0.01),
        ),
    ],
)
def test_the_neighbours_protocols(name, facts):
    mine = ours(name)
    batch = mine["TRAIN.BATCH_SIZE"] * GPUS
    rate = mine["SOLVER.BASE_LR"] * batch / 256
    assert batch == facts.pop("batch") and rate == pytest.approx(facts.pop("rate"))
    if "backbone" in facts:
        assert rate * mine["SOLVER.BACKBONE_LR_FACTOR"] == pytest.approx(facts.pop("backbone"))
        assert mine["HEAD.KIND"] == "linear"
    assert {key: mine[f"SOLVER.{key}"] for key in facts} == facts


def test_the_sweep_is_dinov2s():
    mine = ours("linear_sweep")
    rates = mine["PROBE.LEARNING_RATES"]
    assert len(rates) == 13 and (rates[0], rates[-1]) == (1e-5, 0.1) and rates == sorted(rates)
    steps = mine["SOLVER.TOTAL_EPOCHS"] * (1_281_167 // (mine["TRAIN.BATCH_SIZE"] * GPUS))
    assert steps == pytest.approx(12_500, rel=0.01)
    assert mine["PROBE.HOLDOUT"] > 0 and mine["PROBE.FEATURES"] == ["auto"]


@pytest.mark.parametrize(
    ("name", "content", "words", "departures"),
    [
        ("linear_cnn", "", [], {}),
        ("linear_cnn", "SOLVER: {TOTAL_EPOCHS: 20}", [], {"SOLVER.TOTAL_EPOCHS": 20}),
        ("mine", "SOLVER: {TOTAL_EPOCHS: 20}", [], {}),  # another protocol
        ("mine", "PROTOCOL: linear_cnn\nSOLVER: {TOTAL_EPOCHS: 20}", [], {"SOLVER.TOTAL_EPOCHS": 20}),
        ("mine", "", ["SOLVER.TOTAL_EPOCHS", "20"], {"SOLVER.TOTAL_EPOCHS": 20}),
        ("finetune", "SOLVER: {TOTAL_EPOCHS: 20}", [], {}),  # the shipped one is of another benchmark
    ],
)
def test_a_protocol_is_what_its_shipped_file_says(tmp_path, name, content, words, departures):
    """An edited copy departs from it, whatever its folder."""
    (tmp_path / f"{name}.yaml").write_text(f"_BASE_: {CONFIGS / 'linear_cnn.yaml'}\n{content}\n")
    words = ["--cfg", str(tmp_path / f"{name}.yaml"), "WEIGHTS", "random", "OUTPUT_DIR", str(tmp_path), *words]
    cfg, found = linear.EVALUATION.check(words)
    assert found == departures
    assert cfg.PROTOCOL == ("linear_cnn" if "PROTOCOL" in content else name)


def test_learning_rates_by_epoch():
    from benchmarks.classification.training import learning_rate

    cfg = load_config(linear.EVALUATION.settings, CONFIGS / "linear_cnn.yaml")
    assert learning_rate(cfg, 0, 0.8) == pytest.approx(0.8)
    assert learning_rate(cfg, 50, 0.8) == pytest.approx((0.8 + 1e-6) / 2)
    cfg = load_config(linear.EVALUATION.settings, CONFIGS / "linear_moco.yaml")
    assert [learning_rate(cfg, e, 30.0) for e in (59, 60, 79, 80)] == pytest.approx([30, 3, 3, 0.3])


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_config_opens_with_its_command(file):
    first = file.read_text().splitlines()[0]
    assert first.startswith("# ") and "-m benchmarks." in first and f"configs/classification/{file.name}" in first
