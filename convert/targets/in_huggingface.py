"""Hugging Face: a directory that transformers' `AutoModel` and timm's `local-dir:` load, ready for the hub.

It has the layout of timm's own networks on the hub, which transformers reads by its `TimmWrapperModel`: one set of
names for both, for every network of timm's, with no second renaming that could be wrong. Plain JSON and safetensors:
transformers need not be installed. The model card says where the network comes from, and what it reached.
"""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convert.hub_config import CONFIG
from convert.naming.rules import CLASSES, IDENTITY
from convert.targets import Target, origin, renamed, writing
from sslight.core.errors import InputError, listed

if TYPE_CHECKING:
    from convert.families import Checkpoint


class HuggingFace(Target):
    name = "huggingface"
    package = "timm"
    files = ("model.safetensors", CONFIG, "README.md")
    matrix = dict.fromkeys(CLASSES, "yes")
    options = ("results",)

    def rename(self, checkpoint, results=""):
        _model_args(checkpoint)
        if checkpoint.preprocess["color_order"] != "RGB":
            raise InputError(
                f"{checkpoint.arch} takes BGR images, which {CONFIG} cannot say: images there are RGB; "
                "take --to timm, whose file says so"
            )
        return replace(renamed(checkpoint, IDENTITY), notes=_results(checkpoint, results)[1])

    def save(self, path, outgoing, checkpoint, picture):
        from convert.targets.in_timm import TARGET as timm

        with writing(path):
            path.mkdir()
            timm.save(path / self.weights, outgoing, checkpoint, picture)
            (path / CONFIG).write_text(json.dumps(_config(checkpoint), indent=2) + "\n", encoding="utf-8")

    def expected(self, checkpoint, results=""):
        from convert.targets.in_timm import TARGET as timm

        return timm.expected(checkpoint)

    def features(self, path, checkpoint, images, results=""):
        import timm
        import torch

        from convert.verify import check_loaded, installed, timm_features

        tensors = checkpoint.state
        model: Any = timm.create_model(f"local-dir:{path}", pretrained=True)
        check_loaded("timm.create_model", model.state_dict(), tensors)
        model.arch = checkpoint.arch
        features = timm_features(model, images)
        if not installed("transformers"):
            return features, "loaded by timm.create_model('local-dir:...'); transformers is not installed, and has not"
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            from transformers import AutoModel

            wrapper: Any = AutoModel.from_pretrained(path).eval()
            check_loaded("transformers' AutoModel", wrapper.timm_model.state_dict(), tensors)
            features["pooled"] = wrapper(images).pooler_output
        return (
            features,
            "loaded by timm.create_model('local-dir:...'), and by transformers' AutoModel (its pooled feature)",
        )

    def snippet(self, out, checkpoint, results=""):
        from huggingface_hub import ModelCard, ModelCardData

        taken, _ = _results(checkpoint, results)
        name = out.resolve().name
        data = ModelCardData(
            library_name="timm",
            pipeline_tag="image-feature-extraction",
            tags=["timm", "transformers", *([checkpoint.method] if checkpoint.method != "unknown" else [])],
            model_name=name,
            eval_results=[value for result in taken for value in _eval_results(result)] or None,
        )
        card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_text(name, checkpoint, taken)}")
        return str(card), self.files[2]


def _model_args(checkpoint: Checkpoint) -> dict[str, Any]:
    """The build options as arguments of `timm.create_model`. Raises InputError for an epsilon that it does not take."""
    options = dict(checkpoint.options)
    eps = options.pop("norm_eps", None)
    return {**options, **(_eps_args(checkpoint.arch, options, eps) if eps is not None else {})}


