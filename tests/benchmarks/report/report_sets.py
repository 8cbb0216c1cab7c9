"""Result folders for the tests of the report, plain ones and hostile ones, and its page taken apart."""

import html.parser
import json
import struct
import zlib

from benchmarks.deployment import cost
from benchmarks.report import report
from sslight.core.files import write_json
from sslight.core.result import write_result

HOSTILE = "<script>alert('x')</script>$\\frac{|[bold]"


def png(width=2, height=2):
    """The smallest honest PNG, written by hand."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + b"\x80\x20\x20" * width for _ in range(height))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def result(folder, random=False, benchmark="knn", metrics=None, **change):
    """Write a valid result; `change` replaces fields."""
    checkpoint = {
        "path": "random" if random else "runs/x/last.pth",
        "sha256": "a" * 64,
        "arch": "resnet18",
        "method": "random" if random else "swav",
        "family": "random" if random else "sslight",
    }
    top1 = {"value": 20.0, "interval": [18.0, 23.0]} if random else {"value": 30.0, "interval": [27.0, 32.0]}
    metrics = metrics or {"top1": top1}
    fields = {
        "benchmark": benchmark,
        "protocol": f"demo_{benchmark}",
        "data": {"path": "data", "counts": {"train": 100, "val": 50}, "fingerprint": "f00d"},
        "per_seed": [{"seed": 0}],
        "config": {"WEIGHTS": checkpoint["path"], "KNN": {"K": [10, 20]}},
        "seconds": 1.0,
    } | change
    fields["checkpoint"] = checkpoint | change.get("checkpoint", {})
    return write_result(folder, metrics=metrics, **fields)


def write(folder, *suffixes):
    outputs = [folder / f"report{suffix}" for suffix in suffixes]
    assert report.main([str(folder), "-o", *map(str, outputs)]) == 0
    return outputs[0].read_text()


SIZE = {"DATA": {"SIZE": 224}}
PARAMETERS = {"resnet18": 11.2e6, "mobilenetv2_100": 2.2e6}


def write_cost(folder, arch, image_size=224, machine="a machine"):
    size = PARAMETERS.get(arch, 5e6)
    write_json(
        folder / "cost.json",
        {
            "schema": cost.SCHEMA,
            "arch": arch,
            "form": "single",
            "form_note": "",
            "image_size": image_size,
            "batch_size": 64,
            "machine": machine,
            "threads": 1,
            "torch": "2",
            "parameters": size,
            "flops": 160 * size,
            "latency_ms": size / 1e6,
            "latency_ms_quartiles": [1, 20],
            "images_per_second": 50,
            "command": f"sslight bench cost {arch}",
        },
    )


class Page(html.parser.HTMLParser):
    """Elements, their attributes and all text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


def hostile(folder):
    (folder / "pretrained").mkdir(parents=True)
    (folder / "pretrained" / "view.png").write_bytes(png())
    result(
        folder / "pretrained",
        protocol=HOSTILE,
        per_class={HOSTILE: 50.0, "=cmd()": 20.0},
        framework=HOSTILE,
        checkpoint={"method": HOSTILE, "path": HOSTILE},
        command=HOSTILE,
        pictures=["view.png", "../secret.png"],
        metrics={HOSTILE: {"value": 1.0, "interval": [0.5, 2.0]}},
    )
    (folder / "secret.png").write_bytes(png(3, 3))


def full(folder):
    """One of everything the page can show."""
    about = {"path": "data", "counts": {"val": 50}, "fingerprint": "f00d"}
    for random in (False, True):
        base = folder / "results" / ("random" if random else "pretrained")
        top = 20.0 if random else 30.0
        k_values = {f"top1_k{k}": {"value": top - k / 50, "interval": [top - 5, top + 5]} for k in (10, 20, 50)}
        result(
            base / "knn",
            random,
            metrics={"top1": {"value": top, "interval": [top - 2, top + 2]}} | k_values,
            per_class={str(digit): top + digit for digit in range(10)},
        )
        metrics = {
            f"{kind}_AP{size}": {"value": top / 10, "interval": None}
            for kind in ("mask", "box")
            for size in ("", "50", "s", "m", "l")
        }
        (base / "coco").mkdir()
        (base / "coco" / "scene.png").write_bytes(png(40, 20))
        result(
            base / "coco",
            random,
            "coco",
            metrics,
            data=about,
            framework="mmdet",
            pictures=["scene.png"],
            per_category={"mask": {"0": 1.0, "1": 2.0}, "box": {"0": 1.0}},
        )
        curve = [{"epoch": epoch, "pooled lr 0.1": top + epoch, "pooled lr 1": top} for epoch in range(1, 4)]
        heads = {f"pooled lr {rate}": {"holdout_top1": top - rate, "val_top1": top} for rate in (0.1, 1)}
        result(
            base / "linear",
            random,
            "linear",
            {"top1": {"value": top, "interval": [top - 1, top + 1]}},
            config=SIZE,
            per_seed=[{"seed": 0, "curve": curve, "heads": heads, "head": "pooled lr 0.1"}],
        )
    result(
        folder / "results" / "small" / "linear", benchmark="linear", checkpoint={"arch": "mobilenetv2_100"}, config=SIZE
    )
    for arch in PARAMETERS:
        write_cost(folder / "results" / "cost" / arch, arch, machine="<b>a machine</b>")
    (folder / "pretrain").mkdir()
    (folder / "pretrain" / "views.png").write_bytes(png(60, 40))
    lines = [json.dumps({"step": step, "loss": 4 - step / 100}) for step in range(0, 100, 20)]
    for run in (folder / "pretrain", folder / "results" / "pretrained" / "knn" / "seed_0"):
        run.mkdir(exist_ok=True)
        (run / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 9']))
    return folder


def write_pair(folder):
    """A result and a random network's."""
    result(folder / "pretrained")
    result(folder / "random", random=True)
    return folder
