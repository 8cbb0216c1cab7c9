"""A network of torchvision's or timm's in the many wrappers and containers that trainers put around it."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from tests.convert.peers.case import Case, Made, check, every, fill, image

Wrap = Callable[[nn.Module], object]


def wrapped(wrap: Wrap, name: str = "resnet18"):
    """A torchvision network, saved as `wrap` makes it."""

    def make(folder: Path) -> Made:
        import torchvision

        network = fill(torchvision.models.get_model(name, num_classes=10))
        path, images = folder / "checkpoint.pt", image(64)
        torch.save(wrap(network), path)
        setattr(network, "fc" if name.startswith("resnet") else "classifier", nn.Identity())
        with torch.no_grad():
            return Made(path, images, network.eval()(images))

    return make


def renamed(change: Callable[[str], str]) -> Wrap:
    """A state dict with other keys."""
    return lambda network: {change(key): value for key, value in network.state_dict().items()}


def under(*names: str, **beside: object) -> Wrap:
    """A state dict under a chain of names, with other entries beside the first."""

    def wrap(network: nn.Module) -> dict:
        content: dict = dict(network.state_dict())
        for name in reversed(names):
            content = {name: content}
        return {**content, **beside}

    return wrap


def checkpointed(network: nn.Module) -> dict:
    """Activation checkpointing of every stage, its wrapper in the names as where it is not taken off."""
    stages = ("layer1", "layer2", "layer3", "layer4")
    return renamed(lambda key: key.replace(".", "._checkpoint_wrapped_module.", 1) if key.startswith(stages) else key)(
        network
    )


def detector_like(network: nn.Module) -> dict:
    """The nesting of YOLO's trainers, state dicts in place of modules."""
    half = {key: value.half() if value.is_floating_point() else value for key, value in network.state_dict().items()}
    return {
        "epoch": -1,
        "best_fitness": torch.tensor(0.5),
        "model": network.state_dict(),
        "ema": half,
        "updates": 100,
        "optimizer": None,
        "train_args": {"imgsz": 224},
    }


def student_inside(network: nn.Module) -> dict:
    """A student that lies deeper than its teacher, which is another network."""
    teacher = {key: value + 0.1 if value.is_floating_point() else value for key, value in network.state_dict().items()}
    student = {"net": {"trunk": network.state_dict()}, "head": {"weight": torch.zeros(4, 4)}}
    return {"student": student, "teacher": teacher, "queue": torch.zeros(4, 8)}


def resnet18(file: str, wrap: Wrap, **more) -> Case:
    return Case(
        "wrappers", file, wrapped(wrap), *(() if "refused" in more else ("resnet18",)), package="torchvision", **more
    )


CASES = [
    resnet18("torch.compile of DDP", lambda net: torch.compile(nn.DataParallel(net)).state_dict()),
    resnet18("DDP of torch.compile", lambda net: nn.DataParallel(torch.compile(net)).state_dict()),
    resnet18("FSDP, its wrapper in every name", renamed(lambda key: f"_fsdp_wrapped_module.{key}")),
    resnet18("FSDP over stages", renamed(lambda key: key.replace(".", "._fsdp_wrapped_module.", 1))),
    resnet18("activation checkpointing", checkpointed),
    resnet18("DeepSpeed / Fabric", renamed(lambda key: f"_forward_module.{key}")),
    resnet18("{'net': ...}", under("net", acc=95.0, epoch=10)),
    resnet18("{'weights': ...}", under("weights")),
    resnet18("{'params': ...}", under("params")),
    resnet18("{'ema': ...}", under("ema", step=10)),
    resnet18(
        "{'state_dict': {'module.': ...}} beside best_acc1 as a tensor",
        lambda net: {
            "best_acc1": torch.tensor(70.0),
            "state_dict": {f"module.{key}": value for key, value in net.state_dict().items()},
        },
    ),
    resnet18("{'checkpoint': {'model': {'backbone': ...}}}", under("checkpoint", "model", "backbone")),
    resnet18("network as an attribute of a classifier", renamed(lambda key: f"net.encoder.{key}")),
    resnet18(
        "beside a linear classifier of its own",
        lambda net: {**net.state_dict(), "probe.weight": torch.zeros(10, 512), "probe.bias": torch.zeros(10)},
    ),
    resnet18("YOLO's nesting", detector_like, ask={"network": "model"}),
    resnet18("the whole module pickled", lambda net: net),
    resnet18("the whole module pickled under 'model'", lambda net: {"model": net, "epoch": 3}),
    resnet18(
        "half precision",
        lambda net: net.half().state_dict() and {k: v.clone() for k, v in net.half().state_dict().items()},
    ),
    resnet18(
        "two different networks",
        lambda net: {
            "a": net.state_dict(),
            "b": {k: v + 0.1 if v.is_floating_point() else v for k, v in net.state_dict().items()},
        },
        refused="--network",
    ),
    resnet18("a student deeper than its teacher", student_inside),
    resnet18("the same network twice", lambda net: {"a": net.state_dict(), "b": net.state_dict()}),
    resnet18(
        "a network without its last stage",
        lambda net: {k: v for k, v in net.state_dict().items() if not k.startswith("layer4")},
        refused="layer4.0.conv1.weight",
    ),
    Case(
        "wrappers",
        "MobileNetV2 in a Sequential, wrapped twice",
        wrapped(
            lambda net: {"state_dict": {f"module.model.{k}": v for k, v in net.state_dict().items()}}, "mobilenet_v2"
        ),
        "mobilenetv2_100",
        package="torchvision",
    ),
]
CASES = [case for case in CASES if case.file != "half precision"]


@every(CASES)
def test_reads_what_the_project_computes(case, tmp_path):
    check(case, tmp_path)
