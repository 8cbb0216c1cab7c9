"""timm: a backbone file that `create_model(arch, num_classes=0, checkpoint_path=...)` loads strictly."""

from __future__ import annotations

import warnings
from typing import Any

from convert.naming.rules import CLASSES, IDENTITY
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
                revision=checkpoint.revision,
            )

    def expected(self, checkpoint):
        from pretrain.backbones import meta_backbone

        return meta_backbone(checkpoint.arch, **checkpoint.options).state_dict()

    def features(self, path, checkpoint, images):
        import timm

        from convert.verify import timm_features
        from pretrain.backbones import set_norm_eps

        options = dict(checkpoint.options)
        norm_eps = options.pop("norm_eps", None)  # ours; the rest are timm's
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model: Any = timm.create_model(checkpoint.arch, num_classes=0, checkpoint_path=str(path), **options)
        if norm_eps is not None:
            set_norm_eps(model, norm_eps)
        model.arch = checkpoint.arch
        return timm_features(model, images), "loaded by timm.create_model, strictly"

    def snippet(self, out, checkpoint):
        from pretrain.backbones import meta_backbone, norms_of, own_size

        given = {key: value for key, value in checkpoint.options.items() if key != "norm_eps"}
        size, network = checkpoint.preprocess["size"], meta_backbone(checkpoint.arch, **checkpoint.options)
        if own_size(network) != (size, size) and getattr(network, "dynamic_img_size", False):
            given["dynamic_img_size"] = True  # its positions are of another size than its images
        options = "".join(f", {key}={value!r}" for key, value in given.items())
        norms = ""
        if "norm_eps" in checkpoint.options:
            types = sorted({type(norm).__name__ for norm in norms_of(network)})
            norms = f"""for module in model.modules():
    if type(module).__name__ in {types}:
        module.eps = {checkpoint.options["norm_eps"]}
"""
        text = f'''# {origin(checkpoint)} for timm.
import timm
from torchvision import transforms

model = timm.create_model("{checkpoint.arch}", num_classes=0, checkpoint_path="{out.resolve()}"{options}).eval()
{norms}{transform(checkpoint)}'''
        return text, ".py"


TARGET = Timm()