def _eps_args(arch: str, options: Mapping[str, Any], eps: float) -> dict[str, Any]:
    """The argument by which timm gives all norms of a network this epsilon, if it has another; or InputError."""
    import timm
    import torch

    ways: tuple[dict[str, Any], ...] = ({}, {"bn_eps": eps})
    for args in ways:
        try:
            with torch.device("meta"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                network: Any = timm.create_model(arch, num_classes=0, **args, **options)
        except TypeError:  # most networks have no such argument
            continue
        if {module.eps for module in network.modules() if hasattr(module, "eps")} == {eps}:
            return args
    raise InputError(
        f"{arch} with norm_eps={eps} cannot go to huggingface: {CONFIG} has no place for it, as timm's {arch} has no "
        "such argument; take --to timm, whose file says so"
    )


def _config(checkpoint: Checkpoint) -> dict[str, Any]:
    """What `config.json` says: timm's layout, with the two entries by which transformers' Auto classes find theirs."""
    from pretrain.backbones import meta_backbone

    preprocess, network = checkpoint.preprocess, meta_backbone(checkpoint.arch, **checkpoint.options)
    own = {name: network.pretrained_cfg.get(name) for name in ("first_conv", "classifier", "fixed_input_size")}
    args = _model_args(checkpoint)
    return {
        "architecture": checkpoint.arch,
        "model_type": "timm_wrapper",
        "architectures": ["TimmWrapperModel"],
        "num_classes": 0,
        "num_features": network.num_features,
        **({"model_args": args} if args else {}),
        "pretrained_cfg": {
            "tag": checkpoint.method,
            "custom_load": False,
            "input_size": [3, preprocess["size"], preprocess["size"]],
            "interpolation": "bicubic",
            "crop_pct": 0.875,
            "crop_mode": "center",
            "mean": list(preprocess["mean"]),
            "std": list(preprocess["std"]),
            "num_classes": 0,
            **{name: value for name, value in own.items() if value is not None},
        },
    }


def _results(checkpoint: Checkpoint, folder: str) -> tuple[list[dict], list[str]]:
    """The results below a folder that were measured with this network, and notes on those that were not.

    Raises InputError if the folder is missing or holds none of this network.
    """
    from sslight.core.result import read_result

    if not folder:
        return [], []
    files = sorted(Path(folder).rglob("result.json"))
    if not files:
        raise InputError(f"--results {folder}: no result.json there; name a folder of `sslight bench` or of a suite")
    taken, left = [], []
    for file in files:
        result = read_result(file)
        about = result["checkpoint"]
        same = about["sha256"] == checkpoint.sha256 and about.get("network", checkpoint.network) == checkpoint.network
        if same and about["arch"] == checkpoint.arch and about.get("options", checkpoint.options) == checkpoint.options:
            taken.append(result)
        else:
            left.append(f"{file.parent} ({about['path']}, {about['arch']})")
    if not taken:
        raise InputError(f"--results {folder}: none is of {checkpoint.source}: {listed(left)}")
    notes = [f"{len(taken)} results are in the model card"]
    return taken, notes + [f"results of another network are not in the model card: {listed(left)}"] * bool(left)


_TASKS = {"coco": {"box": "object-detection", "mask": "image-segmentation"}}


def _eval_results(result: Mapping) -> Iterable[Any]:
    """A result's metrics as the hub's model index has them."""
    from huggingface_hub import EvalResult

    data = result["data"]
    dataset = Path(data["path"]).name or "unnamed"
    for name, metric in result["metrics"].items():
        yield EvalResult(
            task_type=_TASKS.get(result["benchmark"], {}).get(name.split("_")[0], "image-classification"),
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_revision=str(data["fingerprint"]),
            metric_type=name,
            metric_name=f"{result['benchmark']} {name}",
            metric_value=metric["value"],
            metric_config=result["protocol"],
            metric_args={"interval_95": metric["interval"]} if metric["interval"] else None,
        )


def _text(name: str, checkpoint: Checkpoint, results: Iterable[Mapping]) -> str:
    """The model card below its metadata."""
    preprocess = checkpoint.preprocess
    options = "".join(f", {key}={value}" for key, value in checkpoint.options.items())
    size = preprocess["size"]
    rows = [
        ("network", f"`{checkpoint.arch}`{options} of timm, without classifier"),
        ("trained by", checkpoint.method),
        ("images", f"RGB, {size} x {size} px, mean {preprocess['mean']}, std {preprocess['std']}"),
        ("converted from", f"{checkpoint.family} ({checkpoint.rule}), network {checkpoint.network}"),
        ("SHA-256 of that file", f"`{checkpoint.sha256}`"),
        *(("assumed", text) for text in checkpoint.assumed.values()),
    ]
    text = f"""# {name}

{origin(checkpoint)}.

| | |
|---|---|
{_rows(rows)}

## Use

```python
import timm

model = timm.create_model("local-dir:{name}", pretrained=True).eval()  # on the hub: "hf-hub:ORGANISATION/{name}"
transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model), is_training=False)
features = model(transform(image.convert("RGB"))[None])  # [1, width]
```

```python
from transformers import AutoImageProcessor, AutoModel

processor, model = AutoImageProcessor.from_pretrained("{name}"), AutoModel.from_pretrained("{name}").eval()
features = model(**processor(image.convert("RGB"), return_tensors="pt")).pooler_output  # [1, width]
```
"""
    if not results:
        return text
    measured = []
    for result in results:
        data = result["data"]
        counts = ", ".join(f"{number} {split}" for split, number in data["counts"].items())
        for metric, value in result["metrics"].items():
            interval = " [{:.2f}, {:.2f}]".format(*value["interval"]) if value["interval"] else ""
            measured.append(
                (
                    f"{result['benchmark']} {metric}",
                    f"{value['value']:.2f}{interval}",
                    result["protocol"],
                    f"{Path(data['path']).name} ({counts})",
                    str(len(result["per_seed"])),
                )
            )
    return f"""{text}
## Results

Percent, with 95% intervals.

| | value | protocol | data (images) | seeds |
|---|---|---|---|---|
{_rows(measured)}
"""


def _rows(rows: Iterable[Iterable[str]]) -> str:
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in rows)


TARGET = HuggingFace()
