"""What a detector's file records of its images and strides goes into the backbone file, or is refused."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from fvcore.common.config import CfgNode

from convert.convert_ckpt import convert
from convert.reader import read_checkpoint, read_content
from convert.targets import rename
from sslight.core.errors import InputError
from tests.convert import family_files
from tests.convert.own_networks import Own, timm_own

CAFFE = [103.53, 116.28, 123.675]  # of BGR
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
MM_CONFIG = """\
auto_scale_lr = dict(base_batch_size=16, enable=False)
model = dict(
    backbone=dict(
        depth={depth},
        style='{style}',
        type='ResNet'{more}),
    data_preprocessor=dict(
        bgr_to_rgb={turn},
        mean=[
            103.53,
            116.28,
            123.675,
        ],
        std=[
            1.0,
            1.0,
            1.0,
        ],
        type='DetDataPreprocessor'),
    type='FasterRCNN')
"""


def detectron2_detector(arch, pixels=(CAFFE, [1.0, 1.0, 1.0]), **content):
    """A detector's file in detectron2's names, and the backbone's own network."""
    own = timm_own(arch)
    body = rename(read_content(family_files.sslight(own), "run.pth"), "detectron2").tensors
    buffers = {
        f"pixel_{name}": torch.tensor(values).view(3, 1, 1)
        for name, values in zip(("mean", "std"), pixels or (), strict=False)
    }
    heads = {"proposal_generator.rpn_head.conv.weight": torch.ones(2), "roi_heads.box_head.fc1.weight": torch.ones(2)}
    return {"model": {**body, **heads, **buffers}, "iteration": 9, **content}, own


def mmdet_detector(arch, text):
    own = timm_own(arch)
    body = rename(read_content(family_files.sslight(own), "run.pth"), "mmdet").tensors
    state = {**{f"backbone.{key}": value for key, value in body.items()}, "rpn_head.conv.weight": torch.ones(2)}
    return {"meta": {"cfg": text}, "state_dict": state}, own


def read(content):
    return read_content(content, "detector.pth", from_detector=True)


def mm_text(depth=18, style="pytorch", turn="False", more=""):
    return MM_CONFIG.format(depth=depth, style=style, turn=turn, more=more)


@pytest.mark.parametrize(
    "content",
    [lambda: detectron2_detector("resnet18"), lambda: mmdet_detector("resnet18", mm_text())],
    ids=["detectron2", "mmdet"],
)
def test_a_caffe_style_detector_is_carried(content):
    checkpoint = read(content()[0])
    assert checkpoint.preprocess["color_order"] == "BGR" and "preprocess" not in checkpoint.assumed
    assert checkpoint.preprocess["mean"] == pytest.approx(IMAGENET["mean"][::-1], abs=1e-6)
    assert checkpoint.preprocess["std"] == pytest.approx([1 / 255] * 3, abs=1e-9)


@pytest.mark.parametrize("order", [1, -1])
def test_the_colour_order_is_seen_from_the_pixel_means(order):
    content, _ = detectron2_detector("resnet18", (CAFFE[::order], [57.375, 57.12, 58.395][::order]))
    checkpoint = read(content)
    assert checkpoint.preprocess["color_order"] == ("BGR" if order == 1 else "RGB") and not checkpoint.assumed
    content, _ = detectron2_detector("resnet18", ([90.0, 100.0, 110.0][::order], [50.0] * 3))
    checkpoint = read(content)
    assert checkpoint.preprocess["color_order"] == ("BGR" if order == 1 else "RGB")
    assert "colour order is not recorded in the file" in checkpoint.assumed["color_order"]
    recorded, _ = detectron2_detector(
        "resnet18", ([90.0, 100.0, 110.0], [50.0] * 3), cfg=CfgNode({"INPUT": {"FORMAT": "RGB"}})
    )
    assert read(recorded).preprocess["color_order"] == "RGB" and not read(recorded).assumed
    newer, _ = detectron2_detector(
        "resnet18",
        None,
        cfg=CfgNode({"INPUT": {"FORMAT": "BGR"}, "MODEL": {"PIXEL_MEAN": CAFFE, "PIXEL_STD": [1.0, 1.0, 1.0]}}),
    )
    found, expected = read(newer).preprocess, read(detectron2_detector("resnet18")[0]).preprocess
    assert found["mean"] == pytest.approx(expected["mean"]) and found["color_order"] == expected["color_order"] == "BGR"


