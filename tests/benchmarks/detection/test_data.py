"""Annotation files: any Unicode encoding, any ids, areas that cannot be true; and what each framework trains on."""

import copy
import json

import cv2
import numpy as np
import pytest
from pycocotools import mask as rle
from pycocotools.coco import COCO

from benchmarks.detection import data as coco_data
from benchmarks.detection.command import DEFAULTS
from benchmarks.detection.data import CROWD, FEW_POINTS, OUTSIDE, TINY, CocoData, object_area, read_annotations
from benchmarks.detection.framework import FRAMEWORKS
from sslight.core.config import load_config
from sslight.core.errors import InputError
from tests.benchmarks.detection.coco_sets import outline, write_set
from tests.benchmarks.detection.coco_tiny import tiny_detectron2, tiny_mmdet


def find(folder) -> CocoData:
    return coco_data.find(load_config(DEFAULTS, None, ["DATA.PATH_TO_DATA_DIR", str(folder)]))


def change(folder, how, split="train"):
    """Rewrite one annotation file; `how` changes its content in place."""
    file = folder / "annotations" / f"instances_{split}2017.json"
    content = json.loads(file.read_bytes())
    how(content)
    file.write_text(json.dumps(content))
    return file


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_files_of_any_unicode_encoding_become_plain_ones_for_the_frameworks(encoding, tmp_path):
    data = write_set(tmp_path / "set", counts=(3, 2), classes=("square", "disc", "triángulo"))
    plain = find(data)
    assert plain.train.ready == plain.train.json and coco_data.written(plain, tmp_path) == plain
    file = plain.train.json
    file.write_bytes(file.read_text().encode(encoding))
    read = find(data)
    assert read.train.content == plain.train.content and read.train.ready is None
    ready = coco_data.written(read, tmp_path / "out").train.ready
    assert ready.parent == tmp_path / "out" and COCO(ready).dataset == plain.train.content
    assert json.loads(ready.read_text(encoding="ascii")) == plain.train.content


def test_a_file_of_another_encoding_is_refused_with_what_to_do(tmp_path):
    data = write_set(tmp_path / "set", counts=(3, 2))
    file = data / "annotations" / "instances_train2017.json"
    file.write_bytes(file.read_text().replace("disc", "Scheibe/Öl").encode("latin-1"))
    with pytest.raises(InputError, match="instances_train2017.json is no Unicode text: save it as UTF-8"):
        find(data)


