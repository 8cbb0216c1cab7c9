"""Differences of two results over the same images: against closed forms, and intervals that ignore the pairs."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.classification.metrics import accuracy_metrics, read_hits, write_predictions
from benchmarks.detection.evaluation import bootstrap, evaluate
from benchmarks.report import paired, report
from sslight.core.errors import InputError
from sslight.core.result import write_result

LABELS = np.zeros(400, dtype=np.int64)


def ranked(right: np.ndarray) -> np.ndarray:
    """Predictions [N, 2] that name class 0 first where `right` and second elsewhere."""
    return np.where(right[:, None], [0, 1], [1, 0])


def linear(folder, runs, keep=True, **change):
    metrics = accuracy_metrics(runs, LABELS)
    if keep:
        write_predictions(folder, {"": runs}, LABELS)
    checkpoint = {"path": str(folder), "sha256": folder.name, "arch": "resnet18", "method": "dino", "family": "sslight"}
    return write_result(
        folder,
        **{
            "benchmark": "linear",
            "protocol": "linear_cnn",
            "checkpoint": checkpoint | change.pop("checkpoint", {}),
            "data": {"path": "d", "counts": {"train": 9, "val": len(LABELS)}, "fingerprint": "f"},
            "metrics": metrics,
            "per_seed": [{"seed": i} for i in range(len(runs))],
            "config": {},
            "seconds": 1.0,
        }
        | change,
    )


@pytest.fixture
def right():
    """Two networks that agree on most images: 70% and 74%, of which 40 images tell them apart."""
    a = np.arange(400) < 280
    b = a.copy()
    b[:12], b[280:308] = False, True
    return a, b


def top1(found):
    return next(row for row in found if row.metric == "top1")


def test_the_interval_is_that_of_the_discordant_pairs(tmp_path, right):
    """McNemar's normal interval: 100 (b - c +- 1.96 sqrt(b + c - (b - c)^2 / n)) / n, to the bootstrap's 0.35."""
    for name, hits in zip("ab", right, strict=True):
        linear(tmp_path / name, [ranked(hits)])
    rows, entries, faults = paired.differences(tmp_path / "b", tmp_path / "a")
    row, n = top1(rows), len(LABELS)
    assert (row.difference, row.how, len(entries), faults) == (pytest.approx(4.0), "paired over 400 images", 2, [])
    half = 1.96 * np.sqrt(40 - 16**2 / n)
    assert row.difference_interval == pytest.approx([100 * (16 - half) / n, 100 * (16 + half) / n], abs=0.35)
    assert row.verdict == "higher"  # the two intervals combined would say nothing: +- 6.3
    (tmp_path / "a" / "predictions.npz").unlink()
    row = top1(paired.differences(tmp_path / "b", tmp_path / "a")[0])
    assert row.how == "the two intervals combined" and row.verdict == "no clear difference"


def test_predictions_of_another_result_are_not_paired(tmp_path, right):
    a, b = right
    linear(tmp_path / "a", [ranked(a)])
    linear(tmp_path / "b", [ranked(b)])
    write_predictions(tmp_path / "b", {"": [ranked(a)]}, LABELS)
    assert top1(paired.differences(tmp_path / "b", tmp_path / "a")[0]).how == "the two intervals combined"
    (tmp_path / "b" / "predictions.npz").write_bytes(b"PK not one")
    assert top1(paired.differences(tmp_path / "b", tmp_path / "a")[0]).how == "the two intervals combined"


def test_several_seeds_widen_the_interval(right):
    """Seeds of a side are drawn, too: with runs at 60% and 80%, half a side's draws differ by 10 points."""
    a, _ = right
    runs = np.stack([np.arange(400) < 240, np.arange(400) < 320]).astype(float)
    narrow = np.subtract(*paired.interval(a[None].astype(float), a[None].astype(float) * 0)[::-1])
    wide = np.subtract(*paired.interval(runs, a[None].astype(float) * 0)[::-1])
    assert wide > narrow + 8


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"protocol": "linear_dino"}, "protocol"),
        ({"config": {"SOLVER": {"TOTAL_EPOCHS": 3}}}, "config SOLVER.TOTAL_EPOCHS"),
        ({"data": {"path": "e", "counts": {"val": 400}, "fingerprint": "g"}}, "data"),
    ],
)
def test_unlike_results_are_flagged_and_get_no_difference(tmp_path, right, change, named):
    linear(tmp_path / "a", [ranked(right[0])])
    linear(tmp_path / "b", [ranked(right[1])], **change)
    row = top1(paired.differences(tmp_path / "b", tmp_path / "a")[0])
    assert row.differs == [named] and row.difference is None


