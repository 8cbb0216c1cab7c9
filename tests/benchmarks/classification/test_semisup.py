"""Semi-supervised classification on real files: label lists, the head from DINO, resume, and fine-tuning on all."""

import gzip

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.classification import labelled as subsets, semisup, training
from benchmarks.classification.heads import semi_head
from benchmarks.classification.labelled import balanced, from_list, holdout, open_splits, read_list
from benchmarks.classification.weights import load_subject
from benchmarks.evaluation import main
from pretrain.backbones import build_backbone
from pretrain.methods.dino import DINOHead
from sslight.core import distributed
from sslight.core.checkpoint import FORMAT, save_checkpoint
from sslight.core.config import load_config
from sslight.core.errors import InputError, Stopped
from sslight.core.result import read_result

SEMI, FULL = "configs/classification/semi_10percent.yaml", "configs/classification/finetune.yaml"


def arguments(cfg, data, out, **extra):
    pairs = {
        "WEIGHTS": "random",
        "MODEL.BACKBONE_ARCH": "resnet18",
        "DATA.PATH_TO_DATA_DIR": data,
        "OUTPUT_DIR": out,
        "DATA.RESIZE": 36,
        "DATA.SIZE": 32,
        "DATA.WORKERS": 0,
        "TRAIN.BATCH_SIZE": 8,
        "HEAD.HIDDEN_SIZE": 16,
        "SOLVER.TOTAL_EPOCHS": 2,
        "LABELS.FRACTION": 0.25,
        **extra,
    }
    return ["--cfg", cfg, *(str(word) for pair in pairs.items() for word in pair)]


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    """A checkpoint of ours with a DINO head, and that head."""
    torch.manual_seed(5)
    backbone, head = build_backbone("resnet18"), DINOHead(512, 24, 8, 32, 3, norm=True, learn_scale=False)
    for module in head.mlp:
        if isinstance(module, torch.nn.BatchNorm1d):
            torch.nn.init.normal_(module.running_mean)
            torch.nn.init.uniform_(module.weight)
    model = {f"student.backbone.{key}": value for key, value in backbone.state_dict().items()}
    model |= {f"student.head.{key}": value for key, value in head.state_dict().items()}
    path = tmp_path_factory.mktemp("dino") / "last.pth"
    save_checkpoint(
        path,
        {
            "format": FORMAT,
            "method": "dino",
            "arch": "resnet18",
            "epoch": 1,
            "step": 1,
            "model": model,
            "optimizer": {},
            "rng": [],
            "config": {},
            "networks": {"student": "student.backbone."},
            "preprocess": {"mean": [0.5] * 3, "std": [0.2] * 3, "color_order": "RGB", "size": 32},
        },
    )
    return path, head


def test_on_several_gpus_the_classifier_is_the_same_network(image_folder, monkeypatch):
    """Synchronised norms keep MobileNetV2's 35 activations, and the head's norms; logits to 1e-6."""
    cfg, _ = semisup.EVALUATION.check(arguments(SEMI, image_folder, "out", **{"MODEL.BACKBONE_ARCH": "mobilenet_v2"}))
    subject = load_subject(cfg)
    plain, _ = semisup.build(cfg, subject, 4, 0)
    with monkeypatch.context() as patch:
        patch.setattr(distributed, "world_size", lambda: 2)
        patch.setattr(torch.cuda, "is_available", lambda: True)
        other, _ = semisup.build(cfg, subject, 4, 0)
    assert sum(isinstance(module, torch.nn.SyncBatchNorm) for module in other.modules()) == 52 + 2
    for module in plain.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            torch.nn.init.normal_(module.bias, std=0.5)
    other.load_state_dict(plain.state_dict(), strict=True)
    with torch.no_grad():
        images = torch.randn(2, 3, 64, 64)
        a, b = (model.eval()(images)["classifier"] for model in (plain, other))
    assert (a - b).abs().max() <= 1e-6 * a.abs().max()


