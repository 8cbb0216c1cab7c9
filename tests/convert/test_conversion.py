"""The whole command: its report, its words where a framework is missing, its files; ONNX."""

from __future__ import annotations

import hashlib
import json

import pytest
import timm
import torch
from PIL import Image

from convert import verify
from convert.convert_ckpt import convert, main
from convert.families import FAMILIES
from convert.naming.rules import CLASSES, class_of
from convert.targets import TARGETS, matrix_text
from sslight.core.errors import InputError
from tests.convert.family_files import sslight
from tests.convert.own_networks import timm_own


@pytest.fixture(scope="module")
def run_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "last.pth"
    torch.save(sslight(timm_own("mobilenetv2_035")), path)
    return path


def test_the_report_says_what_was_done(run_file, tmp_path, capsys):
    out, report = tmp_path / "backbone.safetensors", tmp_path / "report.json"
    assert main([str(run_file), "--to", "timm", "-o", str(out), "--report", str(report)]) == 0
    said, done = capsys.readouterr().out, json.loads(report.read_text())
    assert done["source"]["family"] == "sslight" and done["source"]["rule"] in said
    assert done["source"]["sha256"] == hashlib.sha256(run_file.read_bytes()).hexdigest()
    assert done["target"]["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    network = timm.create_model("mobilenetv2_035", num_classes=0)
    assert done["parameters"] == sum(parameter.numel() for parameter in network.parameters())
    norms = sum(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    assert done["batch_norm"] == {"layers": norms, "with_statistics": norms, "never_updated": 0}
    assert sum(done["rules"]["reading"].values()) == sum(done["rules"]["writing"].values()) == 312
    assert done["differences"]["timm from the file"]["pooled"] <= 1e-5
    assert len(done["dropped"]["other network 'teacher'"]) == 312


def test_timm_loads_the_file_as_promised(run_file, tmp_path):
    out = tmp_path / "backbone.safetensors"
    convert(run_file, "timm", out)
    model = timm.create_model("mobilenetv2_035", num_classes=0, checkpoint_path=str(out))
    expected = timm_own("mobilenetv2_035").state
    assert all(torch.equal(model.state_dict()[key], value) for key, value in expected.items())


def test_snippets_run_as_they_stand(run_file, tmp_path):
    for to, suffix in (("timm", ".safetensors"), ("torchvision", ".pth")):
        out = tmp_path / f"{to}{suffix}"
        convert(run_file, to, out, verify=False)
        names: dict = {}
        exec(compile(out.with_suffix(".py").read_text(), "snippet", "exec"), names)
        image = names["transform"](Image.new("RGB", (300, 200), (255, 0, 0)))
        assert image.shape == (3, 224, 224)
        assert image[0, 0, 0].item() == pytest.approx((1 - 0.485) / 0.229, abs=1e-5)
        with torch.no_grad():
            assert names["model"](image[None]).shape == (1, 1280)


def test_a_picture_of_ones_own_is_used(run_file, tmp_path):
    Image.new("RGB", (99, 50), (200, 30, 4)).save(tmp_path / "mine.png")
    report = convert(run_file, "torchvision", tmp_path / "out.pth", verify_with=tmp_path / "mine.png")
    assert report["differences"]["torchvision from the file"]["pooled"] <= 1e-5


def test_an_absent_framework_is_said_in_one_line(run_file, tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "installed", lambda name: False)
    report = convert(run_file, "mmdet", tmp_path / "out.pth")
    assert [step for step in report["verified"] if step.startswith("NOT verified: mmdet is not installed")]
    assert any("not compared" in step for step in report["verified"])  # no list is shipped for this width


def test_a_shipped_list_serves_where_the_framework_is_absent(tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "installed", lambda name: False)
    path = tmp_path / "run.pth"
    torch.save(sslight(timm_own("resnet18")), path)
    report = convert(path, "detectron2", tmp_path / "out.pth")
    assert "names and shapes: all 120 as in the shipped list of detectron2" in report["verified"]


def test_a_file_that_reads_back_otherwise_is_removed(run_file, tmp_path, monkeypatch):
    def damaged(tensors):
        return {"state_dict": {**tensors, "conv1.conv.weight": tensors["conv1.conv.weight"] + 1}}

    monkeypatch.setattr(TARGETS["mmdet"], "content", damaged)
    with pytest.raises(InputError, match="conv1.conv.weight"):
        convert(run_file, "mmdet", tmp_path / "out.pth", verify=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arch, stages", [("resnet18", True), ("vit_tiny_patch16_224", False)])
def test_onnx_has_free_sizes_and_the_same_features(arch, stages, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    own = timm_own(arch)
    torch.save(sslight(own), tmp_path / "run.pth")
    report = convert(tmp_path / "run.pth", "onnx", tmp_path / "net.onnx", stages=stages)
    session = runtime.InferenceSession(str(tmp_path / "net.onnx"))
    images = torch.randn(5, 3, 224, 224) if arch.startswith("vit") else torch.randn(5, 3, 65, 90)
    expected, found = own.pooled(images), torch.from_numpy(session.run(["features"], {"images": images.numpy()})[0])
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-4
    assert len(session.get_outputs()) == (6 if stages else 1)
    # Multiply-adds of one 224 px image: 1.81 G (ResNet paper, table 1: 1.8), 1.26 G (DeiT, table 1: 1.3)
    assert report["gflops"] == pytest.approx({"resnet18": 1.81, "vit_tiny_patch16_224": 1.26}[arch], rel=0.01)


def test_the_matrix_names_every_class_and_target():
    assert all(target.name == name and target.matrix.keys() == CLASSES.keys() for name, target in TARGETS.items())
    assert class_of("resnet34") == "ResNet18/34/50/101/152" and class_of("resnet18d") == "other timm network"
    assert all(name in matrix_text() for name in (*CLASSES, *TARGETS, *FAMILIES))
