"""Our COCO evaluation: both libraries agree, the bootstrap's matching equals them, and it behaves at the edges."""

import numpy as np
import pytest

from benchmarks.detection import evaluation as coco_eval
from benchmarks.detection.data import FAR, fault
from benchmarks.detection.evaluation import bootstrap, evaluate
from sslight.core.errors import InputError
from tests.benchmarks.detection.coco_sets import near_detections, some_truth, with_masks


@pytest.mark.parametrize("kind", ["box", "mask"])
@pytest.mark.parametrize("seed", range(3))
def test_faster_coco_eval_equals_pycocotools(kind, seed):
    truth = some_truth(seed=seed)
    found = with_masks(near_detections(truth, seed=seed + 10))
    ours, theirs = (evaluate(truth, found, kind, backend) for backend in ("faster", "pycocotools"))
    assert len(ours.numbers) == 12 and all(0 < ours.numbers[name] < 100 for name in ("AP", "APs", "AR1"))
    for name, value in theirs.numbers.items():  # percent: 4 decimals of the fraction
        assert ours.numbers[name] == pytest.approx(value, abs=1e-2 / 2), name
    assert ours.per_category == pytest.approx(theirs.per_category, abs=1e-2 / 2)
    assert set(ours.per_category) == {"class 0", "class 1", "class 2"}  # the fourth class has no objects


@pytest.mark.parametrize("kind", ["box", "mask"])
@pytest.mark.parametrize("backend", ["faster", "pycocotools"])
def test_our_matching_gives_the_libraries_ap(kind, backend):
    truth = some_truth(seed=5)
    found = evaluate(truth, with_masks(near_detections(truth, seed=6)), kind, backend)
    from benchmarks.detection.evaluation import average_precision

    by_threshold = average_precision(found.matches, np.ones(len(truth["images"])))
    assert 100 * by_threshold.mean() == pytest.approx(found.numbers["AP"], abs=1e-9)
    assert 100 * by_threshold[0] == pytest.approx(found.numbers["AP50"], abs=1e-9)
    assert 100 * by_threshold[5] == pytest.approx(found.numbers["AP75"], abs=1e-9)


@pytest.mark.parametrize("kind", ["box", "mask"])
@pytest.mark.parametrize("backend", ["faster", "pycocotools"])
def test_one_category_at_a_time_is_the_same(kind, backend, monkeypatch):
    truth = some_truth(seed=7)
    found = [entry for entry in with_masks(near_detections(truth, seed=8)) if entry["category_id"] != 2]
    whole = evaluate(truth, found, kind, backend)
    monkeypatch.setattr(coco_eval, "PAIRS", 1)
    parts = evaluate(truth, found, kind, backend)
    assert parts.numbers == pytest.approx(whole.numbers, nan_ok=True) and parts.per_category == whole.per_category
    assert len(parts.matches) == len(whole.matches) == len(truth["categories"])
    for one, other in zip(parts.matches, whole.matches, strict=True):
        assert all(
            np.array_equal(getattr(one, name), getattr(other, name)) for name in ("image", "true", "counted", "objects")
        )


def test_a_weighted_image_counts_like_its_copies():
    truth = some_truth(images=10, seed=2)
    found = near_detections(truth, seed=3, scores=10**6)
    weights = np.arange(10) % 3
    copies = {"images": [], "annotations": [], "categories": truth["categories"]}
    copied = []
    for image, weight in zip(truth["images"], weights, strict=True):
        for copy in range(weight):
            number = image["id"] + 1000 * copy
            copies["images"].append({**image, "id": number})
            copies["annotations"] += [
                {**a, "image_id": number, "id": a["id"] + 1000 * copy}
                for a in truth["annotations"]
                if a["image_id"] == image["id"]
            ]
            copied += [{**d, "image_id": number} for d in found if d["image_id"] == image["id"]]
    from benchmarks.detection.evaluation import average_precision

    by_weight = average_precision(evaluate(truth, found, "box").matches, weights.astype(float))
    expected = evaluate(copies, copied, "box", "pycocotools").numbers
    # copies tie in score, and pycocotools ranks ties by image: a hit may come before its copy's false alarm
    assert 100 * by_weight.mean() == pytest.approx(expected["AP"], abs=0.2)


