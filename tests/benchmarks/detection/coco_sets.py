"""Small COCO-format data for tests: real JPEGs of coloured shapes, and detections near the ground truth."""

import json
from pathlib import Path

import cv2
import numpy as np

CLASSES = ("square", "disc", "triangle")


def write_set(root: Path, counts=(12, 6), size=(96, 80), seed=0, classes=CLASSES, run_length=False) -> Path:
    """`annotations/`, `train2017/`, `val2017/` with 1 to 3 bright shapes on noise an image; returns `root`.

    Masks are polygons, or run-length codes.
    """
    rng = np.random.default_rng(seed)
    (root / "annotations").mkdir(parents=True)
    for name, count in zip(("train2017", "val2017"), counts, strict=True):
        (root / name).mkdir()
        images, annotations = [], []
        for number in range(count):
            width, height = size if number % 2 else size[::-1]
            picture = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
            for _ in range(int(rng.integers(1, 4))):
                kind = int(rng.integers(len(classes)))
                side = int(rng.integers(24, 44))
                x, y = int(rng.integers(0, width - side)), int(rng.integers(0, height - side))
                polygon = outline(kind % 3, x, y, side)
                colour = [0, 0, 0]
                colour[kind % 3] = 255
                cv2.fillPoly(picture, [polygon.astype(np.int32)], colour)
                low, high = polygon.min(0), polygon.max(0)
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number + 1,
                        "category_id": 10 * (kind + 1),
                        "iscrowd": 0,
                        "bbox": [*low.tolist(), *(high - low).tolist()],
                        "area": float(cv2.contourArea(polygon.astype(np.float32))),
                        "segmentation": _coded(polygon, width, height) if run_length else [polygon.ravel().tolist()],
                    }
                )
            file = f"{number + 1:012d}.jpg"
            cv2.imwrite(str(root / name / file), picture)
            images.append({"id": number + 1, "file_name": file, "width": width, "height": height})
        categories = [{"id": 10 * (k + 1), "name": word} for k, word in enumerate(classes)]
        (root / "annotations" / f"instances_{name}.json").write_text(
            json.dumps({"images": images, "annotations": annotations, "categories": categories})
        )
    return root


def _coded(polygon: np.ndarray, width: int, height: int) -> dict:
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [polygon.astype(np.int32)], 1)
    return _runs(mask)


def outline(kind: int, x: int, y: int, side: int) -> np.ndarray:
    """Corners [P, 2] of a shape in the square at (x, y)."""
    if kind == 0:
        corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=float)
    elif kind == 1:
        angle = np.arange(16) * np.pi / 8
        corners = np.stack([np.cos(angle), np.sin(angle)], 1) / 2 + 0.5
    else:
        corners = np.array([[0.5, 0], [1, 1], [0, 1]])
    return np.round(corners * side + [x, y], 1)


def some_truth(images=24, classes=3, seed=0) -> dict:
    """A ground truth with crowds, empty images, all three sizes, a class without objects and touching objects."""
    rng = np.random.default_rng(seed)
    truth = {
        "images": [{"id": 3 * i + 1, "file_name": f"{i}.jpg", "width": 240, "height": 200} for i in range(images)],
        "annotations": [],
        "categories": [{"id": 7 * k + 2, "name": f"class {k}"} for k in range(classes + 1)],
    }
    for i, image in enumerate(truth["images"]):
        for j in range(int(rng.integers(0, 6)) if i % 5 else 0):
            side = float(rng.choice([14, 50, 110]))
            x, y = (float(v) for v in rng.integers(0, 90, 2))
            crowd = int(j == 4)
            polygon = [x, y, x + side, y, x + side, y + side, x, y + side]
            area = np.zeros((200, 240), np.uint8)
            area[int(y) : int(y + side), int(x) : int(x + side)] = 1
            mask = _runs(area) if crowd else [polygon]
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": image["id"],
                    "category_id": 7 * int(rng.integers(classes)) + 2,
                    "iscrowd": crowd,
                    "bbox": [x, y, side, side],
                    "area": side * side,
                    "segmentation": mask,
                }
            )
    return truth


def _runs(mask: np.ndarray) -> dict:
    """COCO's uncompressed run-length code of a mask [H, W]."""
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return {"size": list(mask.shape), "counts": runs if flat[0] == 0 else [0, *runs]}


def near_detections(truth: dict, seed=1, scores=8) -> list[dict]:
    """Shifted copies of the objects, doubles and false alarms, with few distinct scores so that there are ties."""
    rng = np.random.default_rng(seed)
    found = []
    for annotation in truth["annotations"]:
        for _ in range(int(rng.integers(0, 4))):
            x, y, w, h = annotation["bbox"]
            x, y = x + float(rng.normal(0, 0.1 * w)), y + float(rng.normal(0, 0.1 * h))
            category = annotation["category_id"] if rng.random() < 0.9 else truth["categories"][0]["id"]
            found.append(
                {
                    "image_id": annotation["image_id"],
                    "category_id": category,
                    "bbox": [x, y, w, h],
                    "score": float(rng.integers(1, scores)) / scores,
                }
            )
    for image in truth["images"][::3]:
        found.append(
            {
                "image_id": image["id"],
                "category_id": truth["categories"][1]["id"],
                "bbox": [5.0, 5.0, 60.0, 40.0],
                "score": 0.5,
            }
        )
    return found


def with_masks(detections: list[dict], height=200, width=240) -> list[dict]:
    """The same detections with rectangular masks, compressed as the frameworks write them."""
    from pycocotools import mask

    found = []
    for entry in detections:
        x, y, w, h = (round(v) for v in entry["bbox"])
        area = np.zeros((height, width), np.uint8, order="F")
        area[max(y, 0) : max(y + h, 0), max(x, 0) : max(x + w, 0)] = 1
        coded = mask.encode(area)
        found.append({**entry, "segmentation": {"size": coded["size"], "counts": coded["counts"].decode()}})
    return found


VOC = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
OBJECT = (
    "<object><name>{}</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult><bndbox>"
    "<xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
)


def write_voc(root: Path, seed=0) -> Path:
    """`VOC2007/` (trainval, test) and `VOC2012/` (trainval) in PASCAL VOC's layout: two objects an image; `root`.

    Every one of the 20 classes is in every list.
    """
    rng = np.random.default_rng(seed)
    number = 0
    for year, lists in (("2007", ("trainval", "test")), ("2012", ("trainval",))):
        folder = root / f"VOC{year}"
        for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (folder / part).mkdir(parents=True)
        for split in lists:
            names = []
            for pair in zip(VOC[::2], VOC[1::2], strict=True):
                number += 1
                picture = rng.integers(0, 60, (80, 128, 3), dtype=np.uint8)
                objects = []
                for place, name in enumerate(pair):
                    x, y, side = 64 * place + int(rng.integers(0, 20)), int(rng.integers(0, 36)), 40
                    picture[y : y + side, x : x + side] = rng.integers(120, 255, 3)
                    objects.append(OBJECT.format(name, x + 1, y + 1, x + side, y + side))
                names.append(f"{number:06d}")
                cv2.imwrite(str(folder / "JPEGImages" / f"{names[-1]}.jpg"), picture)
                (folder / "Annotations" / f"{names[-1]}.xml").write_text(
                    f"<annotation><filename>{names[-1]}.jpg</filename><size><width>128</width><height>80</height>"
                    f"<depth>3</depth></size>{''.join(objects)}</annotation>"
                )
            (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
    return root
