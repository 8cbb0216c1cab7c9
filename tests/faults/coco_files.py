"""Mutated COCO annotation files through the checks before a run, the evaluation and the frameworks' own reading:
refused in one line, or evaluated to numbers in their range."""

from __future__ import annotations

import copy
import importlib.util
import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.detection import (
    data as coco_data,
    evaluation as coco_eval,
    preflight,
)
from benchmarks.detection.command import DEFAULTS
from convert.targets.mmcv_ops import install
from sslight.core.config import load_config
from sslight.core.errors import InputError
from tests.benchmarks.detection.coco_sets import near_detections, with_masks, write_set
from tests.convert.mutations import flipped, inserted, overwritten, swapped_blocks, truncated
from tests.faults.sandbox import attempts, row_of
from tests.faults.table import Row

BLIND = (flipped, truncated, swapped_blocks, overwritten, inserted)
ODD = (
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**63,
    10**400,
    -0.5,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "1",
    "NaN",
    "../1.jpg",
    "/etc/passwd",
    "\0",
    "\ud800",
    "x" * 5000,
    [],
    [[]],
    [None],
    {},
    {"a": 1},
    [1, 2, 3],
    [1, 2, 3, 4],
    [1e300] * 6,
    [[1, 2, 3, 4]],
    [[1, 2, 3, 4, 5]],
    [[5, 5, 9, 5, 9, 9]],
    [[float("nan")] * 6],
    [[1e9, -1e9] * 4],
    [[3, 4] * 5000],
    {"size": [80, 96], "counts": [7680]},
    {"size": [80, 96], "counts": [10**9]},
    {"size": [80, 96], "counts": [-1, 7681]},
    {"size": [10**6, 10**6], "counts": [10**12]},
    {"size": [80, 96], "counts": "PPYo1"},
    {"size": [80, 96], "counts": "\x7f" * 50},
    {"size": "80", "counts": None},
)


def rows(size: str, place: Path) -> Iterator[Row]:
    data = write_set(place / "data", counts=(6, 4))
    file = data / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    content["annotations"] += [
        {**entry, "id": 1000 + entry["id"], "image_id": entry["image_id"] % 6 + 1, "iscrowd": 1, "segmentation": None}
        for entry in content["annotations"][:3]
    ]
    for entry in content["annotations"][-3:]:
        image = content["images"][entry["image_id"] - 1]
        entry["segmentation"] = {
            "size": [image["height"], image["width"]],
            "counts": [100, 50, image["height"] * image["width"] - 150],
        }
    settings = load_config(DEFAULTS, None, ["DATA.PATH_TO_DATA_DIR", str(data)])
    file.write_text(json.dumps(content))
    assert use(settings, 0) == "right"  # imports all that the attempts need, too

    def mutated(number: int) -> str:
        chance = random.Random(number)
        if chance.random() < 0.2:
            text = chance.choice(BLIND)(json.dumps(content).encode(), chance)
        else:
            changed = copy.deepcopy(content)
            for _ in range(chance.choice((1, 1, 1, 2, 5))):
                change(changed, chance)
            text = json.dumps(changed).encode()
        file.write_bytes(text)
        return use(settings, number)

    outcomes = attempts(mutated, range(5000 if size == "long" else 60), place, seconds=30, gigabytes=2)
    yield row_of("mutated COCO annotation files: checks, evaluation, the frameworks' reading", outcomes, str)
    texts = hostile(content)
    names = list(texts)

    def crafted(number: int) -> str:
        file.write_bytes(texts[names[number]])
        return use(settings, 0)

    outcomes = attempts(crafted, range(len(names)), place, seconds=30, gigabytes=2)
    yield row_of(
        "annotation files with deep nesting, huge polygons and images, repeated ids", outcomes, names.__getitem__
    )


