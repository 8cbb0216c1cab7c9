"""Bad input to the classification benchmarks through the public command: one line, exit 2, nothing written."""

import itertools
import json
import shutil

import pytest

from pretrain.backbones import build_backbone
from sslight import cli
from sslight.core.checkpoint import save_backbone
from sslight.core.processes import run_command

BENCHMARKS = {
    "knn": ("knn", "knn"),
    "linear": ("linear", "linear_cnn"),
    "cached": ("linear", "linear_cached"),
    "semisup": ("semisup", "semi_10percent"),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Two checkpoints of one architecture."""
    paths = [tmp_path_factory.mktemp("weights") / f"{i}.safetensors" for i in range(2)]
    for path in paths:
        save_backbone(
            path,
            build_backbone("resnet18").state_dict(),
            arch="resnet18",
            method="dino",
            preprocess={"mean": [0.5] * 3, "std": [0.2] * 3, "color_order": "RGB", "size": 32},
        )
    return paths


def bench(name, data, weights, out, **extra):
    """Exit code of `sslight bench NAME ...`."""
    pairs = {
        "WEIGHTS": weights,
        "DATA.PATH_TO_DATA_DIR": data,
        "OUTPUT_DIR": out,
        "DATA.RESIZE": 36,
        "DATA.SIZE": 32,
        "DATA.WORKERS": 0,
        "FEATURES.BATCH_SIZE": 32,
    }
    if name != "knn":
        pairs |= {"TRAIN.BATCH_SIZE": 24, "SOLVER.TOTAL_EPOCHS": 1}
    if name == "cached":
        pairs |= {"PROBE.STEPS": 2, "PROBE.PENALTIES": "[0.1]"}
    if name == "semisup":
        pairs |= {"LABELS.FRACTION": 0.5, "HEAD.HIDDEN_SIZE": 8}
    command, cfg = BENCHMARKS[name]
    words = (str(word) for pair in (pairs | extra).items() for word in pair)
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: cli.dispatch(["bench", command, "--cfg", f"configs/classification/{cfg}.yaml", *words]))
    return ended.value.code


def refused(capsys, code, *words):
    errors = capsys.readouterr().err
    assert code == 2 and errors.startswith("error: ") and errors.count("\n") == 1, errors
    for word in words:
        assert str(word) in errors
    return True


@pytest.mark.parametrize(
    "name, fault", [*itertools.product(BENCHMARKS, ["classes", "empty", "strange"]), ("semisup", "list")]
)
def test_data_that_do_not_fit(image_folder, weights, tmp_path, capsys, name, fault):
    data, out, extra = tmp_path / "data", tmp_path / "results" / "out", {}
    shutil.copytree(image_folder, data)
    if fault == "classes":
        words, extra = ("has 4 classes", "NUM_CLASSES is 1000"), {"DATA.NUM_CLASSES": 1000}
    elif fault == "empty":
        words = ("no images", data / "val")
        shutil.rmtree(data / "val")
        (data / "val" / "digit 0").mkdir(parents=True)
    elif fault == "strange":
        words = ("class 'digit 9'", "not in", data / "train")
        (data / "val" / "digit 3").rename(data / "val" / "digit 9")
    else:
        words, extra = ("names 1 file(s)", "digit 0/999.jpg"), {"LABELS.LIST": tmp_path / "list.txt"}
        (tmp_path / "list.txt").write_text("digit 0/000.jpg\ndigit 0/999.jpg\n")
    assert refused(capsys, bench(name, data, weights[0], out, **extra), *words) and not out.parent.exists()


@pytest.mark.parametrize("name", ["knn", "cached"])
def test_a_feature_cache_of_another_checkpoint(image_folder, weights, tmp_path, capsys, name):
    cache = {"FEATURES.CACHE_DIR": tmp_path / "cache"}
    found = []
    for i, path in enumerate(weights):
        assert bench(name, image_folder, path, tmp_path / f"out{i}", **cache) == 0
        entries = {folder for folder in (tmp_path / "cache").iterdir() if folder not in found}
        assert len(entries) == 2  # train and val, anew for every checkpoint
        found += sorted(entries, key=lambda folder: json.loads((folder / "index.json").read_text())["images"])
    for mine, other in zip(found[:2], found[2:], strict=True):
        shutil.rmtree(mine)
        shutil.copytree(other, mine)
    capsys.readouterr()
    code = bench(name, image_folder, weights[0], tmp_path / "out", **cache)
    assert refused(capsys, code, "is of other weights", "remove that folder") and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["linear", "semisup"])
def test_a_directory_of_another_checkpoint_or_other_data(image_folder, weights, tmp_path, capsys, name):
    out = tmp_path / "out"
    assert bench(name, image_folder, weights[0], out) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert refused(capsys, bench(name, image_folder, weights[1], out), out, "RUN.WEIGHTS", "another directory")
    shutil.copytree(image_folder, tmp_path / "data")
    (tmp_path / "data" / "train" / "digit 0" / "000.jpg").unlink()
    assert refused(capsys, bench(name, tmp_path / "data", weights[0], out), out, "RUN.DATA", "another directory")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != ".lock"} == {
        path: content for path, content in before.items() if path.name != ".lock"
    }


def test_a_list_of_labels_that_has_changed(image_folder, weights, tmp_path, capsys):
    labels, out = tmp_path / "list.txt", tmp_path / "out"
    names = [f"digit {k}/{i:03d}.jpg\n" for k in range(4) for i in range(5)]
    labels.write_text("".join(names))
    assert bench("semisup", image_folder, weights[0], out, **{"LABELS.LIST": labels}) == 0
    capsys.readouterr()
    labels.write_text("".join(names[1:]))
    code = bench("semisup", image_folder, weights[0], out, **{"LABELS.LIST": labels})
    assert refused(capsys, code, out / "seed_0" / "labels.txt", "holds other names")
    assert (out / "seed_0" / "labels.txt").read_text() == "".join(names)


def test_a_batch_too_small_for_its_batch_norm(image_folder, weights, tmp_path, capsys):
    code = bench("semisup", image_folder, weights[0], tmp_path / "out", **{"TRAIN.BATCH_SIZE": 1})
    assert refused(capsys, code, "global batch of 1", "at least 2 (batch norm)") and not (tmp_path / "out").exists()
