"""The k-NN benchmark on real files against features and votes computed without any of its code."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torchvision import transforms

from benchmarks.classification import knn
from benchmarks.evaluation import main
from pretrain.backbones import build_backbone
from sslight.core.checkpoint import save_backbone
from sslight.core.errors import InputError
from sslight.core.result import read_result

KS = [1, 10, 20, 50]
PREPROCESS = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "color_order": "RGB", "size": 32}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(3)
    model = build_backbone("resnet18")
    path = tmp_path_factory.mktemp("weights") / "backbone.safetensors"
    save_backbone(path, model.state_dict(), arch="resnet18", method="dino", preprocess=PREPROCESS)
    return path


def arguments(data, weights, out, **extra):
    pairs = {
        "WEIGHTS": weights,
        "DATA.PATH_TO_DATA_DIR": data,
        "OUTPUT_DIR": out,
        "DATA.RESIZE": 36,
        "DATA.SIZE": 32,
        "DATA.WORKERS": 0,
        "KNN.K": KS,
        "FEATURES.BATCH_SIZE": 16,
        **extra,
    }
    return ["--cfg", "configs/classification/knn.yaml", *(str(word) for pair in pairs.items() for word in pair)]


@pytest.fixture(scope="module")
def independent(image_folder, weights):
    """Top-1 for every k and for leave-one-out, by timm, torchvision and NumPy alone."""
    model = timm.create_model("resnet18", num_classes=0, checkpoint_path=str(weights)).eval()
    picture = transforms.Compose(
        [
            transforms.Resize(36, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize(PREPROCESS["mean"], PREPROCESS["std"]),
        ]
    )
    features, labels = {}, {}
    for split in ("train", "val"):
        files = sorted((image_folder / split).glob("*/*.jpg"))
        with torch.no_grad():
            found = model(torch.stack([picture(Image.open(file).convert("RGB")) for file in files])).double().numpy()
        features[split] = found / np.linalg.norm(found, axis=1, keepdims=True)
        names = sorted({file.parent.name for file in files})
        labels[split] = np.array([names.index(file.parent.name) for file in files])

    def accuracy(k, bank, leave_one_out):
        right = 0
        for i, query in enumerate(features["val"]):
            similarity = features[bank] @ query
            order = [j for j in np.argsort(-similarity, kind="stable") if not (leave_one_out and j == i)][:k]
            votes = np.zeros(4)
            for j in order:
                votes[labels[bank][j]] += np.exp(similarity[j] / 0.07)
            right += int(votes.argmax() == labels["val"][i])
        return 100 * right / len(labels["val"])

    return ({k: accuracy(k, "train", False) for k in KS}, {k: accuracy(k, "val", True) for k in KS if k < 32})


def test_equals_brute_force_for_every_k(image_folder, weights, independent, tmp_path):
    assert main(knn.EVALUATION, arguments(image_folder, weights, tmp_path / "out", NAME="mine")) == 0
    result = read_result(tmp_path / "out")
    for k in KS:
        assert result["metrics"][f"top1_k{k}"]["value"] == pytest.approx(independent[0][k], abs=1e-9)
    assert result["metrics"]["top1"] == result["metrics"]["top1_k20"] and result["headline"] == "k = 20"
    assert result["data"]["counts"] == {"train": 96, "val": 32}
    assert {key: result["checkpoint"][key] for key in ("arch", "method", "name")} == {
        "arch": "resnet18",
        "method": "dino",
        "name": "mine",
    }
    assert set(result["departures"]) == {"DATA.RESIZE", "DATA.SIZE", "KNN.K"}


def test_leave_one_out_on_val(image_folder, weights, independent, tmp_path):
    argv = arguments(image_folder, weights, tmp_path / "out")
    main(knn.EVALUATION, [*argv[:2], "--loo", *argv[2:]])
    result = read_result(tmp_path / "out")
    for k, value in independent[1].items():
        assert result["metrics"][f"top1_k{k}"]["value"] == pytest.approx(value, abs=1e-9)
    assert "top1_k50" not in result["metrics"]  # 31 neighbours at most


def test_features_are_reused_and_those_of_other_weights_refused(image_folder, weights, tmp_path, monkeypatch):
    cache = {"FEATURES.CACHE_DIR": tmp_path / "cache"}
    main(knn.EVALUATION, arguments(image_folder, weights, tmp_path / "first", **cache))
    entries = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.npy")}
    assert len(entries) == 2
    main(knn.EVALUATION, arguments(image_folder, weights, tmp_path / "second", **cache))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.npy")} == entries
    assert read_result(tmp_path / "first")["metrics"] == read_result(tmp_path / "second")["metrics"]
    for index in (tmp_path / "cache").rglob("index.json"):
        index.write_text(index.read_text().replace('"weights": "', '"weights": "0'))
    with pytest.raises(InputError, match="is of other weights"):
        main(knn.EVALUATION, arguments(image_folder, weights, tmp_path / "third", **cache))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"WEIGHTS": ""}, "WEIGHTS is not set"),
        ({"WEIGHTS": "random"}, "needs a backbone"),
        ({"KNN.HEADLINE_K": 33}, "not one of KNN.K"),
        ({"KNN.K": "[1,200]", "KNN.HEADLINE_K": 200}, "only 96 neighbours"),
        ({"DATA.NUM_CLASSES": 5}, "4 classes"),
        ({"KNN.FEATURE": "cls4"}, "does not suit resnet18"),
        ({"KNN.KS": "[1]"}, "unknown config key"),
        ({"DATA.RESIZE": 16}, "does not fit"),
    ],
)
def test_bad_input_is_one_line(image_folder, weights, tmp_path, change, words):
    with pytest.raises(InputError, match=words):
        main(knn.EVALUATION, arguments(image_folder, weights, tmp_path / "out", **change))


def test_exit_code_and_single_line(run, tmp_path):
    done = run(
        "-m",
        "benchmarks.knn",
        "WEIGHTS",
        "random",
        "MODEL.BACKBONE_ARCH",
        "resnet18",
        "OUTPUT_DIR",
        tmp_path / "out",
        "DATA.PATH_TO_DATA_DIR",
        tmp_path / "none",
        expect=2,
    )
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and str(tmp_path / "none") in done.stderr


@pytest.mark.parametrize("fault, words", [("empty", "no images"), ("strange", "not in"), ("missing", "val")])
def test_val_that_does_not_fit_train(image_folder, weights, tmp_path, fault, words):
    import shutil

    shutil.copytree(image_folder / "train", tmp_path / "data" / "train")
    if fault == "empty":
        (tmp_path / "data" / "val" / "digit 0").mkdir(parents=True)
    elif fault == "strange":
        shutil.copytree(image_folder / "val", tmp_path / "data" / "val")
        (tmp_path / "data" / "val" / "digit 3").rename(tmp_path / "data" / "val" / "digit 9")
    with pytest.raises(InputError, match=words):
        main(knn.EVALUATION, arguments(tmp_path / "data", weights, tmp_path / "out"))