def use(settings, number: int) -> str:
    """Check a data set and evaluate on it; returns how it ended. AssertionError where a number is out of its range."""
    try:
        data = coco_data.find(settings)
        preflight.check_images([data.train], None)
        preflight.masks_present(data.train)
        list(preflight.shapes(data.train))
    except InputError as error:
        assert "\n" not in str(error) and len(str(error)) < 6000, f"said too much: {error}"
        return "refused"
    coco_data.part_of(data, 0.5)
    truth = data.train.content
    boxes = near_detections(truth)
    width, height = truth["images"][0]["width"], truth["images"][0]["height"]
    found = {"box": boxes, "mask": with_masks(boxes, height, width)}
    for kind in ("box", "mask"):
        sized = [entry for entry in found[kind] if kind == "box" or _size(truth, entry) == (width, height)]
        result = coco_eval.evaluate(truth, sized, kind, coco_eval.BACKENDS[number % 2])
        values = np.array(list(result.numbers.values()))
        assert ((0 <= values[~np.isnan(values)]) & (values[~np.isnan(values)] <= 100)).all(), result.numbers
        coco_eval.bootstrap([result], 2)
    frameworks(data)
    return "right"


def _size(truth: dict, entry: dict) -> tuple[int, int]:
    image = next(image for image in truth["images"] if image["id"] == entry["image_id"])
    return image["width"], image["height"]


def frameworks(data: coco_data.CocoData) -> None:
    """Let each installed framework read the training list as it does for a run."""
    split = coco_data.written(data, data.train.json.parent).train
    if importlib.util.find_spec("mmdet"):
        install()
        from mmdet.datasets import CocoDataset

        read = CocoDataset(
            ann_file=str(split.ready),
            data_prefix={"img": f"{split.images}/"},
            pipeline=[],
            metainfo={"classes": data.classes},
        )
        assert len(read) == split.image_count
    if all(map(importlib.util.find_spec, ("detectron2", "omegaconf"))):
        from detectron2.data.datasets import load_coco_json

        assert len(load_coco_json(str(split.ready), str(split.images))) == split.image_count


def change(content: dict, chance: random.Random) -> None:
    """One value somewhere replaced, removed or doubled."""
    holder: dict | list = content
    while True:
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        if not keys:
            return
        key = chance.choice(keys)
        if isinstance(holder[key], dict | list) and chance.random() < 0.9:
            holder = holder[key]
            continue
        break
    kind = chance.random()
    if isinstance(holder[key], int | float) and abs(holder[key]) < 1e9 and kind < 0.4:
        holder[key] = type(holder[key])(holder[key] * chance.choice((0, 0.5, 0.99, 1.01, 3)))
    elif kind < 0.75:
        holder[key] = copy.deepcopy(chance.choice(ODD))
    elif kind < 0.9:
        del holder[key]
    elif isinstance(holder, list):
        holder.append(holder[key])
    else:
        holder[chance.choice(("id", "image_id", "category_id", "bbox"))] = holder[key]


def hostile(content: dict) -> dict[str, bytes]:
    """Whole files with a purpose."""

    def spoiled(**parts) -> bytes:
        return json.dumps({**content, **parts}).encode()

    first, image, category = content["annotations"][0], content["images"][0], content["categories"][0]
    tangle = 40 + 39 * np.stack([np.sin(np.arange(200_000) * 2.4), np.cos(np.arange(200_000) * 2.4)], 1)
    polygon = {**first, "segmentation": [tangle.round(2).ravel().tolist()]}
    return {
        "deep": b"[" * 100_000,
        "deep inside": b'{"images": ' + b'{"a":' * 50_000,
        "not unicode": b"\xff" * 99,
        "long number": b'{"images": ' + b"9" * 100_000 + b"}",
        "empty": b"",
        "null": b"null",
        "list": b"[]",
        "billions of pixels": spoiled(images=[{**image, "width": 10**9, "height": 10**9}, *content["images"][1:]]),
        "many points": spoiled(annotations=[polygon, *content["annotations"][1:]]),
        "many polygons": spoiled(annotations=[{**first, "segmentation": first["segmentation"] * 5000}]),
        "one object often": spoiled(annotations=[{**first, "id": k} for k in range(3000)]),
        "repeated ids": spoiled(annotations=[first, first]),
        "one category": spoiled(categories=[category] * 9),
        "a circle": spoiled(categories=[{**category, "supercategory": "b", "parent": category["id"]}]),
        "doubled key": json.dumps(content).replace('"images"', '"images": [], "images"', 1).encode(),
        "many categories": spoiled(
            categories=[*content["categories"], *({"id": 10**6 + k, "name": f"c{k}"} for k in range(20_000))]
        ),
    }