def test_balanced_draws():
    labels = np.repeat(np.arange(5), [40, 40, 40, 40, 2])
    for fraction, share in ((0.1, 3), (0.001, 1), (0.5, 16)):
        chosen = balanced(labels, fraction, seed=1)
        counts = np.bincount(labels[chosen], minlength=5)
        assert counts.tolist() == [share] * 4 + [min(share, 2)]
        assert np.array_equal(chosen, np.unique(chosen)) and np.array_equal(chosen, balanced(labels, fraction, 1))
    assert not np.array_equal(balanced(labels, 0.1, 1), balanced(labels, 0.1, 2))


def test_holdout_takes_from_every_class_but_never_all_of_one():
    labels = np.repeat(np.arange(3), [20, 2, 1])
    fitted, held = holdout(labels, 0.25, seed=0)
    assert np.bincount(labels[held], minlength=3).tolist() == [5, 1, 0]
    assert np.array_equal(np.sort(np.concatenate([fitted, held])), np.arange(23))


def test_the_shipped_imagenet_lists():
    one, ten = (read_list(subsets.DATA / subsets.STANDARD[fraction]) for fraction in (0.01, 0.1))
    assert (len(set(one)), len(set(ten))) == (12811, 128116)
    for names in (one, ten):
        assert len({name.split("_")[0] for name in names}) == 1000 and all(n.endswith(".JPEG") for n in names)


def test_label_lists_by_full_and_bare_name(image_folder, tmp_path):
    cfg = load_config(semisup.EVALUATION.settings, None, ["DATA.PATH_TO_DATA_DIR", str(image_folder)])
    train, _ = open_splits(cfg)
    chosen = [train.source.name(i) for i in (3, 50, 77)]
    (tmp_path / "full.txt.gz").write_bytes(gzip.compress("\n".join(chosen).encode()))
    assert from_list(tmp_path / "full.txt.gz", train).tolist() == [3, 50, 77]
    for text, words in (
        ("nothing.jpg\n" + chosen[0], "does not have, e.g. nothing.jpg"),
        ("000.jpg", "several files"),
        ("\n", "is empty"),
    ):
        (tmp_path / "list.txt").write_text(text)
        with pytest.raises(InputError, match=words):
            from_list(tmp_path / "list.txt", train)


def test_a_vits_dino_head_has_no_batch_norm():
    head = DINOHead(192, 24, 8, 32, 3, norm=False, learn_scale=True)
    projection = {f"mlp.{key}": value for key, value in head.mlp.state_dict().items()}
    mine, origin = semi_head(192, 10, projection, hidden=2048, layers=3, norm=True, seed=0)
    x = torch.randn(4, 192)
    assert origin == "DINO head" and [type(layer).__name__ for layer in mine] == [*["Linear", "GELU"] * 2, "Linear"]
    with torch.no_grad():
        torch.testing.assert_close(mine[:-1](x), head.mlp[:-1](x), atol=0, rtol=0)


def test_the_head_starts_as_dinos_and_computes_the_same(dino):
    _, head = dino
    projection = {f"mlp.{key}": value for key, value in head.mlp.state_dict().items()}
    mine, origin = semi_head(512, 10, projection, hidden=2048, layers=3, norm=True, seed=0)
    assert origin == "DINO head"
    x = torch.randn(4, 512)
    with torch.no_grad():  # all but the last layer, in eval mode: BN parameters and statistics are DINO's
        torch.testing.assert_close(mine.eval()[:-1](x), head.mlp.eval()[:-1](x), atol=0, rtol=0)
    assert [type(layer).__name__ for layer in mine] == [*["Linear", "BatchNorm1d", "GELU"] * 2, "Linear"]
    assert mine[-1].out_features == 10
    bound = 1 / 24**0.5  # torch's default initialisation is uniform within this bound
    assert 0.9 * bound < mine[-1].weight.abs().max() <= bound
    with pytest.raises(InputError, match="width 512"):
        semi_head(256, 10, projection, hidden=2048, layers=3, norm=True, seed=0)


