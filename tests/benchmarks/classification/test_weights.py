"""The network under test is fed as its checkpoint says and built as the user says, and the result tells both."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.classification import knn
from benchmarks.classification.features import entry_facts, prepare
from benchmarks.classification.weights import load_subject
from benchmarks.evaluation import main
from convert.convert_ckpt import convert
from sslight.core.config import load_config
from sslight.core.errors import InputError
from sslight.core.result import read_result
from tests.convert.own_networks import timm_own
from tests.convert.test_preprocess import CAFFE, detectron2_detector


def configured(weights, *overrides):
    return load_config(knn.EVALUATION.settings, None, ["WEIGHTS", str(weights), *overrides])


def relative(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


def test_a_detectors_backbone_is_fed_as_in_the_detector(tmp_path):
    """The detector subtracts BGR means from 0..255 pixels; ours must give its backbone's features of the same image."""
    content, own = detectron2_detector("resnet18")
    torch.save(content, tmp_path / "model_final.pth")
    convert(tmp_path / "model_final.pth", "timm", tmp_path / "backbone.safetensors", from_detector=True, verify=False)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)  # RGB
    pixels[..., 0] //= 2  # colours, so that their order shows
    bgr = torch.from_numpy(pixels[..., ::-1].astype(np.float32) - np.array(CAFFE, np.float32)).permute(0, 3, 1, 2)
    expected = own.pooled(bgr)
    subject = load_subject(configured(tmp_path / "backbone.safetensors"))
    ready = prepare(torch.from_numpy(pixels).permute(0, 3, 1, 2), subject.preprocess, torch.device("cpu"))
    assert relative(ready, bgr) < 1e-5
    with torch.no_grad():
        assert relative(subject.backbone.eval()(ready), expected) < 1e-5


def test_means_of_the_configuration_are_of_rgb(tmp_path):
    torch.save(detectron2_detector("resnet18")[0], tmp_path / "model_final.pth")
    convert(tmp_path / "model_final.pth", "timm", tmp_path / "backbone.safetensors", from_detector=True, verify=False)
    subject = load_subject(configured(tmp_path / "backbone.safetensors", "DATA.MEAN", "[0.1, 0.2, 0.3]"))
    assert subject.mean == [0.3, 0.2, 0.1] and subject.bgr


def test_heads_are_an_option_and_else_a_named_assumption(tmp_path, capsys):
    torch.save(timm_own("vit_tiny_patch16_224", 64, img_size=64, num_heads=12).state, tmp_path / "vit.pth")
    assumed = load_subject(configured(tmp_path / "vit.pth"))
    said = (
        "heads are not recorded in the file: 3 assumed (timm's vit_tiny_patch16_224); MoCo v3's and MAE-Lite's have 12"
    )
    assert said in assumed.about["assumed"]
    assert f"warning: {tmp_path / 'vit.pth'}: {said}: MODEL.OPTIONS num_heads=12\n" in capsys.readouterr().err
    told = load_subject(configured(tmp_path / "vit.pth", "MODEL.OPTIONS", "num_heads=12"))
    assert told.backbone.blocks[0].attn.num_heads == 12 and assumed.backbone.blocks[0].attn.num_heads == 3
    assert said not in told.about["assumed"] and told.about["options"]["num_heads"] == 12
    random = load_subject(configured("random", "MODEL.BACKBONE_ARCH", "vit_tiny", "MODEL.OPTIONS", "num_heads=12"))
    assert random.backbone.blocks[0].attn.num_heads == 12
    with pytest.raises(InputError, match="no build option 'head'"):
        load_subject(configured("random", "MODEL.BACKBONE_ARCH", "vit_tiny", "MODEL.OPTIONS", "head=12"))


def test_features_of_other_heads_are_not_found_in_the_cache(tmp_path):
    class Split:
        class source:  # noqa: N801
            fingerprint = staticmethod(lambda: "x")

        __len__ = lambda self: 1  # noqa: E731

    facts = []
    for words in ("", "num_heads=12"):
        cfg = configured("random", "MODEL.BACKBONE_ARCH", "vit_tiny", "MODEL.OPTIONS", words)
        facts.append(entry_facts(cfg, load_subject(cfg), Split(), "pooled", False))
    assert facts[0] != facts[1] and facts[0]["weights"] == facts[1]["weights"]


def test_the_result_names_what_was_assumed(tmp_path, image_folder):
    torch.save(timm_own("vit_tiny_patch16_224", 64, img_size=64).state, tmp_path / "vit.pth")
    for words, assumed in (("", True), ("num_heads=12", False)):
        out = tmp_path / f"out{words}"
        assert (
            main(
                knn.EVALUATION,
                [
                    "WEIGHTS",
                    str(tmp_path / "vit.pth"),
                    "DATA.PATH_TO_DATA_DIR",
                    str(image_folder),
                    "OUTPUT_DIR",
                    str(out),
                    "DATA.RESIZE",
                    "36",
                    "DATA.SIZE",
                    "32",
                    "DATA.WORKERS",
                    "0",
                    "MODEL.OPTIONS",
                    words,
                ],
            )
            == 0
        )
        checkpoint = read_result(out)["checkpoint"]
        assert any("3 assumed" in text for text in checkpoint["assumed"]) == assumed
        assert checkpoint["options"].get("num_heads") == (None if assumed else 12)
