"""What is compared with what, by how much, and what is flagged instead."""

import math

import numpy as np
import pytest

from benchmarks.report import comparison
from tests.benchmarks.report.report_sets import result, write, write_pair


@pytest.fixture
def pair(tmp_path):
    return write_pair(tmp_path)


def only(folder):
    found = comparison.rows(comparison.load([folder])[0])
    assert len(found) == 1
    return found[0]


def test_difference_and_its_interval(pair):
    """30 [27, 32] against 20 [18, 23]: 10, minus sqrt(3^2 + 3^2), plus sqrt(2^2 + 2^2); exact to 1e-12."""
    row = only(pair)
    assert (row.value, row.base_value, row.difference) == (30, 20, 10)
    assert row.difference_interval == pytest.approx([10 - math.sqrt(18), 10 + math.sqrt(8)], abs=1e-12)
    assert row.verdict == "higher"


def test_difference_interval_agrees_with_a_simulation():
    """Two accuracies from 400 images each: the combined interval covers the true difference in 95% of draws, +- 2.

    2,000 draws have a standard error of 0.5 points; normal intervals of accuracies are themselves off by about 1.
    """
    rng = np.random.default_rng(0)
    p, q, n = 0.35, 0.22, 400

    def measured(share):
        value = rng.binomial(n, share) / n
        half = 1.96 * math.sqrt(value * (1 - value) / n)
        return {"value": value, "interval": [value - half, value + half]}

    covered = 0
    for _ in range(2000):
        low, high = comparison.difference_interval(measured(p), measured(q))
        covered += low <= p - q <= high
    assert 0.93 < covered / 2000 < 0.97


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        ((20.0, [18.0, 22.0]), (30.0, [28.0, 32.0]), "lower"),
        ((21.0, [18.0, 24.0]), (20.0, [17.0, 23.0]), "no clear difference"),
        ((21.0, None), (20.0, [17.0, 23.0]), "no interval"),
    ],
)
def test_verdicts(tmp_path, ours, theirs, verdict):
    for name, (value, interval) in (("a", ours), ("b", theirs)):
        result(tmp_path / name, random=name == "b", metrics={"top1": {"value": value, "interval": interval}})
    assert only(tmp_path).verdict == verdict


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"data": {"path": "data", "counts": {"val": 50}, "fingerprint": "beef"}}, "data"),
        ({"protocol": "knn (proxy 0.1)"}, "protocol"),
        ({"framework": "detectron2"}, "framework"),
        ({"config": {"WEIGHTS": "random", "KNN": {"K": [10, 50]}}}, "config KNN.K"),
        ({"checkpoint": {"arch": "resnet34"}}, "architecture"),
    ],
)
def test_unlike_results_are_flagged_and_get_no_difference(tmp_path, change, named):
    result(tmp_path / "pretrained")
    result(tmp_path / "random", random=True, **change)
    row = only(tmp_path)
    assert row.differs == [named]
    assert row.difference is None and row.difference_interval is None and row.verdict == "not comparable"
    page = write(tmp_path, ".html")
    assert f"differs in {named}" in page and "+10.00" not in page


def test_weights_folders_and_seeds_do_not_forbid_a_comparison(tmp_path):
    for name, seeds in (("a", [0]), ("b", [0, 1])):
        result(
            tmp_path / name,
            random=name == "b",
            config={
                "WEIGHTS": name,
                "OUTPUT_DIR": name,
                "SEEDS": seeds,
                "MODEL": {"BACKBONE_ARCH": name},
                "KNN": {"K": 1},
            },
        )
    assert only(tmp_path).verdict == "higher"


@pytest.mark.parametrize(
    ("theirs", "differs"),
    [("runs/b/weights/random.pth", []), ("b.pth", []), ("SyncBN", ["config framework_config.hooks"])],
)
def test_only_where_files_lie_may_differ_inside_lists_of_settings(tmp_path, theirs, differs):
    """Detection frameworks keep paths of weights deep in their configuration."""
    for name, text in (("a", "runs/a/weights/moco.pth"), ("b", theirs)):
        hooks = [{"type": "Proof", "target": text, "work_dir": name}]
        result(tmp_path / name, random=name == "b", config={"framework_config": {"hooks": hooks}})
    assert only(tmp_path).differs == differs


def test_the_alike_baseline_is_chosen_and_nothing_is_averaged(tmp_path):
    """Two checkpoints and two random networks of other data: each row keeps its own value and its like."""
    for data in ("one", "two"):
        about = {"path": data, "counts": {"val": 5}, "fingerprint": data}
        value = {"one": 40.0, "two": 60.0}[data]
        result(tmp_path / data / "ours", data=about, metrics={"top1": {"value": value, "interval": None}})
        result(
            tmp_path / data / "random",
            random=True,
            data=about,
            metrics={"top1": {"value": value / 2, "interval": None}},
        )
    found = comparison.rows(comparison.load([tmp_path])[0])
    assert [(row.value, row.difference) for row in found] == [(40, 20), (60, 30)]


def test_a_result_alone_and_a_random_network_alone_have_rows(tmp_path):
    result(tmp_path / "ours")
    result(tmp_path / "random", random=True, benchmark="linear")
    assert {row.verdict for row in comparison.rows(comparison.load([tmp_path])[0])} == {"no baseline"}


def test_networks_of_one_label_are_told_apart(tmp_path):
    """By what differs in their paths; by their hashes where the paths are the same."""
    for name, path, sha in (("a", "runs/a/last.pth", "1"), ("b", "runs/b/last.pth", "2")):
        result(tmp_path / name, checkpoint={"path": path, "sha256": sha * 64})
    result(tmp_path / "c", random=True)
    assert [entry.label for entry in comparison.load([tmp_path])[0]] == [
        "swav resnet18 (a)",
        "swav resnet18 (b)",
        "random resnet18",
    ]
    result(tmp_path / "b", checkpoint={"path": "runs/a/last.pth", "sha256": "2" * 64})
    assert [entry.label for entry in comparison.load([tmp_path])[0]][:2] == [
        "swav resnet18 (11111111)",
        "swav resnet18 (22222222)",
    ]
