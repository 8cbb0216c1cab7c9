"""Logistic regression against scikit-learn on the same features."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from benchmarks.classification import logistic
from benchmarks.classification.logistic import Problem, Standard, path, scores


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    return data.data.astype(np.float32), data.target


@pytest.mark.parametrize("penalty", [1e-1, 1e-2, 1e-3])
def test_equals_scikit_learn(digits, penalty, monkeypatch):
    monkeypatch.setattr(logistic, "BLOCK", 500)  # several blocks
    rows, labels = digits
    fitted, held = np.arange(0, 1797, 2), np.arange(1, 1797, 2)
    standard = Standard.of(rows, fitted)
    problem = Problem(rows, labels, 10, standard, fitted)
    weight, objective, steps = problem.solve(penalty, torch.zeros(10, 65), steps=500)
    assert steps < 500

    x = (rows - rows[fitted].mean(0)) / np.where(rows[fitted].std(0) > 0, rows[fitted].std(0), 1)
    other = LogisticRegression(C=1 / (penalty * len(fitted)), tol=1e-6, max_iter=2000).fit(x[fitted], labels[fitted])
    loss = log_loss(labels[fitted], other.predict_proba(x[fitted])) + 0.5 * penalty * np.square(other.coef_).sum()
    assert objective == pytest.approx(loss, abs=1e-4)
    logits = torch.cat(list(scores(rows, weight, standard, held)))
    assert float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels[held]))) == pytest.approx(
        log_loss(labels[held], other.predict_proba(x[held])), abs=1e-2
    )
    accuracy = (logits.argmax(1).numpy() == labels[held]).mean()
    assert accuracy == pytest.approx(other.score(x[held], labels[held]), abs=1e-3 + 1e-9)


def test_gradient_is_the_derivative(digits):
    rows, labels = digits
    problem = Problem(rows, labels, 10, Standard.of(rows))
    weight = torch.randn(10, 65, generator=torch.Generator().manual_seed(0)) * 0.1
    _, gradient = problem.value(weight, 0.3)
    variable = weight.double().requires_grad_(True)
    x = (torch.from_numpy(rows).double() - problem.standard.mean) / problem.standard.std
    loss = torch.nn.functional.cross_entropy(x @ variable[:, :-1].T + variable[:, -1], torch.from_numpy(labels))
    (loss + 0.15 * variable[:, :-1].square().sum()).backward()
    torch.testing.assert_close(gradient.double(), variable.grad, atol=1e-5, rtol=1e-4)


def test_the_path_goes_from_strong_to_weak_and_its_loss_falls(digits):
    rows, labels = digits
    problem = Problem(rows[:400], labels[:400], 10, Standard.of(rows[:400]))
    found = list(path(problem, [1e-3, 1.0, 1e-2], 64, steps=60))
    assert [row[0] for row in found] == [1.0, 1e-2, 1e-3]
    assert found[0][2] > found[1][2] > found[2][2]