def test_a_checkpoints_dino_head_is_used(image_folder, dino, tmp_path):
    main(
        semisup.EVALUATION,
        arguments(SEMI, image_folder, tmp_path / "on", WEIGHTS=dino[0], **{"MODEL.BACKBONE_ARCH": ""}),
    )
    main(
        semisup.EVALUATION,
        arguments(SEMI, image_folder, tmp_path / "off", WEIGHTS=dino[0], **{"HEAD.FROM_DINO": False}),
    )
    heads = [read_result(tmp_path / name)["per_seed"][0]["head"] for name in ("on", "off")]
    assert heads == ["DINO head", "random"]
    state = torch.load(tmp_path / "on" / "seed_0" / "state.pth", weights_only=True)["model"]
    assert state["head.0.weight"].shape == (24, 512) and state["head.6.weight"].shape == (4, 24)


def test_several_seeds_draw_several_saved_subsets(image_folder, tmp_path):
    main(semisup.EVALUATION, arguments(SEMI, image_folder, tmp_path, SEEDS="[0,1,2]"))
    result = read_result(tmp_path)
    lists = [(tmp_path / f"seed_{seed}" / "labels.txt").read_text().split("\n")[:-1] for seed in range(3)]
    assert all(len(names) == 24 for names in lists) and lists[0] != lists[1]
    assert all((image_folder / "train" / name).is_file() for name in lists[0])
    values = [run["top1"] for run in result["per_seed"]]
    assert result["metrics"]["top1"]["value"] == pytest.approx(np.mean(values))
    assert result["metrics"]["top1"]["std"] == pytest.approx(np.std(values, ddof=1))
    assert result["benchmark"] == "semisup" and result["data"]["counts"]["labelled"] == 24


def test_all_labels_is_fine_tuning_and_learns(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 12)):
        for name, color in (("blue", (40, 60, 200)), ("red", (200, 60, 40))):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(rng.normal(color, 40, (36, 36, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{i}.png")
    main(
        semisup.EVALUATION,
        arguments(
            FULL,
            tmp_path,
            tmp_path / "out",
            **{
                "LABELS.FRACTION": 1.0,
                "SOLVER.TOTAL_EPOCHS": 12,
                "SOLVER.BASE_LR": 0.5,
                "TRAIN.BATCH_SIZE": 16,
                "TRAIN.EVAL_PERIOD": 12,
            },
        ),
    )
    result = read_result(tmp_path / "out")
    assert result["benchmark"] == "finetune" and result["data"]["counts"]["labelled"] == 48
    assert result["metrics"]["top1"]["value"] > 90  # chance is 50


@pytest.mark.parametrize("arch", ["test_vit", "mobilenetv2_050"])
def test_a_stopped_run_continues_to_the_same_numbers(image_folder, tmp_path, monkeypatch, arch):
    extra = {"MODEL.BACKBONE_ARCH": arch}
    main(semisup.EVALUATION, arguments(SEMI, image_folder, tmp_path / "whole", **extra))
    steps = []

    def requested(self):
        steps.append(1)
        return len(steps) == 5

    monkeypatch.setattr(training.StopSignal, "requested", requested)
    with pytest.raises(Stopped):
        main(semisup.EVALUATION, arguments(SEMI, image_folder, tmp_path / "parts", **extra))
    main(semisup.EVALUATION, arguments(SEMI, image_folder, tmp_path / "parts", **extra))
    one, two = read_result(tmp_path / "whole"), read_result(tmp_path / "parts")
    assert one["metrics"] == two["metrics"] and one["per_seed"] == two["per_seed"]
    states = [torch.load(tmp_path / name / "seed_0" / "state.pth", weights_only=True) for name in ("whole", "parts")]
    assert all(torch.equal(states[0]["model"][key], states[1]["model"][key]) for key in states[0]["model"])


@pytest.mark.parametrize(
    "change, words",
    [
        ({"LABELS.FRACTION": 0.0}, "in \\(0, 1\\]"),
        ({"LABELS.LIST": "/nowhere/list.txt"}, "not readable"),
        ({"HEAD.KIND": "conv"}, "mlp or linear"),
        ({"DATA.NUM_CLASSES": 1000}, "has 4 classes"),
    ],
)
def test_bad_input_is_one_line(image_folder, tmp_path, change, words):
    with pytest.raises(InputError, match=words):
        main(semisup.EVALUATION, arguments(SEMI, image_folder, tmp_path, **change))
