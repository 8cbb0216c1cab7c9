"""ONNX for a device: the backbone's deployed form, free batch and image size, checked with onnxruntime."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convert.families import Checkpoint
from convert.naming.rules import CLASSES, IDENTITY
from convert.targets import Target, Verified, origin, renamed, transform
from sslight.core.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn


class Onnx(Target):
    name = "onnx"
    suffixes = (".onnx",)
    options = ("stages",)
    matrix = dict.fromkeys(CLASSES, "yes")

    def rename(self, checkpoint, stages=False):
        return renamed(checkpoint, IDENTITY)

    def save(self, path, outgoing, checkpoint, picture):
        return export(path, checkpoint, picture=picture, **outgoing.options)

    def snippet(self, out, checkpoint, stages=False):
        text = f'''# {origin(checkpoint)} for onnxruntime: images [N, 3, H, W] float32, N, H and W free.
import onnxruntime
from torchvision import transforms

session = onnxruntime.InferenceSession("{out.resolve()}")
{transform(checkpoint)}# features = session.run(["features"], {{"images": batch.numpy()}})[0]
'''
        return text, ".py"


def export(path: Path, checkpoint: Checkpoint, *, stages: bool = False, picture: Path | str | None = None) -> Verified:
    """Write `path` and check it against torch's network, as it was read, at two batch and image sizes.

    The facts: `form` (see `convert.deployment.Deployed`), its `exported_parameters` and `gflops` (multiply-adds at the
    network's own image size), `inputs`, `outputs`.

    Raises InputError where onnx is not installed, the network does not export, or features differ by more than 1e-4.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - the exporter needs it
    except ImportError as error:
        raise InputError(f"--to onnx needs the package '{error.name}': pip install -e '.[onnx]'") from None
    import torch

    from convert.deployment import TOLERANCE, deployed_form, multiply_adds
    from convert.reader import network_of
    from convert.verify import differences, image_for

    # A graph for any image size cannot leave the positions of one size alone, as the published resizing does.
    options = {"dynamic_img_size": True, "pos_resize": "timm"} if checkpoint.kind == "vit" else {}
    network = network_of(checkpoint, **options).eval()
    outputs = _outputs(network, stages)
    example = image_for(checkpoint, picture)
    with torch.no_grad():
        maps = len(outputs(example)) - 1
    names = ["features", *(f"stage{number}" for number in range(maps))]
    deployed = deployed_form(network, example, lambda network, images: _outputs(network, stages)(images))
    size = int(checkpoint.preprocess["size"])
    flops = multiply_adds(deployed.network, torch.zeros(1, 3, size, size))  # before the export, which patches torch
    _write(_outputs(deployed.network, stages), example, path, names)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    verified = Verified(
        facts={
            "form": deployed.form,
            "exported_parameters": sum(parameter.numel() for parameter in deployed.network.parameters()),
            "gflops": round(flops / 1e9, 4),
            "inputs": ["images [N, 3, H, W]"],
            "outputs": names,
        }
    )
    if deployed.form == "deployed":
        verified.differences["torch's deployed form"] = {"largest": deployed.difference}
        verified.steps.append(
            f"training branches and norms folded by timm: largest relative difference {deployed.difference:.2g}"
        )
    elif deployed.form == "training":
        verified.steps.append(f"the TRAINING form is exported, which is larger and slower: {deployed.note}")
    for images in (example, _other(example, _step(checkpoint))):
        with torch.no_grad():
            expected = dict(zip(names, outputs(images), strict=True))
        actual = dict(zip(names, map(torch.from_numpy, session.run(None, {"images": images.numpy()})), strict=True))
        shape = "x".join(map(str, images.shape))
        seen = differences(expected, actual)
        wrong = {name: value for name, value in seen.items() if not value <= TOLERANCE}
        if wrong:
            raise InputError(f"the ONNX file gives other features than torch at {shape}: {wrong}")
        verified.differences[f"onnxruntime at {shape}"] = seen
        verified.steps.append(f"run by onnxruntime on {shape}: largest relative difference {max(seen.values()):.2g}")
    if checkpoint.preprocess.get("pos_resize", "timm") != "timm":
        verified.steps.append(
            f"positions for other sizes than {checkpoint.preprocess['size']} px are resized with "
            "timm's antialiasing, not as in training (features differ by about 1%)"
        )
    return verified


def _outputs(network: Any, stages: bool) -> nn.Module:
    """In eval mode: images [N, 3, H, W] -> the pooled feature [N, width], then with `stages` every map [N, C, h, w]."""
    from torch import nn

    from pretrain.backbones import stage_features

    class Outputs(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            maps = tuple(stage_features(self.network, images)) if stages else ()
            return (self.network(images), *maps)

    return Outputs().eval()


def _step(checkpoint: Checkpoint) -> int:
    """Image sides are multiples of this: a network's patch, else 1."""
    weight = checkpoint.state.get("patch_embed.proj.weight")
    return 1 if weight is None else weight.shape[-1]


def _other(example: Tensor, step: int) -> Tensor:
    """A batch of another count and size than the example's."""
    import torch

    height, width = example.shape[-2] - 2 * max(step, 8), example.shape[-1] + max(step, 8)
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 3, height, width, generator=generator)


def _write(outputs: nn.Module, example: Tensor, path: Path, names: list[str]) -> None:
    import torch

    sides = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    batch = torch.cat([example, example])  # a batch of one would be taken for a constant
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # the exporter traces thousands of lines, slow where something listens
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                outputs,
                (batch,),
                path,
                dynamo=True,
                input_names=["images"],
                output_names=names,
                dynamic_shapes=({0: torch.export.Dim.DYNAMIC, **sides},),
                external_data=False,
            )
    except Exception as error:  # noqa: BLE001 - the exporter raises many kinds; each means this network does not export
        raise InputError(
            f"this network does not export to ONNX with free sizes ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]})"
        ) from None
    finally:
        logging.disable(level)


TARGET = Onnx()  # type: ignore[abstract]  # `save` verifies: nobody calls `expected` and `features`
