"""Accuracies, confusions and intervals against scikit-learn, the binomial law and plain counting."""

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, top_k_accuracy_score

from benchmarks.classification.metrics import accuracy_metrics, confusions, detail, interval, metric, per_class
from pretrain.neighbours import rank_classes


@pytest.fixture(scope="module")
def predictions():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 8, 500)
    scores = rng.normal(size=(500, 8))
    scores[np.arange(500), labels] += 1
    return labels, scores, rank_classes(torch.from_numpy(scores)).numpy()


def test_accuracies_equal_scikit_learns(predictions):
    labels, scores, ranked = predictions
    metrics = accuracy_metrics([ranked], labels)
    for name, k in (("top1", 1), ("top5", 5)):
        assert metrics[name]["value"] == pytest.approx(100 * top_k_accuracy_score(labels, scores, k=k), abs=1e-9)
    expected = 100 * balanced_accuracy_score(labels, ranked[:, 0])
    assert metrics["mean_class"]["value"] == pytest.approx(expected, abs=1e-9)


def test_per_class_and_confusions_equal_the_confusion_matrix(predictions):
    labels, _, ranked = predictions
    matrix = confusion_matrix(labels, ranked[:, 0])
    for k, value in per_class(ranked, labels).items():
        assert value == pytest.approx(100 * matrix[k, k] / matrix[k].sum())
    np.fill_diagonal(matrix, 0)
    pairs = confusions(ranked, labels, most=5)
    assert [n for _, _, n in pairs] == sorted(matrix.ravel().tolist(), reverse=True)[:5]
    assert all(matrix[a, b] == n for a, b, n in pairs)
    named = detail(ranked, labels, list("abcdefgh"))
    assert set(named["per_class"]) == set("abcdefgh") and named["confusions"][0]["count"] == matrix.max()


def test_ties_between_scores_go_to_the_lowest_class():
    assert rank_classes(torch.tensor([[1.0, 3.0, 3.0, 1.0]])).tolist() == [[1, 2, 0, 3]]


@pytest.mark.parametrize("p, n", [(0.3, 2000), (0.9, 400)])
def test_the_interval_of_one_run_has_the_binomial_width(p, n):
    values = (np.arange(n) < p * n).astype(float)
    low, high = interval(values, draws=4000)
    width = 2 * 1.96 * (p * (1 - p) / n) ** 0.5
    assert high - low == pytest.approx(width, rel=0.08)  # 4,000 draws: the percentiles' own error is about 2%
    assert low < p < high


def test_disagreeing_runs_widen_the_interval():
    rng = np.random.default_rng(0)
    same = [(rng.uniform(size=2000) < 0.5).astype(float)] * 3
    apart = [(rng.uniform(size=2000) < p).astype(float) for p in (0.3, 0.5, 0.7)]
    widths = [np.diff(metric(runs)["interval"])[0] for runs in (same, apart)]
    assert widths[1] > 3 * widths[0]
    found = metric(apart)
    assert found["std"] == pytest.approx(np.std([100 * run.mean() for run in apart], ddof=1))
    assert found["value"] == pytest.approx(100 * np.mean(apart))


def test_a_perfect_classifier_keeps_its_value_inside_the_interval():
    assert metric([np.ones(10)]) == {"value": 100.0, "interval": [100.0, 100.0]}
