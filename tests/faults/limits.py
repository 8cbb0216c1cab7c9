"""Sizes at the end of the scale, and machines that are not as usual: a million files, 100,000 COCO images, a thousand
classes, names of every kind, data that cannot be written to, another file system, a clock that jumps."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image

from benchmarks.classification.labelled import balanced, holdout
from benchmarks.detection import (
    data as coco_data,
    evaluation as coco_eval,
    preflight,
)
from benchmarks.detection.command import DEFAULTS
from pretrain.data.loading import epoch_order
from pretrain.data.sources import open_source
from sslight.core.config import load_config
from sslight.core.logs import Bar
from tests.faults.processes import environment, start
from tests.faults.sandbox import attempts
from tests.faults.table import Row
from tests.faults.tiny_runs import knn, linear, pretrain, semisup, write_images

JUMPING = """import time
real, calls = time.time, [0]
def jumping():  # back by a day, right, ahead by ten years
    calls[0] += 1
    return real() + (-86400, 0, 315360000)[calls[0] // 20 % 3]
time.time = jumping
"""
ASCII = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
READ_ONLY = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'


def rows(size: str, place: Path) -> Iterator[Row]:
    long = size == "long"
    yield many_files(1_280_000 if long else 20_000, 1000 if long else 50)
    yield many_annotations(100_000 if long else 1000, place)
    yield lonely_classes(place, long)
    yield unusual_machine(place)
    if long:
        yield every_command(place)
    yield steady_bar()


def measured(what: str, work: Callable[[], str], folder: Path, seconds: float, gigabytes: float) -> Row:
    """One piece of work in a child process, within limits of time and memory."""
    outcomes = attempts(lambda _: work(), [0], folder, seconds=seconds, gigabytes=gigabytes)
    row = Row(what, 1, [text for _, text in outcomes.failed])
    row.note = f"{next(iter(outcomes.seen), '')}; {outcomes.slowest:.1f} CPU s, {outcomes.peak:.2f} GB"
    return row


def many_files(count: int, classes: int) -> Row:
    """Index, labels, fingerprint and an epoch's order of many files; and what a worker costs that reads all names."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        for label in range(classes):
            target = Path(folder) / "train" / f"n{label:08d}"
            target.mkdir(parents=True)
            (target / "first.JPEG").write_bytes(b"x")
            for k in range(count // classes - 1):
                os.link(target / "first.JPEG", target / f"n{label:08d}_{k}.JPEG")

        def work() -> str:
            started = time.process_time()
            source = open_source(folder, "train")
            indexed = time.process_time() - started
            assert len(source) == count and len(source.classes) == classes
            assert (np.bincount(source.labels) == count // classes).all()
            source.fingerprint()
            epoch_order(count, 0, 0)
            before = private_bytes()
            assert sum(len(source.name(i)) for i in range(count)) > 10 * count
            grown = (private_bytes() - before) / 1e6
            assert grown < 20, f"reading the names made {grown:.0f} MB of memory a process's own"
            return f"indexed in {indexed:.1f} CPU s"

        return measured(
            f"{count:,} files in {classes} classes: index, labels, order; workers share it",
            work,
            Path(folder),
            900,
            1.5,
        )


def private_bytes() -> int:
    """Memory that this process shares with no other."""
    with open("/proc/self/smaps_rollup") as lines:
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def many_annotations(count: int, place: Path) -> Row:
    """Preflight, the proxy's choice and the evaluation of boxes on many COCO images."""
    rng, data = np.random.default_rng(0), place / "many"
    (data / "annotations").mkdir(parents=True)
    one = io.BytesIO()
    Image.new("RGB", (64, 48)).save(one, "JPEG")
    for split, images in (("train2017", count), ("val2017", 10)):
        (data / split).mkdir()
        per = 1000
        for k in range(images):  # folders of links to one file each, as a file may have 65,000
            target = data / split / f"{k // per}" / f"{k:012d}.jpg"
            if k % per == 0:
                target.parent.mkdir()
                target.write_bytes(one.getvalue())
                first = target
            else:
                os.link(first, target)
        annotations = []
        for k in range(7 * images):
            x, y = (float(v) for v in rng.integers(0, 20, 2))
            annotations.append(
                {
                    "id": k,
                    "image_id": k // 7,
                    "category_id": k % 80,
                    "iscrowd": 0,
                    "bbox": [x, y, 20.5, 20.5],
                    "segmentation": [[x, y, x + 20.5, y, x + 20.5, y + 20.5, x, y + 20.5, x, y + 10.0]],
                    "area": 420.25,
                }
            )
        (data / "annotations" / f"instances_{split}.json").write_text(
            json.dumps(
                {
                    "images": [
                        {"id": k, "file_name": f"{k // per}/{k:012d}.jpg", "width": 64, "height": 48}
                        for k in range(images)
                    ],
                    "annotations": annotations,
                    "categories": [{"id": k, "name": f"c{k}"} for k in range(80)],
                }
            )
        )
    del annotations
    settings = load_config(DEFAULTS, None, ["DATA.PATH_TO_DATA_DIR", str(data)])

    def work() -> str:
        started = time.process_time()
        found = coco_data.find(settings)
        preflight.check_images([found.train], None)
        preflight.masks_present(found.train)
        assert not list(preflight.shapes(found.train))
        checked = time.process_time() - started
        truth = found.train.content
        assert len(coco_data.stratified(truth, count // 10)) == count // 10
        started = time.process_time()
        detections = [
            {**{key: a[key] for key in ("image_id", "category_id", "bbox")}, "score": 0.5} for a in truth["annotations"]
        ]
        result = coco_eval.evaluate(truth, detections, "box", keep_matches=False)
        assert result.numbers["AP"] > 99
        return f"checked in {checked:.1f} s, evaluated in {time.process_time() - started:.1f} s"

    row = measured(f"{count:,} COCO images, {7 * count:,} objects: preflight, proxy, evaluation", work, place, 900, 8)
    shutil.rmtree(data)
    return row


def lonely_classes(place: Path, long: bool) -> Row:
    """A thousand classes of which some have one image: subsets keep every class, and the evaluations run."""
    number = 1000 if long else 40
    row = Row(f"{number} classes, every other one with a single image: subsets, k-NN, semi-supervised")
    labels = np.repeat(np.arange(number), np.where(np.arange(number) % 2, 1, 2))
    chosen = balanced(labels, 0.01, 0)
    row.attempt(set(labels[chosen]) == set(range(number)), "a balanced draw lost a class")
    fitted, held = holdout(labels, 0.5, 0)
    row.attempt(
        set(labels[fitted]) == set(range(number)) and not np.isin(labels[held], np.arange(1, number, 2)).any(),
        "a held-out part took a class as a whole",
    )
    if long:
        data = place / "classes"
        for split in ("train", "val"):
            for label in range(number):
                target = data / split / f"class {label}"
                target.mkdir(parents=True)
                for k in range(1 if label % 2 or split == "val" else 2):
                    Image.new("RGB", (36, 36), (label % 256, 3 * label % 256, 60 * k)).save(target / f"{k}.jpg")
        for name, command in (
            ("knn", knn(data, place / "lonely knn", place / "lonely cache")),
            (
                "semisup",
                semisup(
                    data, place / "lonely semisup", **{"SOLVER.TOTAL_EPOCHS": 1, "SEEDS": "[0]", "LABELS.FRACTION": 0.1}
                ),
            ),
            ("linear", linear(data, place / "lonely linear", **{"SOLVER.TOTAL_EPOCHS": 1, "SEEDS": "[0]"})),
        ):
            result, said = place / f"lonely {name}" / "result.json", place / f"{name}.txt"
            code = start(*command, log=said).wait()
            row.attempt(
                code == 0 and "mean_class" in str(json.loads(result.read_text())["metrics"]), said.read_text()[-300:]
            )
        shutil.rmtree(data)
    return row


def unusual_machine(place: Path) -> Row:
    """Pre-training and what follows it, with everything unusual at once: images that cannot be written to, under names
    that the terminal cannot show; the output on another file system; a clock that jumps back and far ahead."""
    row = Row("pre-training: read-only data, odd names, ASCII terminal, other file system, jumping clock")
    images = odd_names(write_images(place / "daten für ☃ 雪"))
    (place / "jump").mkdir()
    (place / "jump" / "sitecustomize.py").write_text(JUMPING)
    path = os.pathsep.join([str(place / "jump"), environment()["PYTHONPATH"]])
    extra = {"PYTHONPATH": path, **ASCII}
    prefix = ("unshare", "-m", "sh", "-c", READ_ONLY, str(images))
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        prefix, row.note = (), "the data could be written to: no mount of our own here"
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as other:
        out, said = Path(other) / "lauf ☃ 1", place / "unusual.txt"
        code = start(
            *pretrain(images, out, **{"SOLVER.TOTAL_EPOCHS": 1, "DATA.MAX_CORRUPT": 0.1}),
            log=said,
            prefix=prefix,
            **extra,
        ).wait()
        row.attempt(code == 0 and (out / "backbone.safetensors").exists(), f"exit {code}: {said.read_text()[-1500:]}")
        log = (out / "log.txt").read_text(encoding="utf-8") if code == 0 else ""
        row.attempt("kaputt ☃" in log and "-" not in said.read_text().split("left")[0][-12:], f"log: {log[-300:]}")
    return row


def odd_names(images: Path) -> Path:
    """Classes and files in other scripts, with spaces, quotes and bytes that are no UTF-8; one file is broken."""
    for split in ("train", "val"):
        (images / split / "class 0").rename(images / split / "Käse 雪 🙂")
        for k, file in enumerate(sorted((images / split / "class 2").iterdir())):
            file.rename(file.with_name(f"ü {k} 'quoted\" $HOME;.jpg"))
        first = min((images / split / "class 1").iterdir())
        first.rename(first.with_name(os.fsdecode(b"latin \xe9\xff.jpg")))
    (images / "train" / "Käse 雪 🙂" / "kaputt ☃.jpg").write_bytes(b"broken")
    return images


def every_command(place: Path) -> Row:
    """Convert, evaluate, report and pack with such names, on a terminal that shows UTF-8 and on one that does not."""
    row = Row("odd names through convert, k-NN, semi-supervised, report, pack there and back")
    for number, extra in enumerate(({}, ASCII)):
        root = place / f"Bilder ☃ {number}"
        images = odd_names(write_images(root / "daten"))
        (images / "train" / "Käse 雪 🙂" / "kaputt ☃.jpg").unlink()
        run, results = root / "lauf 1", root / "ergebnisse ☃"
        commands = [
            pretrain(images, run, **{"SOLVER.TOTAL_EPOCHS": 1}),
            [
                "-m",
                "sslight",
                "convert",
                run / "checkpoints" / "last.pth",
                "--to",
                "timm",
                "-o",
                root / "☃.safetensors",
            ],
            knn(images, results / "knn", root / "cache ☃"),
            semisup(images, results / "semi", **{"SOLVER.TOTAL_EPOCHS": 1, "SEEDS": "[0]"}),
            ["-m", "sslight", "report", results, "-o", root / "seite ☃.html"],
            *(["-m", "sslight", "pack", images, root / to, "--to", to] for to in ("h5", "shards")),
            *(["-m", "sslight", "pack", root / to, root / f"zurück {to}", "--to", "folder"] for to in ("h5", "shards")),
            knn(root / "h5", results / "knn h5", root / "cache ☃"),
        ]
        for command in commands:
            said = root / "said.txt"
            said.unlink(missing_ok=True)
            code = start(*command, log=said, **extra).wait()
            row.attempt(code == 0, f"{command[:3]}: exit {code}: {said.read_text(errors='replace')[-600:]}")
        shutil.rmtree(root)
    return row


def steady_bar() -> Row:
    """The bar on a terminal counts on, and never expects to be done before now."""
    row, shown = Row("a progress bar on a terminal while the clock jumps"), io.StringIO()
    shown.isatty = lambda: True
    with mock.patch("sys.stderr", shown), mock.patch("time.time", lambda: time.monotonic() * -1000):
        bar = Bar(3, "steps")
        for _ in range(3):
            time.sleep(0.15)
            bar.update()
            bar.bar.refresh()
        bar.close()
    row.attempt("3/3" in shown.getvalue() and "-1" not in shown.getvalue(), shown.getvalue())
    return row
