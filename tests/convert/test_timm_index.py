"""The index of timm's networks against the timm that is installed."""

from __future__ import annotations

import pytest
import timm
import torch

from convert import timm_index
from convert.identify import identify
from pretrain.backbones import backbone_shapes

SAMPLE = timm.list_models()[::45]
NETWORKS = [timm_index.index().network(number) for number in range(len(timm_index.index().groups))]
KNOWN = {name for network in NETWORKS for archs in network.archs for name in archs}


@pytest.mark.parametrize("arch", SAMPLE)
def test_a_network_is_found_by_names_and_shapes_alone(arch):
    shapes = backbone_shapes(arch)
    if arch not in KNOWN:
        pytest.skip(f"timm {timm.__version__} has {arch}, which the index does not: run tools/make_timm_index.py")
    identity = identify("timm", shapes)
    assert any(arch in archs for archs in identity.archs) and not identity.problems and not identity.beside


@pytest.mark.parametrize("arch", SAMPLE)
def test_each_network_has_an_anchor(arch):
    assert timm_index.index().anchors & backbone_shapes(arch).keys()


def test_what_is_beside_a_network_and_what_is_within():
    shapes = backbone_shapes("mobilenetv3_small_100", num_classes=10)
    beside = identify("timm", {**shapes, "decoder.0.weight": (3, 4), "best_acc1": ()}).beside
    assert beside == {
        "classifier or head on the backbone": ["classifier.weight", "classifier.bias"],
        "of no backbone": ["decoder.0.weight", "best_acc1"],
    }
    assert identify("timm", {**shapes, "blocks.0.0.gate.weight": (16,)}).problems
    lacking = {name: shape for name, shape in shapes.items() if name != "blocks.1.0.conv_pw.weight"}
    assert identify("timm", lacking).problems == ["missing 'blocks.1.0.conv_pw.weight' [72, 16, 1, 1]"]


def test_a_larger_network_is_never_taken_for_a_smaller_one():
    """SE-ResNet50 has all of ResNet50's tensors, ResNet34 all of ResNet18's names."""
    for arch in ("seresnet50", "resnet34", "ecaresnet50d", "vit_small_r26_s32_224"):
        assert any(arch in archs for archs in identify("timm", backbone_shapes(arch)).archs)


def test_networks_of_one_group_compute_the_same_and_those_of_several_do_not():
    """Same tensors, seen on an image: in one inner tuple equal features, between two other ones."""
    images = torch.randn(1, 3, 64, 64)
    checked = 0
    for name in ("resnet18", "efficientnet_b0", "mobilenetv3_small_100", "resnet50", "efficientnet_es"):
        [network] = [n for n in NETWORKS if any(name in archs for archs in n.archs)]
        state = timm.create_model(name, num_classes=0).state_dict()

        def features(arch, state=state):
            model = timm.create_model(arch, num_classes=0).eval()
            model.load_state_dict(state)
            with torch.no_grad():
                return model(images)

        outputs = [[features(arch) for arch in archs] for archs in network.archs]
        for alike in outputs:
            assert all(torch.equal(alike[0], other) for other in alike)
        for one, other in zip(outputs, outputs[1:], strict=False):
            assert not torch.allclose(one[0], other[0])
        checked += len(outputs)
    assert checked > 8
