"""The files of its reference training (references/classification): `model`, `model_ema`."""

from argparse import Namespace
from pathlib import Path

import torch
from torch import nn

from tests.convert.peers.case import Case, Made, check, every, fill, image


def pooled(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The feature before the last linear layer."""
    last = "fc" if hasattr(network, "fc") else "classifier"
    head = getattr(network, last)
    if isinstance(head, nn.Sequential):
        head[-1] = nn.Identity()
    else:
        setattr(network, last, nn.Identity())
    with torch.no_grad():
        return network.eval()(images)


def reference(name: str, averaged: bool = False, read: str = "model"):
    """The dict that references/classification/train.py saves, with exponential averaging if asked for."""

    def make(folder: Path) -> Made:
        import torchvision

        model = fill(torchvision.models.get_model(name, num_classes=10))
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 30)
        content = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "lr_scheduler": scheduler.state_dict(),
            "epoch": 89,
            "args": Namespace(model=name, data_path="/data", lr=0.1, weights=None, model_ema=averaged),
            "scaler": {"scale": 65536.0, "growth_factor": 2.0},
        }
        networks = {"model": model}
        if averaged:
            ema = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
            ema.update_parameters(model)
            networks["ema"] = fill(ema.module, "ema.")
            content["model_ema"] = ema.state_dict()
        path = folder / "model_89.pth"
        torch.save(content, path)
        images = image(64)
        return Made(path, images, pooled(networks[read], images))

    return make


def state_dict(name: str, drop: str = ""):
    """A network's state dict alone, perhaps without one of its tensors."""

    def make(folder: Path) -> Made:
        import torchvision

        model = fill(torchvision.models.get_model(name))
        path, images = folder / f"{name}.pth", image(64)
        torch.save({key: value for key, value in model.state_dict().items() if key != drop}, path)
        return Made(path, images, pooled(model, images))

    return make


def case(file: str, make, arch: str = "", **more) -> Case:
    return Case("torchvision, reference training", file, make, arch, package="torchvision", **more)


CASES = [
    case("ResNet-18", reference("resnet18"), "resnet18"),
    case("with EMA, ResNet-18", reference("resnet18", averaged=True), "resnet18"),
    case(
        "with EMA, the average",
        reference("resnet18", averaged=True, read="ema"),
        "resnet18",
        ask={"network": "ema"},
    ),
    case("with EMA, MobileNetV2", reference("mobilenet_v2", averaged=True), "mobilenetv2_100"),
    case("state dict of ResNet-50", state_dict("resnet50"), "resnet50", assumed=frozenset({"preprocess", "arch"})),
    case("state dict of DenseNet-121", state_dict("densenet121"), "densenet121"),
    case("state dict of ShuffleNetV2, which timm lacks", state_dict("shufflenet_v2_x0_5"), refused="no backbone in it"),
    case(
        "ResNet-18 without one tensor",
        state_dict("resnet18", "layer3.1.conv2.weight"),
        refused="missing 'layer3.1.conv2.weight'",
    ),
]


@every(CASES)
def test_reads_what_the_project_computes(case, tmp_path):
    check(case, tmp_path)
