"""The demo's data: real files, split by glyph, with annotations that hold against pycocotools and the pictures."""

import json
import re
from collections import Counter

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from benchmarks import demo_data
from sslight.core.errors import InputError

SMALL = {"renderings": 1, "scenes": (40, 20)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "data"
    demo_data.make(out, **SMALL)
    return out


def glyph_of(path):
    return int(re.match(r"glyph(\d+)_", path.name)[1])


def test_every_glyph_is_in_one_split_under_its_own_label(folder):
    labels = load_digits().target
    seen = {}
    for split in ("train", "val"):
        files = list((folder / split).glob("*/*.jpg"))
        seen[split] = [glyph_of(path) for path in files]
        assert all(int(path.parent.name) == labels[glyph_of(path)] for path in files)
        assert sorted({path.parent.name for path in files}) == [str(digit) for digit in range(10)]
    assert sorted(seen["train"] + seen["val"]) == list(range(1797))
    assert 0.24 < len(seen["val"]) / 1797 < 0.26


def test_no_writing_occurs_in_both_splits(folder):
    images = load_digits().images
    marker = json.loads((folder / demo_data.MARKER).read_text())
    train, val = ({images[glyph].tobytes() for glyph in marker["glyphs"][split]} for split in ("train", "val"))
    assert not train & val


def test_tuning_split_never_sees_val():
    real, tuning = demo_data.split_glyphs(0), demo_data.split_glyphs(0, tuning=True)
    assert not set(tuning["train"]) & set(tuning["val"])
    assert sorted(tuning["train"] + tuning["val"]) == real["train"]
    assert not set(tuning["val"]) & set(real["val"])


def test_the_paper_does_not_tell_the_label(folder):
    """A classifier on the corner's pixels, where no ink is, stays at chance: 10% and 3 standard errors (1.4 points)."""
    colours, labels = {}, {}
    for split in ("train", "val"):
        files = sorted((folder / split).glob("*/*.jpg"))
        colours[split] = np.stack([cv2.imread(str(path))[:3, :3].mean((0, 1)) / 255 for path in files])
        labels[split] = [path.parent.name for path in files]
    accuracy = LogisticRegression().fit(colours["train"], labels["train"]).score(colours["val"], labels["val"])
    assert accuracy < 0.10 + 3 * 0.0142


@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_annotations_hold_for_pycocotools(folder, split, capsys):
    """Boxes are tight to half a pixel, areas agree to 12% or 12 pixels with pycocotools' own rasterisation."""
    coco = COCO(folder / "annotations" / f"instances_{split}.json")
    assert {category["name"] for category in coco.cats.values()} == {str(digit) for digit in range(10)}
    assert len(coco.imgs) == len(list((folder / split).iterdir())) == SMALL["scenes"][split == "val2017"]
    counts = Counter(annotation["image_id"] for annotation in coco.anns.values())
    assert 2 <= np.mean(list(counts.values())) <= 5 and set(counts) == set(coco.imgs)
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)
        assert abs(int(mask.sum()) - annotation["area"]) <= max(12, 0.12 * annotation["area"])
        points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in annotation["segmentation"]])
        left, top, width, height = annotation["bbox"]
        outline = [*points.min(0), *points.max(0)]
        assert np.abs(np.array(outline) - [left, top, left + width, top + height]).max() <= 0.5
        assert left >= 0 and top >= 0 and left + width <= 128 and top + height <= 128


def test_scenes_have_occlusion_and_many_sizes(folder):
    coco = json.loads((folder / "annotations" / "instances_train2017.json").read_text())
    heights = [annotation["bbox"][3] for annotation in coco["annotations"]]
    assert max(heights) > 2.5 * min(heights)

    def overlap(a, b):
        return all(a[i] < b[i] + b[i + 2] and b[i] < a[i] + a[i + 2] for i in (0, 1))

    boxes = {}
    for annotation in coco["annotations"]:
        boxes.setdefault(annotation["image_id"], []).append(annotation["bbox"])
    touching = sum(overlap(a, b) for group in boxes.values() for i, a in enumerate(group) for b in group[:i])
    assert touching > 0.2 * len(boxes)


def test_visible_mask_loses_what_a_later_digit_covers():
    """Every inked pixel of a plain scene belongs to a visible mask, and no pixel to more than two."""
    rng = np.random.default_rng(3)
    for _ in range(5):
        picture, masks = demo_data._scene(np.full((128, 128, 3), 128.0), list(range(100)), rng)
        union = np.zeros((128, 128), int)
        for _, mask in masks:
            assert mask.any()
            union += mask
        assert union.max() <= 2  # two only where an earlier digit shows through a later one's hole
        ink = np.abs(picture - 128).max(2) > 40
        assert (ink & (union == 0)).mean() < 0.01


def test_same_seed_same_bytes_other_seed_other_pictures(folder, tmp_path):
    demo_data.make(tmp_path / "again", **SMALL)
    demo_data.make(tmp_path / "other", seed=1, **SMALL)
    names = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    assert names == [
        path.relative_to(tmp_path / "again") for path in sorted((tmp_path / "again").rglob("*")) if path.is_file()
    ]
    assert all((folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in names)
    marker = json.loads((tmp_path / "other" / demo_data.MARKER).read_text())
    assert marker["fingerprint"] != json.loads((folder / demo_data.MARKER).read_text())["fingerprint"]


def test_complete_data_is_kept_and_damaged_or_foreign_folders_are_refused(folder, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    marker = demo_data.make(folder, **SMALL)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert marker["counts"]["train"] + marker["counts"]["val"] == 1797
    with pytest.raises(InputError, match="other settings"):
        demo_data.make(folder, seed=7, **SMALL)

    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("dear")
    with pytest.raises(InputError, match="no demo data"):
        demo_data.make(foreign, **SMALL)
    assert (foreign / "thesis.tex").read_text() == "dear"

    victim = next((folder / "val" / "3").iterdir())
    content = victim.read_bytes()
    victim.write_bytes(content[:-5])
    with pytest.raises(InputError, match="changed after it was made"):
        demo_data.make(folder, **SMALL)
    victim.write_bytes(content)


def test_an_interrupted_call_leaves_nothing_that_looks_complete(tmp_path, monkeypatch):
    out = tmp_path / "data"

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_data, "_write_scenes", stop)
    with pytest.raises(KeyboardInterrupt):
        demo_data.make(out, **SMALL)
    assert not out.exists() and list(tmp_path.iterdir()) == []
