"""`--weights`: random by its seed, supervised ones from torchvision or timm, and a clear line without a network."""

import urllib.error

import huggingface_hub
import pytest
import torch
import torchvision

from benchmarks.detection import coco, weights as coco_weights
from benchmarks.detection.command import EVALUATION
from benchmarks.detection.weights import find_source
from pretrain.backbones import build_backbone
from sslight.core.checkpoint import save_backbone
from sslight.core.errors import InputError
from tests.benchmarks.detection.coco_sets import write_set


def test_random_is_explicit_and_seeded(tmp_path):
    first, again, other = (
        find_source("random", "resnet18", seed, tmp_path / str(i)).state["conv1.weight"]
        for i, seed in enumerate((0, 0, 1))
    )
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
    source = find_source("SUPERVISED", arch, 0, tmp_path / "out")
    assert source.method == "supervised"
    assert source.preprocess["mean"] == [0.485, 0.456, 0.406]
    ours = build_backbone(arch)
    ours.load_state_dict(source.state)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = torch.nn.Sequential(*list(network.children())[:-1])(images)
        if name == "mobilenet_v2":
            theirs = theirs.mean((2, 3))
        assert torch.allclose(ours.eval()(images), theirs.flatten(1), atol=1e-5)


@pytest.mark.parametrize("arch", ["resnet18", "vit_tiny"])
def test_without_a_network_one_line_says_what_to_do(arch, tmp_path, monkeypatch):
    def unreachable(*args, **options):
        raise urllib.error.URLError("[Errno -2] Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(
        InputError, match="SUPERVISED .*fetch.*put it into|hf:timm/vit_tiny.* cannot be fetched"
    ) as error:
        find_source("SUPERVISED", arch, 0, tmp_path)
    assert "\n" not in str(error.value) and not list(tmp_path.rglob("*.safetensors"))


CAFFE = {"mean": [0.406, 0.456, 0.485], "std": [1 / 255] * 3, "color_order": "BGR", "size": 224}
BY_HAND = {"mmdet": ("model.data_preprocessor.bgr_to_rgb", "True"), "detectron2": ("INPUT.FORMAT", "RGB")}


@pytest.mark.parametrize("framework", ["mmdet", "detectron2"])
def test_images_are_fed_as_the_backbone_was_trained(framework, tmp_path):
    pytest.importorskip(framework)
    save_backbone(
        tmp_path / "r18.safetensors",
        build_backbone("resnet18").state_dict(),
        arch="resnet18",
        method="unknown",
        preprocess=CAFFE,
    )
    place = write_set(tmp_path / "set")
    for words, order in (((), "BGR"), (BY_HAND[framework], "RGB")):
        setup = coco.configure(
            EVALUATION.check(
                [
                    "--framework",
                    framework,
                    "--task",
                    "det",
                    "--weights",
                    str(tmp_path / "r18.safetensors"),
                    "DATA.PATH_TO_DATA_DIR",
                    str(place),
                    "OUTPUT_DIR",
                    str(tmp_path / "out"),
                    *words,
                ]
            )
        )
        recipe = coco.feed(setup, setup.source.preprocess)
        assert recipe["color_order"] == order
        expected = [103.53, 116.28, 123.675] if order == "BGR" else [123.675, 116.28, 103.53]
        assert recipe["mean"] == pytest.approx(expected)
        assert setup.framework.recipe_of(setup.cfg)["std"] == pytest.approx(
            [1.0] * 3 if order == "BGR" else [58.395, 57.12, 57.375]
        )


@pytest.mark.detectron2
def test_given_heads_reach_detectron2(tmp_path):
    from detectron2.layers import ShapeSpec

    from convert.targets.detectron2_backbones import build_vitdet_backbone

    torch.save(build_backbone("vit_tiny", num_heads=12).state_dict(), tmp_path / "vit.pth")
    place = write_set(tmp_path / "set")
    setup = coco.configure(
        EVALUATION.check(
            [
                "--framework",
                "detectron2",
                "--task",
                "det",
                "--weights",
                str(tmp_path / "vit.pth"),
                "--set",
                "num_heads=12",
                "DATA.PATH_TO_DATA_DIR",
                str(place),
                "OUTPUT_DIR",
                str(tmp_path / "out"),
            ]
        )
    )
    weights = coco_weights.prepare("vit.pth", setup.source, "detectron2", "vitdet", tmp_path)
    setup.framework.adapt(setup.cfg, setup.settings, setup.data, weights, 1, 0, tmp_path)
    net = build_vitdet_backbone(setup.cfg, ShapeSpec(channels=3)).net
    assert net.blocks[0].attn.num_heads == 12 and weights.checkpoint["options"] == {"num_heads": 12}
    assert "num_heads" not in setup.source.assumed


def test_options_make_another_random_network(tmp_path):
    source = find_source("random", "vit_tiny", 0, tmp_path, "num_heads=12")
    plain = find_source("random", "vit_tiny", 0, tmp_path)
    assert source.options == {"num_heads": 12} and plain.options == {}
    assert torch.equal(source.state["pos_embed"], plain.state["pos_embed"])
