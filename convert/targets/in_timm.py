"""timm: a backbone file that `create_model(arch, num_classes=0, checkpoint_path=...)` loads strictly."""

from __future__ import annotations

import warnings
from typing import Any

from convert.names import CLASSES, IDENTITY
from convert.targets import Target, origin, renamed, transform, writing


class Timm(Target):
    name = "timm"
    suffixes = (".safetensors",)
    matrix = dict.fromkeys(CLASSES, "yes")

    def rename(self, checkpoint):
        return renamed(checkpoint, IDENTITY)

    def save(self, path, outgoing, checkpoint, picture):
        from sslight.core.checkpoint import save_backbone

        with writing(path):
            save_backbone(
                path,
                outgoing.tensors,
                arch=checkpoint.arch,
                method=checkpoint.method,
                preprocess=checkpoint.preprocess,
                source_sha256=checkpoint.sha256,
                converted=f"{checkpoint.family} ({checkpoint.rule}), network {checkpoint.network}",
                options=checkpoint.options,
                assumed=checkpoint.assumed,
            )

    def expected(self, checkpoint):
        from pretrain.backbones import meta_backbone

        return meta_backbone(checkpoint.arch, **checkpoint.options).state_dict()

    def features(self, path, checkpoint, images):
        import timm

        from convert.verify import timm_features

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model: Any = timm.create_model(
                checkpoint.arch, num_classes=0, checkpoint_path=str(path), **checkpoint.options
            )
        model.arch = checkpoint.arch
        return timm_features(model, images), "loaded by timm.create_model, strictly"

    def snippet(self, out, checkpoint):
        options = "".join(f", {key}={value!r}" for key, value in checkpoint.options.items())
        text = f'''# {origin(checkpoint)} for timm.
import timm
from torchvision import transforms

model = timm.create_model("{checkpoint.arch}", num_classes=0, checkpoint_path="{out.resolve()}"{options}).eval()
{transform(checkpoint)}'''
        return text, ".py"


TARGET = Timm()
