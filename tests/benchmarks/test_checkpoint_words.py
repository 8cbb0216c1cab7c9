"""Every evaluation takes the same words for a checkpoint, and says which commit of a repository it was."""

from __future__ import annotations

import json

import huggingface_hub
import pytest
from safetensors.torch import save_file

from benchmarks.classification import knn
from benchmarks.classification.weights import load_subject
from benchmarks.deployment.measure import architectures
from benchmarks.detection.weights import find_source, prepare
from benchmarks.suite.parts import find_networks
from sslight.core.config import load_config
from tests.convert.own_networks import timm_own

ARCH, COMMIT = "mobilenetv2_035", "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(params=["folder", "hf:org/net", "hf:org/net@main"])
def word(request, tmp_path, monkeypatch):
    place = tmp_path / "models--org--net" / "snapshots" / COMMIT
    place.mkdir(parents=True)
    (tmp_path / "models--org--net" / "refs").mkdir()
    (tmp_path / "models--org--net" / "refs" / "main").write_text(COMMIT)
    save_file(timm_own(ARCH).state, place / "model.safetensors")
    (place / "config.json").write_text(json.dumps({"architecture": ARCH}))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return str(place) if request.param == "folder" else request.param


def test_every_evaluation_takes_it(word, tmp_path):
    revision = COMMIT if word.startswith("hf:") else None
    about = load_subject(load_config(knn.EVALUATION.settings, None, ["WEIGHTS", word])).about
    assert (about["arch"], about["path"], about.get("revision")) == (ARCH, word, revision)
    assert architectures([word]) == [(ARCH, {})]
    [network] = find_networks([word], None, tmp_path / "out")
    assert (network.arch, network.weights) == (ARCH, word) and network.name in ("net", COMMIT)
    [named] = find_networks([f"mine={word}"], None, tmp_path / "out")
    assert named.name == "mine" and named.weights == word
    source = find_source(word, None, 0, tmp_path / "out")
    described = prepare(word, source, "mmdet", None, tmp_path / "out").checkpoint
    assert (described["path"], described.get("revision"), described["sha256"]) == (word, revision, about["sha256"])