def slow_average_precision(truth, detections):
    """Box AP in percent by COCO's definition, one object at a time; knows ids only by whether they are equal."""
    values = []
    for category in truth["categories"]:
        found, objects = [], 0  # found: score, and for every threshold whether it is right, or None if it is ignored
        for image in sorted(truth["images"], key=lambda image: image["id"]):

            def there(entries, image=image, category=category):
                return [e for e in entries if (e["image_id"], e["category_id"]) == (image["id"], category["id"])]

            real = sorted(there(truth["annotations"]), key=lambda a: a["iscrowd"])
            objects += sum(not a["iscrowd"] for a in real)
            ranked = sorted(there(detections), key=lambda d: -d["score"])[:100]
            outcomes = [[] for _ in ranked]
            for threshold in np.linspace(0.5, 0.95, 10):
                taken = set()
                for detection, outcome in zip(ranked, outcomes, strict=True):
                    best, match = threshold, None
                    for place, a in enumerate(real):
                        if place in taken or (match is not None and a["iscrowd"] and not real[match]["iscrowd"]):
                            continue
                        overlap = box_overlap(detection["bbox"], a["bbox"], a["iscrowd"])
                        if overlap >= best:
                            best, match = overlap, place
                    crowd = match is not None and real[match]["iscrowd"]
                    if match is not None and not crowd:
                        taken.add(match)
                    outcome.append(None if crowd else match is not None)
            found += [(d["score"], o) for d, o in zip(ranked, outcomes, strict=True)]
        if not objects:
            continue
        found.sort(key=lambda pair: -pair[0])
        for t in range(10):
            right = [o[t] for _, o in found if o[t] is not None]
            hits = np.cumsum(right)
            points = [(hits[k] / objects, hits[k] / (k + 1)) for k in range(len(right))]
            values.append(
                np.mean([max((p for r, p in points if r >= recall), default=0) for recall in np.linspace(0, 1, 101)])
            )
    return 100 * np.mean(values)


def box_overlap(found, real, crowd):
    """Intersection over union; over the detection's own area for a crowd."""
    (x, y, w, h), (u, v, s, t) = found, real
    shared = max(0, min(x + w, u + s) - max(x, u)) * max(0, min(y + h, v + t) - max(y, v))
    return shared / (w * h if crowd else w * h + s * t - shared)


def with_ids(truth, detections, annotation=None, image=None, category=None):
    """The same with other ids. annotation maps an object's place, the others an id."""
    same = lambda old: old  # noqa: E731
    image, category = image or same, category or same

    def of(entry):
        return {**entry, "image_id": image(entry["image_id"]), "category_id": category(entry["category_id"])}

    return {
        "images": [{**entry, "id": image(entry["id"])} for entry in truth["images"]],
        "categories": [{**entry, "id": category(entry["id"])} for entry in truth["categories"]],
        "annotations": [
            {**of(entry), "id": annotation(k) if annotation else entry["id"]}
            for k, entry in enumerate(truth["annotations"])
        ],
    }, [of(entry) for entry in detections]


