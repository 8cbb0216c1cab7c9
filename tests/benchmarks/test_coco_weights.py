"""`--weights`: random by its seed, supervised ones from torchvision or timm, and a clear line without a network."""

import urllib.error

import pytest
import timm
import torch
import torchvision

from benchmarks.coco_weights import find_source
from pretrain.backbones import build_backbone
from pretrain.errors import InputError


def test_random_is_explicit_and_seeded(tmp_path):
    first, again, other = (find_source("random", "resnet18", seed, tmp_path / str(i))[0].state["conv1.weight"]
                           for i, seed in enumerate((0, 0, 1)))
    assert torch.equal(first, again) and not torch.equal(first, other)
    with pytest.raises(InputError, match="needs --arch"):
        find_source("random", None, 0, tmp_path)


@pytest.mark.parametrize("arch, name", [("resnet18", "resnet18"), ("mobilenet_v2", "mobilenet_v2")])
def test_supervised_weights_are_torchvisions(arch, name, tmp_path, monkeypatch):
    """A network of torchvision's in its cache, as a download leaves it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    network = torchvision.models.get_model(name).eval()
    url = torchvision.models.get_model_weights(name).IMAGENET1K_V1.url
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(network.state_dict(), tmp_path / "hub" / "checkpoints" / url.rsplit("/", 1)[1])
    source, family = find_source("SUPERVISED", arch, 0, tmp_path / "out")
    assert family == "supervised" and source.method == "supervised"
    assert source.preprocess["mean"] == [0.485, 0.456, 0.406]
    ours = build_backbone(arch)
    ours.load_state_dict(source.state)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = torch.nn.Sequential(*list(network.children())[:-1])(images)
        if name == "mobilenet_v2":
            theirs = theirs.mean((2, 3))
        assert torch.allclose(ours.eval()(images), theirs.flatten(1), atol=1e-5)


def test_supervised_weights_bring_timms_own_preprocessing(tmp_path, monkeypatch):
    build = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda arch, pretrained, **options: build(arch, **options))  # no download
    source, _ = find_source("SUPERVISED", "vit_tiny", 0, tmp_path)
    assert source.preprocess["mean"] == source.preprocess["std"] == [0.5, 0.5, 0.5]  # as the ViT's were trained


@pytest.mark.parametrize("arch", ["resnet18", "vit_tiny"])
def test_without_a_network_one_line_says_what_to_do(arch, tmp_path, monkeypatch):
    def unreachable(*args, **options):
        raise urllib.error.URLError("[Errno -2] Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(InputError, match="no ImageNet weights for .* can be reached .*as --weights") as error:
        find_source("SUPERVISED", arch, 0, tmp_path)
    assert "\n" not in str(error.value) and not list(tmp_path.rglob("*.safetensors"))