def test_older_openmmlab_files_and_classifiers_are_read_alike():
    old = "img_norm_cfg = dict(\n    mean=[103.53, 116.28, 123.675], std=[57.375, 57.12, 58.395], to_rgb=False)\n"
    content, _ = mmdet_detector("resnet18", "")
    content["meta"] = {"config": old}
    assert read(content).preprocess["color_order"] == "BGR"
    own = timm_own("resnet18")
    classifier = family_files.openmmlab(Own(own.state, own.pooled, own.arch))
    classifier["meta"]["cfg"] = (
        "data_preprocessor = dict(mean=[127.5] * 3, std=[1])\n"
        "model = dict(data_preprocessor=dict(mean=[127.5, 127.5, 127.5], std=(63.75, 63.75, 63.75), to_rgb=True))\n"
    )
    read_back = read_content(classifier, "epoch_200.pth")
    assert read_back.preprocess == {"mean": [0.5] * 3, "std": [0.25] * 3, "color_order": "RGB", "size": 224}


def test_what_is_not_recorded_is_named(tmp_path):
    content, _ = detectron2_detector("resnet18", None)
    torch.save(content, tmp_path / "model_final.pth")
    report = convert(
        tmp_path / "model_final.pth", "timm", tmp_path / "out.safetensors", from_detector=True, verify=False
    )
    assert "ImageNet mean and std, RGB assumed; detectron2's default is BGR" in report["assumed"]["preprocess"]
    assert read_checkpoint(tmp_path / "out.safetensors").assumed == report["assumed"]


def test_strides_that_timm_has_not_are_refused():
    """Only bottlenecks have a 1x1 convolution that could stride."""
    with pytest.raises(InputError, match=r"style='caffe'.* timm's ResNet"):
        read(mmdet_detector("resnet50", mm_text(50, "caffe"))[0])
    assert not read(mmdet_detector("resnet50", mm_text(50))[0]).assumed
    assert not read(mmdet_detector("resnet18", mm_text(18, "caffe"))[0]).assumed
    with pytest.raises(InputError, match=r"dilations=\(1, 1, 1, 2\)"):
        read(mmdet_detector("resnet18", mm_text(more=", strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2)"))[0])
    for recorded in (True, False, None):
        resnets = {} if recorded is None else {"STRIDE_IN_1X1": recorded}
        content, _ = detectron2_detector("resnet50", cfg=CfgNode({"MODEL": {"RESNETS": resnets}}))
        if recorded:
            with pytest.raises(InputError, match="STRIDE_IN_1X1 True"):
                read(content)
        else:
            assert ("strides" in read(content).assumed) == (recorded is None)


def test_snippets_feed_the_frameworks_as_the_detector_was_fed(tmp_path):
    torch.save(detectron2_detector("resnet18")[0], tmp_path / "model_final.pth")
    for to in ("mmdet", "detectron2"):
        convert(tmp_path / "model_final.pth", to, tmp_path / f"{to}.pth", from_detector=True, verify=False)
    written = yaml.safe_load((tmp_path / "detectron2.yaml").read_text())
    assert written["INPUT"]["FORMAT"] == "BGR" and written["MODEL"]["PIXEL_STD"] == [1.0, 1.0, 1.0]
    assert written["MODEL"]["PIXEL_MEAN"] == pytest.approx(CAFFE)
    assert (
        "mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0],\n        bgr_to_rgb=False"
        in (tmp_path / "mmdet.py").read_text()
    )


def test_the_transform_of_a_snippet_turns_the_channels(tmp_path):
    from PIL import Image

    content, own = detectron2_detector("resnet18")
    torch.save(content, tmp_path / "model_final.pth")
    convert(tmp_path / "model_final.pth", "timm", tmp_path / "out.safetensors", from_detector=True, verify=False)
    names: dict = {}
    exec(compile((tmp_path / "out.py").read_text(), "snippet", "exec"), names)
    found = names["transform"](Image.new("RGB", (300, 300), (10, 20, 200)))
    assert found[:, 0, 0].tolist() == pytest.approx([200 - CAFFE[0], 20 - CAFFE[1], 10 - CAFFE[2]], abs=1e-3)
    header = read_checkpoint(tmp_path / "out.safetensors").preprocess
    assert json.loads(json.dumps(header)) == header