def test_architectures_are_what_is_compared(tmp_path, right):
    linear(tmp_path / "a", [ranked(right[0])])
    linear(tmp_path / "b", [ranked(right[1])], checkpoint={"arch": "mobilenetv2_100"})
    assert top1(paired.differences(tmp_path / "b", tmp_path / "a")[0]).difference == pytest.approx(4.0)


def test_nothing_in_common_is_one_clear_line(tmp_path, right):
    linear(tmp_path / "a", [ranked(right[0])])
    linear(tmp_path / "b", [ranked(right[1])], benchmark="knn")
    with pytest.raises(InputError, match="no benchmark in common"):
        paired.differences(tmp_path / "a", tmp_path / "b")


def test_hits_by_metric_name(tmp_path):
    write_predictions(tmp_path, {"": [np.array([[1, 0]])], "_k10": [np.array([[0, 1]])]}, np.array([0]))
    assert [read_hits(tmp_path, name).tolist() for name in ("top1", "top2", "top1_k10")] == [[[0.0]], [[1.0]], [[1.0]]]
    assert read_hits(tmp_path, "mean_class") is None and read_hits(tmp_path, "top1_k20") is None


def detections(truth: dict, rng: np.random.Generator, found: float) -> list[dict]:
    """Every object with probability `found`, its box moved by up to 3 pixels."""
    return [
        {
            "image_id": o["image_id"],
            "category_id": o["category_id"],
            "score": float(rng.random()),
            "bbox": [float(x) for x in np.add(o["bbox"], rng.integers(-3, 4, 4))],
        }
        for o in truth["annotations"]
        if rng.random() < found
    ]


def coco(folder, truth_file, truth, seen):
    numbers = evaluate(truth, seen, "box").numbers
    kept = {f"box_{name}": value for name, value in numbers.items() if np.isfinite(value)}
    intervals = bootstrap([evaluate(truth, seen, "box")], 50)
    folder.mkdir()
    (folder / "box.json").write_text(json.dumps(seen))
    write_result(
        folder,
        benchmark="coco",
        protocol="p",
        framework="mmdet",
        task="det",
        checkpoint={
            "path": folder.name,
            "sha256": folder.name,
            "arch": "resnet18",
            "method": "dino",
            "family": "sslight",
        },
        data={"path": "d", "counts": {"train": 1, "val": len(truth["images"])}, "fingerprint": "f"},
        metrics={name: {"value": value, "interval": intervals.get(name[4:])} for name, value in kept.items()},
        per_seed=[{"seed": 0, **kept}],
        config={"settings": {"DATA": {"VAL_JSON": str(truth_file)}}},
        seconds=1.0,
        detections=[{"box": "box.json"}],
    )


def test_detections_are_paired_over_images(tmp_path, capsys):
    """A copy of a detector differs by nothing; one 2 px off, within less than the intervals combined."""
    rng = np.random.default_rng(0)
    truth = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 100, "height": 100} for i in range(30)],
        "categories": [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}],
        "annotations": [
            {
                "id": i + 1,
                "image_id": i % 30,
                "category_id": 1 + i % 2,
                "iscrowd": 0,
                "area": 1600,
                "bbox": [*map(int, rng.integers(5, 50, 2)), 40, 40],
            }
            for i in range(90)
        ],
    }
    (tmp_path / "val.json").write_text(json.dumps(truth))
    seen = detections(truth, rng, 0.9)
    coco(tmp_path / "a", tmp_path / "val.json", truth, seen)
    coco(tmp_path / "same", tmp_path / "val.json", truth, seen)
    coco(
        tmp_path / "worse",
        tmp_path / "val.json",
        truth,
        [{**entry, "bbox": [entry["bbox"][0] + 2, *entry["bbox"][1:]]} for entry in seen],
    )
    rows = {row.metric: row for row in paired.differences(tmp_path / "a", tmp_path / "same")[0]}
    assert rows["box_AP"].difference_interval == [0, 0] and rows["box_AP"].how == "paired over 30 images"
    assert rows["box_AP75"].difference_interval is None
    both = {}
    for kept in (True, False):
        if not kept:
            (tmp_path / "val.json").unlink()
        both[kept] = {row.metric: row for row in paired.differences(tmp_path / "a", tmp_path / "worse")[0]}["box_AP"]
    low, high = both[True].difference_interval
    assert 0 < low < both[True].difference < high
    assert high - low < np.subtract(*both[False].difference_interval[::-1])
    assert both[False].how == "the two intervals combined"
    assert (
        report.main(
            [
                "--diff",
                str(tmp_path / "a"),
                str(tmp_path / "worse"),
                "-o",
                str(tmp_path / "diff.html"),
                str(tmp_path / "diff.md"),
            ]
        )
        == 0
    )
    assert "Against" in (tmp_path / "diff.html").read_text() and "wrote" in capsys.readouterr().out
