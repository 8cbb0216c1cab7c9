"""Checkpoints of timm's own training script (`timm.utils.CheckpointSaver`), and networks that have twins."""

from argparse import Namespace
from pathlib import Path

import torch

from tests.convert.peers.case import Case, Made, check, every, fill, image


def trained(name: str, read: str = "model"):
    """What the saver of timm's train.py writes: arch, args, optimizer, the network and its average."""

    def make(folder: Path) -> Made:
        import timm
        from timm.utils import CheckpointSaver, ModelEmaV3

        model = fill(timm.create_model(name, num_classes=10))
        average = ModelEmaV3(model)
        fill(average.module, "ema.")
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        saver = CheckpointSaver(
            model,
            optimizer,
            args=Namespace(model=name, dataset="", num_classes=10, opt="sgd"),
            model_ema=average,
            checkpoint_dir=str(folder),
        )
        saver.save_checkpoint(0, metric=1.0)
        images, network = image(64), {"model": model, "ema": average.module}[read]
        return Made(folder / "last.pth.tar", images, _features(network, images))

    return make


def bare(name: str):
    """A state dict alone."""

    def make(folder: Path) -> Made:
        import timm

        model = fill(timm.create_model(name))
        torch.save(model.state_dict(), folder / "model.pth")
        return Made(folder / "model.pth", image(64), _features(model, image(64)))

    return make


def _features(network: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    network.reset_classifier(0)
    with torch.no_grad():
        return network.eval()(images)


def case(file: str, make, arch: str = "", **more) -> Case:
    return Case("timm", file, make, arch, package="timm", **more)


CASES = [
    *(
        case(f"training checkpoint of {name}", trained(name), name)
        for name in (
            "resnet18",
            "mobilenetv2_100",
            "mobilenetv3_small_100",
            "efficientnet_lite0",
            "repvit_m0_9",
            "convnext_atto",
            "resnetblur50",
        )
    ),
    case(
        "training checkpoint of resnet18, the average", trained("resnet18", "ema"), "resnet18", ask={"network": "ema"}
    ),
    case("state dict of resnetblur50", bare("resnetblur50"), "resnetblur50", ask={"arch": "resnetblur50"}),
    case("state dict of resnet50", bare("resnet50"), "resnet50", assumed=frozenset({"arch", "preprocess"})),
    case("state dict of efficientnet_b0", bare("efficientnet_b0"), refused="tf_efficientnet_b0"),
    case(
        "state dict of efficientnet_b0, named",
        bare("efficientnet_b0"),
        "efficientnet_b0",
        ask={"arch": "efficientnet_b0"},
    ),
    case(
        "state dict of tf_efficientnet_b0, named",
        bare("tf_efficientnet_b0"),
        "tf_efficientnet_b0",
        ask={"arch": "tf_efficientnet_b0"},
    ),
]


@every(CASES)
def test_reads_what_the_project_computes(case, tmp_path):
    check(case, tmp_path)
