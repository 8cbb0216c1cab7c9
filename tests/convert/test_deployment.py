"""The form that a device runs: the features stay, the branches go; and its multiply-adds against counts made apart."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import get_model_weights

from convert.convert_ckpt import convert
from convert.deployment import deployed_form, multiply_adds
from pretrain.backbones import build_backbone, stage_features
from sslight.core.checkpoint import save_backbone

PREPROCESS = {"mean": [0.5] * 3, "std": [0.5] * 3, "color_order": "RGB", "size": 64}
# Parameters without classifier, in training and deployed. The paper gives MobileOne-S0 2.1 M, 1.025 M in a classifier.
FOLDED = {
    "mobileone_s0": (4_268_272, 1_053_504),
    "fastvit_t8": (3_257_232, 3_227_040),
    "repvit_m0_9": (4_717_792, 4_682_056),
    "repvgg_a0": (7_827_968, 7_028_384),
}


def trained(arch, seed=0):
    """The network with batch norms as training leaves them: a fold that forgets one shows."""
    torch.manual_seed(seed)
    network = build_backbone(arch)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | BatchNormAct2d):
            for value, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.3, 0.3),
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 2.0),
            ):
                nn.init.uniform_(value, low, high)
    return network.eval()


@pytest.mark.parametrize("arch", FOLDED)
def test_the_deployed_form_gives_the_same_features(arch):
    """Pooled and of every stage, to 1e-5 of the largest; the network itself stays as it is."""
    network, images = trained(arch), torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = deployed_form(network, images)
    assert found.form == "deployed" and found.network is not network and 0 < found.difference < 1e-5
    counts = [sum(parameter.numel() for parameter in one.parameters()) for one in (network, found.network)]
    assert tuple(counts) == FOLDED[arch]
    with torch.no_grad():
        for one, other in zip(
            [network(images), *stage_features(network, images)],
            [found.network(images), *stage_features(found.network, images)],
            strict=True,
        ):
            assert float((one - other).abs().max() / one.abs().max()) < 1e-5
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("arch", ["resnet18", "mobilenetv2_100", "vit_tiny_patch16_224"])
def test_a_network_of_one_form_stays_what_it_is(arch):
    network = trained(arch)
    found = deployed_form(network, torch.zeros(1, 3, 32, 32))
    assert found.network is network and found.form == "single"


def test_a_fold_that_changes_the_features_is_not_taken(monkeypatch):
    def wrong(network):
        folded = timm.utils.reparameterize_model(network)
        with torch.no_grad():
            next(folded.parameters()).mul_(1.01)
        return folded

    network = trained("mobileone_s0")
    monkeypatch.setattr("convert.deployment.reparameterize_model", wrong)
    found = deployed_form(network, torch.randn(1, 3, 32, 32))
    assert found.network is network and found.form == "training" and "its features differ by" in found.note


@pytest.mark.parametrize("arch", ["mobileone_s0", pytest.param("repvit_m0_9", marks=pytest.mark.slow)])
def test_onnx_holds_the_deployed_form(arch, tmp_path):
    """Against the training form in torch, on images of another size and count; its tensors are the deployed form's."""
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    network = trained(arch)
    save_backbone(tmp_path / "net.safetensors", network.state_dict(), arch=arch, method="x", preprocess=PREPROCESS)
    report = convert(tmp_path / "net.safetensors", "onnx", tmp_path / "net.onnx")
    assert report["form"] == "deployed" and (report["parameters"], report["exported_parameters"]) == FOLDED[arch]
    assert any("folded by timm: largest relative difference" in step for step in report["verified"])
    stored = sum(torch.Size(tensor.dims).numel() for tensor in onnx.load(str(tmp_path / "net.onnx")).graph.initializer)
    assert stored == pytest.approx(FOLDED[arch][1], rel=0.01) and stored < 0.995 * FOLDED[arch][0]
    images = torch.randn(3, 3, 96, 64)
    session = runtime.InferenceSession(str(tmp_path / "net.onnx"))
    with torch.no_grad():
        expected = network(images)
    found = torch.from_numpy(session.run(["features"], {"images": images.numpy()})[0])
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-4


@pytest.mark.slow
def test_onnx_of_the_training_form_says_so(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
    monkeypatch.setattr("convert.deployment.TOLERANCE", 0.0)
    network = trained("mobileone_s0")
    save_backbone(
        tmp_path / "net.safetensors", network.state_dict(), arch="mobileone_s0", method="x", preprocess=PREPROCESS
    )
    report = convert(tmp_path / "net.safetensors", "onnx", tmp_path / "net.onnx")
    assert report["form"] == "training" and report["exported_parameters"] == FOLDED["mobileone_s0"][0]
    assert any(step.startswith("the TRAINING form is exported") for step in report["verified"])


def test_multiply_adds_by_hand():
    """3x3 convolution, 3 x 10 x 10 to 8 x 5 x 5; depthwise 3x3; 1x1 to 16; pooling; linear to 4; biases and norms."""
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        nn.BatchNorm2d(8),
        nn.Hardswish(),
        nn.Conv2d(8, 16, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.LayerNorm(16),
        nn.Linear(16, 4),
    ).eval()
    counted = 25 * 8 * (3 * 9) + 25 * 8 * 9 + 25 * 16 * 8 + 16 * 4
    assert multiply_adds(network, torch.zeros(1, 3, 10, 10)) == counted == 10_464


def test_multiply_adds_of_a_vit_by_hand():
    """Patches; per block query, key, value, output and MLP (12 width^2 a token), and the two products of T^2 scores."""
    width, depth, tokens, patch = 192, 12, 197, 16
    counted = 196 * 3 * patch**2 * width + depth * (12 * width**2 * tokens + 2 * tokens**2 * width)
    network = build_backbone("vit_tiny").eval()
    assert multiply_adds(network, torch.zeros(1, 3, 224, 224)) == counted
    assert any(getattr(module, "fused_attn", False) for module in network.modules())  # as it runs, and stays


@pytest.mark.parametrize("arch", ["mobilenet_v2", "resnet18", "resnet50"])
def test_multiply_adds_are_those_that_torchvision_gives(arch):
    """Its model cards' GFLOPs, rounded to two decimals or three, count the classifier, too."""
    told = get_model_weights(arch).IMAGENET1K_V1.meta["_ops"]
    network = build_backbone(arch).eval()
    assert (multiply_adds(network, torch.zeros(1, 3, 224, 224)) + 1000 * network.feature_dim) / 1e9 == pytest.approx(
        told, abs=6e-4
    )


@pytest.mark.parametrize(
    "arch",
    [
        "mobilenetv2_100",
        "vit_tiny",
        "mobileone_s0",
        "fastvit_t8",
        "convnext_atto",
        pytest.param("swin_tiny_patch4_window7_224", marks=pytest.mark.slow),
        "efficientvit_b0",
    ],
)
def test_multiply_adds_are_torchs_own_count(arch):
    """torch.utils.flop_counter looks at what the dispatcher runs and counts a multiplication and an addition as two."""
    network, images = build_backbone(arch).eval(), torch.zeros(1, 3, 224, 224)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(images)
    assert 2 * multiply_adds(network, images) == counter.get_total_flops()
