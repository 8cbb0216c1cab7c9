"""Preflight's warnings and faults, the proxy subset, the schedule, and the proof of the backbone."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.detection import preflight
from benchmarks.detection.data import stratified
from benchmarks.detection.framework import recipe_name, resolve_schedule
from benchmarks.detection.weights import prove
from sslight.core.errors import InputError

RECIPE = {
    "batch": 16,
    "lr": 0.02,
    "max_iter": 90000,
    "steps": [60000, 80000],
    "warmup": 1000,
    "norm": "SyncBN",
    "mean": [123.675, 116.28, 103.53],
    "std": [58.395, 57.12, 57.375],
    "color_order": "RGB",
    "mask": True,
}
PREPROCESS = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "color_order": "RGB"}


def settings(**solver):
    values = {"IMS_PER_BATCH": 0, "BASE_LR": 0.0, "MAX_ITER": 0, "STEPS": [], "WARMUP_ITERS": -1, **solver}
    return SimpleNamespace(SOLVER=SimpleNamespace(**values))


def test_the_schedule_is_the_recipes_unless_settings_change_it():
    published = {key: RECIPE[key] for key in ("batch", "lr", "max_iter", "steps", "warmup")}
    assert resolve_schedule(RECIPE, settings(), False) == published
    assert resolve_schedule(RECIPE, settings(IMS_PER_BATCH=8), False)["lr"] == 0.02
    assert resolve_schedule(RECIPE, settings(IMS_PER_BATCH=8), True)["lr"] == pytest.approx(0.01)
    assert resolve_schedule(RECIPE, settings(IMS_PER_BATCH=8, BASE_LR=0.5), True)["lr"] == 0.5
    short = resolve_schedule(RECIPE, settings(MAX_ITER=9000), False)
    assert short["steps"] == [6000, 8000] and short["warmup"] == 100


def test_warnings_say_what_to_change(monkeypatch):
    schedule = resolve_schedule(RECIPE, settings(), False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "each of 8 CPU processes is plain BN over its 2 images" in next(preflight.solver(RECIPE, schedule, 8))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert list(preflight.solver(RECIPE, schedule, 8)) == []
    assert "SyncBN" in next(preflight.solver(RECIPE, schedule, 1))
    halved = next(preflight.solver(RECIPE, {**schedule, "batch": 8}, 8))
    assert "0.01" in halved and "--scale-lr" in halved
    late = next(preflight.solver(RECIPE, {**schedule, "steps": [60000, 95000]}, 8))
    assert "95000" in late and "SOLVER.STEPS" in late
    with pytest.raises(InputError, match="do not rise"):
        list(preflight.solver(RECIPE, {**schedule, "steps": [8, 6]}, 8))
    assert list(preflight.preprocessing(RECIPE, PREPROCESS)) == []
    half = {**PREPROCESS, "mean": [0.5] * 3, "color_order": "BGR"}
    assert ["BGR" in line or "127.5" in line for line in preflight.preprocessing(RECIPE, half)] == [True, True]


def test_degenerate_shapes_are_counted():
    content = {
        "images": [{"id": 1, "width": 50, "height": 40}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 0, 0, 5]},
            {"id": 2, "image_id": 1, "category_id": 1, "bbox": [60, 0, 5, 5]},
            {"id": 3, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "segmentation": [[1, 1, 2, 2]]},
        ],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }
    lines = list(preflight.shapes(SimpleNamespace(json="x.json", content=content)))
    assert [line.split(" has ")[1].split(":")[0] for line in lines[:3]] == [
        "1 boxes smaller than a pixel",
        "1 boxes outside their image",
        "1 polygons of fewer than 3 points",
    ]
    assert len(lines) == 4 and "(b)" in lines[3]


BOX = {"category_id": 1, "bbox": [5.0, 5.0, 9.0, 9.0], "iscrowd": 0}


def split_of(*objects, side=60, images=4):
    """A split with objects that differ from a good one in what is given, shared out over its images."""
    return SimpleNamespace(
        json="x.json",
        content={
            "images": [{"id": k, "width": side, "height": side} for k in range(images)],
            "annotations": [{"id": k + 1, "image_id": k % images, **BOX, **entry} for k, entry in enumerate(objects)],
        },
    )


def crowds(annotation, image):
    return "crowds" if annotation["iscrowd"] else ""


def test_what_remains_to_train_on_is_counted():
    crowd = {"iscrowd": 1}
    assert preflight.trainable(split_of({}, {}, {}, crowd), crowds, 2) == ("3 of 4 objects (1 crowds)", [])
    words, lines = preflight.trainable(split_of({}, {}, crowd, crowd, crowd), crowds, 2)
    assert words == "2 of 5 objects (3 crowds)" and "only 2 of 5 objects (3 crowds) of x.json" in lines[0]
    assert "in 2 images for batches of 4" in preflight.trainable(split_of({}, {}), crowds, 4)[1][0]
    with pytest.raises(InputError, match="no object of x.json would be trained on: of 2, 2 crowds"):
        preflight.trainable(split_of(crowd, crowd), crowds, 2)
    preflight.countable(split_of({}, crowd))
    with pytest.raises(InputError, match="all 2 objects of x.json are crowds"):
        preflight.countable(split_of(crowd, crowd))


def test_relative_units_are_recognised():
    small = {"bbox": [0.1, 0.2, 0.5, 0.8]}
    with pytest.raises(InputError, match="boxes of x.json are in relative units .* of up to 60x60 pixels.: multiply"):
        preflight.absolute(split_of(small, {"bbox": [0.0, 0.0, 1.0, 1.0]}), masks=False)
    preflight.absolute(split_of(small, {}), masks=False)
    preflight.absolute(split_of(small, side=2), masks=False)
    relative = {"segmentation": [[0.1, 0.1, 0.9, 0.1, 0.9, 0.9]]}
    preflight.absolute(split_of(relative), masks=False)
    with pytest.raises(InputError, match="polygons of x.json are in relative units"):
        preflight.absolute(split_of(relative), masks=True)


def test_a_proxy_part_keeps_every_categorys_share():
    rng = np.random.default_rng(0)
    shares = [0.5, 0.3, 0.15, 0.04, 0.01]
    content = {"images": [{"id": 7 * i} for i in range(1000)], "annotations": []}
    for image in content["images"]:
        for category in set(rng.choice(5, size=rng.integers(0, 4), p=shares).tolist()):
            content["annotations"].append({"image_id": image["id"], "category_id": category})
    chosen = stratified(content, 100)
    assert len(chosen) == 100 and chosen == stratified(content, 100)
    whole = Counter(a["category_id"] for a in content["annotations"])
    part = Counter(a["category_id"] for a in content["annotations"] if a["image_id"] in chosen)
    wanted = {category: whole[category] / sum(whole.values()) for category in whole}
    for category in whole:  # a plain random tenth leaves the rarest class out in one of five draws
        assert part[category] / sum(part.values()) == pytest.approx(wanted[category], rel=0.5, abs=0.01)
        assert part[category] > 0
    assert len(stratified(content, 990)) == 990


def test_the_proof_lists_what_differs():
    file = {"conv.weight": torch.ones(2), "bn.weight": torch.ones(3), "last.weight": torch.zeros(4)}
    assert prove({**file, "bn.num_batches_tracked": torch.tensor(0)}, file, "x.pth") == 3
    assert prove({**file, "attn.rel_pos_h": torch.ones(1)}, file, "x.pth", new=(".rel_pos_",)) == 3
    wrong = {"conv.weight": torch.ones(2) + 1e-7, "bn.weight": torch.ones(5), "extra.weight": torch.ones(1)}
    with pytest.raises(InputError) as error:
        prove(wrong, file, "x.pth")
    for words in (
        "conv.weight has other values",
        "bn.weight has shape [5], in the file [3]",
        "last.weight is not in the backbone",
        "extra.weight is not in the file",
        "x.pth",
    ):
        assert words in str(error.value)


def test_the_published_forms_are_the_default_recipes():
    assert recipe_name("mmdet", "det", "mobilenetv2_100", None, "1x") == "faster_rcnn_mobilenetv2_p4p6_1x"
    assert recipe_name("mmdet", "seg", "resnet34", None, "2x") == "mask_rcnn_r34_fpn_2x"
    assert recipe_name("detectron2", "seg", "vit_tiny_patch16_224", None, "1x") == "mask_rcnn_vit_tiny_vitdet_1x"
    with pytest.raises(InputError, match="for resnet18 there is: mask_rcnn_r18_fpn_1x, mask_rcnn_r18_fpn_2x"):
        recipe_name("mmdet", "seg", "resnet18", "c4", "1x")
    with pytest.raises(InputError, match="--config"):
        recipe_name("mmdet", "seg", "efficientnet_b0", None, "1x")
