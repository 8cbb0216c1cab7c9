"""The joint probe's start; in-training k-NN against a plain loop over features computed without its code."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from pretrain.backbones import build_backbone
from pretrain.data.sources import open_source
from pretrain.methods import METHODS, build_method
from pretrain.neighbours import knn_top1
from pretrain.settings import DEFAULTS
from pretrain.state import Objective
from sslight.core.config import load_config
from tests.pretrain.tiny import config


@pytest.mark.parametrize("name", METHODS)
def test_the_joint_probe_starts_as_published(name):
    """torch's default for DINO and MoCo, uniform within 1 / sqrt(width); N(0, 0.01) and zero biases for SwAV."""
    torch.manual_seed(0)
    probe = Objective(build_method(config(name)), 200).classifier
    width = probe.in_features
    if name == "swav":
        assert probe.weight.std().item() == pytest.approx(0.01, rel=0.05) and not probe.bias.any()
    else:
        assert 0.99 < probe.weight.abs().max().item() * width**0.5 <= 1
        assert probe.weight.std().item() == pytest.approx((3 * width) ** -0.5, rel=0.05)
        assert 0.9 < probe.bias.abs().max().item() * width**0.5 <= 1


@pytest.mark.parametrize("mode, k", [("loo", 5), ("loo", 100), ("train", 20)])
def test_accuracy_is_a_plain_loops(image_folder, mode, k):
    torch.manual_seed(2)
    backbone = build_backbone("resnet18")
    cfg = load_config(
        DEFAULTS, None, ["VIEWS.GLOBAL_SIZE", "28", "KNN.K", str(k), "DATA.WORKERS", "0", "TRAIN.BATCH_SIZE", "24"]
    )
    picture = transforms.Compose(
        [
            transforms.Resize(32, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(28),
            transforms.ToTensor(),
            transforms.Normalize(cfg.DATA.MEAN, cfg.DATA.STD),
        ]
    )
    rows, labels = {}, {}
    for split in ("train", "val"):
        files = sorted((image_folder / split).glob("*/*.jpg"))
        with torch.no_grad():
            found = backbone.eval()(torch.stack([picture(Image.open(file).convert("RGB")) for file in files])).double()
        rows[split] = (found / found.norm(dim=1, keepdim=True)).numpy()
        labels[split] = [int(file.parent.name[-1]) for file in files]
    bank, right = "val" if mode == "loo" else "train", 0
    for i, query in enumerate(rows["val"]):
        similarity = rows[bank] @ query
        order = [j for j in np.argsort(-similarity, kind="stable") if mode == "train" or j != i][:k]
        votes = np.zeros(4)
        for j in order:
            votes[labels[bank][j]] += np.exp(similarity[j] / 0.07)
        right += votes.argmax() == labels["val"][i]
    backbone.train()
    val, train = (open_source(image_folder, split) for split in ("val", "train"))
    found = knn_top1(backbone, val, train if mode == "train" else None, cfg, torch.device("cpu"))
    assert found == pytest.approx(right / 32, abs=1e-12) and backbone.training
