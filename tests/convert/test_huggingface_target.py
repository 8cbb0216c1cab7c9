"""--to huggingface: a directory that timm and transformers load, and its model card."""

from __future__ import annotations

import json
import re

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from PIL import Image

from convert.convert_ckpt import convert, main
from convert.reader import load_network, read_checkpoint
from sslight.core.errors import InputError
from sslight.core.result import write_result
from tests.convert.family_files import sslight
from tests.convert.own_networks import timm_own

FILES = {"README.md", "config.json", "model.safetensors"}


@pytest.fixture(scope="module")
def run_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "last.pth"
    torch.save(sslight(timm_own("mobilenetv2_035")), path)
    return path


@pytest.fixture(scope="module")
def vit_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "last.pth"
    torch.save(sslight(timm_own("vit_tiny_patch16_224")), path)
    return path


def measured(folder, checkpoint, **changed):
    """A result of a checkpoint."""
    write_result(
        folder,
        benchmark="knn",
        protocol="knn_in1k",
        checkpoint={
            "path": checkpoint.source,
            "sha256": checkpoint.sha256,
            "arch": checkpoint.arch,
            "method": "dino",
            "family": "sslight",
            "network": checkpoint.network,
            **changed,
        },
        data={"path": "/data/flowers", "counts": {"train": 90, "val": 30}, "fingerprint": "f00d"},
        metrics={"top1": {"value": 61.25, "interval": [59.0, 63.5]}, "top5": {"value": 90.0, "interval": None}},
        per_seed=[{"seed": 0}],
        config={},
        seconds=1.0,
    )


@pytest.mark.parametrize("options", [(), ("num_heads=12",)])
def test_reads_back_bit_for_bit(vit_file, tmp_path, options):
    source = read_checkpoint(vit_file, options={"num_heads": 12} if options else {})
    convert(vit_file, "huggingface", tmp_path / "out", options=options)
    assert {file.name for file in (tmp_path / "out").iterdir()} == FILES
    read = read_checkpoint(tmp_path / "out")
    assert (read.arch, read.options, read.preprocess) == (source.arch, source.options, source.preprocess)
    assert read.state.keys() == source.state.keys()
    assert all(torch.equal(read.state[key], value) for key, value in source.state.items())


def test_timm_loads_it_also_with_a_new_classifier(run_file, tmp_path):
    convert(run_file, "huggingface", tmp_path / "out")
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    network, _ = load_network(run_file)
    images = torch.randn(2, 3, 96, 128)
    with torch.no_grad():
        assert torch.equal(model(images), network.eval()(images))
    tuned = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, num_classes=5)
    assert torch.equal(tuned.conv_stem.weight, network.conv_stem.weight) and tuned(images).shape == (2, 5)


def test_transformers_loads_it_with_its_preprocessing(vit_file, tmp_path):
    transformers = pytest.importorskip("transformers")
    report = convert(vit_file, "huggingface", tmp_path / "out", options=["num_heads=12"])
    assert any("transformers' AutoModel" in step for step in report["verified"])
    model = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
    network, _ = load_network(vit_file, options={"num_heads": 12})
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    image = processor(Image.new("RGB", (300, 260), (255, 0, 0)), return_tensors="pt")["pixel_values"]
    assert image.shape == (1, 3, 224, 224) and image[0, 0, 0, 0].item() == pytest.approx((1 - 0.485) / 0.229, abs=1e-4)
    with torch.no_grad():
        expected, actual = network.eval()(image), model(image).pooler_output
    assert float((actual - expected).abs().max() / expected.abs().max()) < 1e-5