IDS = {
    "from 0": {"annotation": lambda k: k},
    "negative": {"annotation": lambda k: -k},
    "all 0": {"annotation": lambda k: 0},
    "repeated": {"annotation": lambda k: k // 3 + 1},
    "objects beyond 2^53": {"annotation": lambda k: 2**60 + k},
    "images beyond 2^53": {"image": lambda old: 2**53 + old // 3},  # consecutive
    "images beyond 2^64": {"image": lambda old: 10**22 + old},
    "images as text": {"image": lambda old: str(10**22 + old)},
    "images negative": {"image": lambda old: old - 10**6},
    "categories beyond 2^53": {"category": lambda old: 2**53 + old},
    "categories from 0": {"category": lambda old: old - 2},
}


@pytest.mark.parametrize("kind", ["box", "mask"])
@pytest.mark.parametrize("backend", ["faster", "pycocotools"])
@pytest.mark.parametrize("ids", IDS)
def test_ids_do_not_matter(ids, backend, kind):
    truth = some_truth(seed=5)
    found = with_masks(near_detections(truth, seed=6))
    whole = evaluate(truth, found, kind, backend)
    other = evaluate(*with_ids(truth, found, **IDS[ids]), kind, backend)
    assert other.numbers == pytest.approx(whole.numbers, abs=1e-12)
    assert other.per_category == pytest.approx(whole.per_category, abs=1e-12)
    assert bootstrap([other], 5) == bootstrap([whole], 5)


@pytest.mark.parametrize("backend", ["faster", "pycocotools"])
@pytest.mark.parametrize("seed", range(3))
def test_ap_is_that_of_a_slow_reference(seed, backend):
    truth = some_truth(images=12, seed=seed)
    found = near_detections(truth, seed=seed + 20)
    assert evaluate(truth, found, "box", backend).numbers["AP"] == pytest.approx(
        slow_average_precision(truth, found), abs=1e-9
    )


@pytest.mark.parametrize("backend", ["faster", "pycocotools"])
@pytest.mark.parametrize("number", [0, -1, 1, 2**60])
def test_one_perfect_detection_is_ap_100(number, backend):
    truth = {
        "images": [{"id": 2**53 + 1, "file_name": "1.jpg", "width": 50, "height": 40}],
        "annotations": [{"id": number, "image_id": 2**53 + 1, "category_id": 1, "bbox": [5, 5, 20, 20]}],
        "categories": [{"id": 1, "name": "one"}],
    }
    perfect = [{"image_id": 2**53 + 1, "category_id": 1, "bbox": [5.0, 5.0, 20.0, 20.0], "score": 0.9}]
    assert evaluate(truth, perfect, "box", backend).numbers["AP"] == pytest.approx(100)


def test_perfect_and_absent_detections():
    truth = some_truth(seed=4)
    perfect = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.9}
        for a in truth["annotations"]
        if not a["iscrowd"]
    ]
    assert evaluate(truth, perfect, "box").numbers["AP"] == pytest.approx(100)
    for kind in ("box", "mask"):
        nothing = evaluate(truth, [], kind)
        assert nothing.numbers["AP"] == 0 and nothing.numbers["AR100"] == 0
        assert bootstrap([nothing], 5) == {"AP": (0, 0), "AP50": (0, 0)}


def test_the_interval_contains_the_value_and_narrows_with_images():
    few, many = (some_truth(images=n, seed=8) for n in (12, 120))
    widths = []
    for truth in (few, many):
        run = evaluate(truth, near_detections(truth, seed=9), "box")
        low, high = bootstrap([run], 60)["AP"]
        assert low < run.numbers["AP"] < high
        widths.append(high - low)
    assert widths[1] < 0.6 * widths[0]  # about 1 / sqrt(10)
    run = evaluate(few, near_detections(few, seed=9), "box")
    assert bootstrap([run], 20) == bootstrap([run], 20)
    assert bootstrap([run], 0) == {}


def test_far_polygons_are_refused_by_the_reader_and_nearer_ones_do_not_crash():
    truth = some_truth(seed=1)
    plain = next(a for a in truth["annotations"] if not a["iscrowd"])
    image = next(image for image in truth["images"] if image["id"] == plain["image_id"])
    x, y = FAR * image["width"], FAR * image["height"]
    plain["segmentation"] = [[x, -y, x + 1, y, -x, y]]
    assert (
        fault(truth)
        == f"has annotation {plain['id']} with a polygon that reaches more than 10 image sides out of its image"
    )
    plain["segmentation"] = [[x, -y, x, y, -x, y]]
    assert fault(truth) == ""
    found = with_masks(near_detections(truth))
    for backend in ("faster", "pycocotools"):
        assert 0 < evaluate(truth, found, "mask", backend).numbers["AP"] < 100


def test_detections_of_another_data_set_are_refused():
    truth = some_truth()
    with pytest.raises(InputError, match="image 99999"):
        evaluate(truth, [{"image_id": 99999, "category_id": 2, "bbox": [0, 0, 1, 1], "score": 1.0}], "box")
    with pytest.raises(InputError, match="head has other classes"):
        evaluate(truth, [{"image_id": 1, "category_id": 5, "bbox": [0, 0, 1, 1], "score": 1.0}], "box")
    with pytest.raises(InputError, match="EVAL.BACKEND"):
        evaluate(truth, [], "box", "fast")