@pytest.mark.parametrize("ids", [lambda k: 0, lambda k: -k, lambda k: k // 2, lambda k: k])
def test_annotation_ids_become_distinct_and_positive(ids, tmp_path):
    data = write_set(tmp_path / "set", counts=(3, 2))
    plain = find(data).train.content["annotations"]

    def number(content):
        for k, entry in enumerate(content["annotations"]):
            entry["id"] = ids(k)

    content, as_it_is = read_annotations(change(data, number))
    assert [entry["id"] for entry in content["annotations"]] == list(range(1, len(plain) + 1)) and not as_it_is
    assert [{**entry, "id": 0} for entry in content["annotations"]] == [{**entry, "id": 0} for entry in plain]


def test_areas_are_those_of_the_file_or_of_the_mask_or_of_the_box():
    for kind in range(3):
        polygon = outline(kind, 10, 12, 40)
        low, size = polygon.min(0), np.ptp(polygon, axis=0)
        entry = {"bbox": [*low, *size], "segmentation": [polygon.ravel().tolist()]}
        expected = cv2.contourArea(polygon.astype(np.float32))
        for wrong in ({}, {"area": 0}, {"area": None}, {"area": 0.3}, {"area": 1e9}, {"area": float("nan")}):
            assert object_area({**entry, **wrong}) == pytest.approx(expected, rel=1e-6)
        assert object_area({**entry, "area": 77.5}) == 77.5  # COCO's small, medium and large go by the file's
        assert object_area({"bbox": entry["bbox"]}) == size[0] * size[1]
    drawn = cv2.circle(np.zeros((60, 80), np.uint8), (30, 30), 17, 1, -1)
    coded = rle.encode(np.asfortranarray(drawn))
    entry = {"bbox": rle.toBbox(coded).tolist(), "area": 0}
    flat = drawn.ravel(order="F")
    runs = np.diff([0, *(np.flatnonzero(np.diff(flat)) + 1), flat.size]).tolist()
    for counts in (coded["counts"].decode(), runs):
        assert object_area({**entry, "segmentation": {"size": [60, 80], "counts": counts}}) == drawn.sum()
    assert object_area({**entry, "segmentation": {"size": [60, 80], "counts": [4800]}}) == 35 * 35
    assert object_area({**entry, "segmentation": [[1, 1, 2, 2]]}) == 35 * 35


def with_every_reason(data):
    """Give some objects of a train file one reason each not to train, and others what is none."""

    def spoil(content):
        a = content["annotations"]
        a[0]["iscrowd"] = 1
        a[1]["ignore"] = 1
        a[2]["bbox"] = [500.0, 500.0, 20.0, 20.0]
        a[3]["bbox"][2] = 0.5
        a[4]["segmentation"] = [[1.0, 1.0, 5.0, 5.0]]
        a[5].pop("area")
        a[6]["area"] = 0
        a[7]["bbox"] = [a[7]["bbox"][0], a[7]["bbox"][1], 400.0, 400.0]  # reaches out of its image

    change(data, spoil)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("faster_rcnn_r18_fpn_1x", [CROWD, CROWD, OUTSIDE, TINY]),
        ("mask_rcnn_r18_fpn_1x", [CROWD, CROWD, OUTSIDE, TINY, FEW_POINTS]),
    ],
)
def test_mmdet_trains_on_what_is_counted(name, expected, tmp_path):
    pytest.importorskip("mmdet", reason="comes with the mmdet extra")
    data = write_set(tmp_path / "set", counts=(8, 2))
    with_every_reason(data)
    found = coco_data.written(find(data), tmp_path / "out")
    framework = FRAMEWORKS["mmdet"]
    cfg = framework.load_config(tiny_mmdet(name, tmp_path))
    framework.set_data(cfg, found, tmp_path)
    reasons, kept = reasons_of(found, framework.recipe_of(cfg)["left_out"])
    assert reasons == expected
    from mmdet.registry import DATASETS, TRANSFORMS
    from mmengine.registry import init_default_scope

    init_default_scope("mmdet")
    steps = [TRANSFORMS.build(step) for step in cfg.train_dataloader.dataset.pipeline[:2]]
    dataset = DATASETS.build({**cfg.train_dataloader.dataset, "pipeline": []})
    trained = 0
    for k in range(len(dataset)):
        entry = dataset.get_data_info(k)
        for step in steps:
            entry = step(entry)
        trained += int((~entry["gt_ignore_flags"]).sum())
    assert trained == kept > 0


@pytest.mark.parametrize("name", ["faster_rcnn_r18_fpn_1x", "mask_rcnn_r18_fpn_1x"])
@pytest.mark.detectron2
def test_detectron2_trains_on_what_is_counted(name, tmp_path):
    data = write_set(tmp_path / "set", counts=(8, 2))
    with_every_reason(data)
    found = coco_data.written(find(data), tmp_path / "out")
    framework = FRAMEWORKS["detectron2"]
    cfg = framework.load_config(tiny_detectron2(name, tmp_path))
    framework.set_data(cfg, found)
    reasons, kept = reasons_of(found, framework.recipe_of(cfg)["left_out"])
    assert reasons == [CROWD, CROWD, OUTSIDE, FEW_POINTS]
    from detectron2.data import get_detection_dataset_dicts

    from benchmarks.detection.in_detectron2.parts import Mapper

    mapper = Mapper(cfg, is_train=True)
    entries = get_detection_dataset_dicts(cfg.DATASETS.TRAIN)
    assert sum(len(mapper(copy.deepcopy(entry))["instances"]) for entry in entries) == kept > 0


def reasons_of(data: CocoData, left_out) -> tuple[list[str], int]:
    images = {image["id"]: image for image in data.train.content["images"]}
    reasons = [left_out(entry, images[entry["image_id"]]) for entry in data.train.content["annotations"]]
    return [reason for reason in reasons if reason], reasons.count("")


def test_a_crowd_without_a_mask_has_its_box_for_one(tmp_path):
    data = write_set(tmp_path / "set", counts=(3, 2))

    def crowd(content):
        content["annotations"][0].update(iscrowd=1, bbox=[1, 2, 30, 20])
        content["annotations"][0].pop("segmentation")

    content, as_it_is = read_annotations(change(data, crowd))
    assert content["annotations"][0]["segmentation"] == [[1, 2, 31, 2, 31, 22, 1, 22]] and not as_it_is
