"""torchvision: its own networks and names, loaded strictly once the classifier is an Identity."""

from __future__ import annotations

from convert.naming import mobilenet, resnet, vit
from convert.targets import Target, origin, refuse_options, refuse_vit_extras, renamed, transform
from sslight.core.errors import InputError


class Torchvision(Target):
    name = "torchvision"
    suffixes = (".pth", ".pt")
    matrix = {
        "ResNet18/34/50/101/152": "yes",
        "MobileNetV2": "yes",
        "MobileNetV2, deeper": "no: torchvision has no depth multiplier",
        "ViT-B": "at patch 16 and 224 px, no extra tokens, no layer scale",
        "ViT-Ti/S": "no: torchvision has no ViT-Ti or ViT-S",
        "other timm network": "no: its torchvision names are not in this project's tables",
    }

    def rename(self, checkpoint):
        from convert.reader import vit_heads

        kind, state = checkpoint.kind, checkpoint.state
        usual: tuple[str, ...] = ("norm_eps",)
        if kind == "vit":
            refuse_vit_extras(checkpoint, "torchvision's ViT")
            patch, positions = state["patch_embed.proj.weight"].shape[-1], state["pos_embed"].shape[1]
            if patch != 16 or positions != 197:
                raise InputError(
                    f"{checkpoint.arch} cannot go to torchvision: its vit_b_16 has patch 16 and "
                    f"197 positions, not patch {patch} and {positions}"
                )
            if checkpoint.options.get("num_heads") == vit_heads(checkpoint.arch):
                usual = ("norm_eps", "num_heads")
        refuse_options(checkpoint, "torchvision's network", usual)
        tables = {
            "resnet": resnet.RESNET_TIMM,
            "mobilenetv2": mobilenet.MOBILENET_TORCHVISION,
            "vit": vit.VIT_TORCHVISION,
        }
        return renamed(checkpoint, tables[kind])

    def expected(self, checkpoint):
        import torch

        from convert.verify import torchvision_network

        with torch.device("meta"):
            return torchvision_network(checkpoint.arch)[0].state_dict()

    def features(self, path, checkpoint, images):
        import torch

        from convert.verify import torchvision_features, torchvision_network
        from pretrain.backbones import set_norm_eps

        network, stages, view = torchvision_network(checkpoint.arch)
        if "norm_eps" in checkpoint.options:
            set_norm_eps(network, checkpoint.options["norm_eps"])
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), strict=True)
        return torchvision_features(network, stages, view, images), "loaded by torchvision's network, strictly"

    def snippet(self, out, checkpoint):
        arch, kind = checkpoint.arch, checkpoint.kind
        norm, given, imports = "LayerNorm" if kind == "vit" else "BatchNorm2d", [], ""
        if "norm_eps" in checkpoint.options:
            imports = "import functools\n\n"
            given = [f"norm_layer=functools.partial(torch.nn.{norm}, eps={checkpoint.options['norm_eps']})"]
        if kind == "mobilenetv2":
            build, head, given = "mobilenet_v2", "classifier", [f"width_mult={int(arch[-3:]) / 100}", *given]
        else:
            build, head = ("vit_b_16", "heads") if kind == "vit" else (arch, "fc")
        text = f'''# {origin(checkpoint)} for torchvision.
{imports}import torch
import torchvision
from torchvision import transforms

model = torchvision.models.{build}({", ".join(given)})
model.{head} = torch.nn.Identity()
model.load_state_dict(torch.load("{out.resolve()}", weights_only=True), strict=True)
model.eval()
{transform(checkpoint)}'''
        return text, ".py"


TARGET = Torchvision()