def test_an_epsilon_goes_where_timm_takes_one_else_it_is_refused(run_file, vit_file, tmp_path):
    convert(run_file, "huggingface", tmp_path / "cnn", options=["norm_eps=0.001", "pad_type=same"])
    args = json.loads((tmp_path / "cnn" / "config.json").read_text())["model_args"]
    assert args == {"pad_type": "same", "bn_eps": 0.001}
    model = timm.create_model(f"local-dir:{tmp_path / 'cnn'}", pretrained=True)
    assert {module.eps for module in model.modules() if hasattr(module, "eps")} == {0.001}
    assert read_checkpoint(tmp_path / "cnn").options == {"norm_eps": 0.001, "pad_type": "same"}
    with pytest.raises(InputError, match=r"vit_tiny_patch16_224 with norm_eps=1e-12 cannot go to huggingface"):
        convert(vit_file, "huggingface", tmp_path / "vit", options=["norm_eps=1e-12"])
    assert not (tmp_path / "vit").exists()


def test_bgr_is_refused(tmp_path):
    run = sslight(timm_own("mobilenetv2_035"))
    torch.save({**run, "preprocess": {**run["preprocess"], "color_order": "BGR"}}, tmp_path / "run.pth")
    with pytest.raises(InputError, match="takes BGR images, which config.json cannot say"):
        convert(tmp_path / "run.pth", "huggingface", tmp_path / "out")


def test_the_card_says_what_it_is_and_its_code_runs(run_file, tmp_path, monkeypatch):
    convert(run_file, "huggingface", tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.library_name == "timm" and "dino" in card.data.tags and card.data.eval_results is None
    checkpoint = read_checkpoint(run_file)
    for text in ("mobilenetv2_035", checkpoint.sha256, checkpoint.rule, "network student", "224 x 224 px"):
        assert text in card.content
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.+?)```", card.content, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        if "transformers" in block:
            pytest.importorskip("transformers")
        names = {"image": Image.new("L", (300, 260))}
        exec(compile(block, "card", "exec"), names)
        assert names["features"].shape == (1, 1280)


def test_results_of_this_network_alone_are_in_the_card(run_file, tmp_path, capsys):
    checkpoint = read_checkpoint(run_file)
    measured(tmp_path / "bench" / "knn", checkpoint)
    measured(tmp_path / "bench" / "teacher", checkpoint, network="teacher")
    measured(tmp_path / "bench" / "other", checkpoint, sha256="0" * 64, path="other.pth")
    out = tmp_path / "out"
    assert main([str(run_file), "--to", "huggingface", "-o", str(out), "--results", str(tmp_path / "bench")]) == 0
    said = capsys.readouterr().out
    assert f"{tmp_path / 'bench' / 'other'} (other.pth, mobilenetv2_035)" in said and "bench/teacher" in said
    card = ModelCard.load(out / "README.md")
    top1, top5 = card.data.eval_results
    assert (top1.metric_value, top1.metric_args) == (61.25, {"interval_95": [59.0, 63.5]})
    assert (top1.dataset_name, top1.metric_config, top5.metric_value) == ("flowers", "knn_in1k", 90.0)
    assert "| knn top1 | 61.25 [59.00, 63.50] | knn_in1k | flowers (90 train, 30 val) | 1 |" in card.text


def test_results_of_no_use_are_refused(run_file, tmp_path):
    measured(tmp_path / "other", read_checkpoint(run_file), sha256="0" * 64)
    for folder, line in (("other", "none is of"), ("none", "no result.json there")):
        with pytest.raises(InputError, match=line):
            convert(run_file, "huggingface", tmp_path / "out", results=tmp_path / folder)
    with pytest.raises(InputError, match="--results is for --to huggingface only"):
        convert(run_file, "timm", tmp_path / "out.safetensors", results=tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_force_replaces_an_earlier_conversion_as_a_whole_and_nothing_else(run_file, vit_file, tmp_path):
    out = tmp_path / "out"
    convert(run_file, "huggingface", out, verify=False)
    with pytest.raises(InputError, match="--force to replace it"):
        convert(vit_file, "huggingface", out)
    convert(vit_file, "huggingface", out, force=True, verify=False)
    assert {file.name for file in out.iterdir()} == FILES
    assert json.loads((out / "config.json").read_text())["architecture"] == "vit_tiny_patch16_224"
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds notes\.txt, too"):
        convert(run_file, "huggingface", out, force=True)
    with pytest.raises(InputError, match="is a file"):
        convert(run_file, "huggingface", out / "notes.txt", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
