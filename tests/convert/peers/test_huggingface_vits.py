"""transformers' plain vision transformers: ViT (as DINO's files are), MAE, MSN, DeiT, DINOv2, I-JEPA."""

from __future__ import annotations

import torch

from tests.convert.peers.case import check, every
from tests.convert.peers.huggingface import (
    VIT,
    case,
    directory,
    first_token,
    in_memory,
    legacy,
    mean,
    sharded,
    tensors,
    trained,
)

TINY, SMALL = "vit_tiny_patch16_224", "vit_small_patch16_224"
IMAGE = {**VIT, "image_size": 64}
READ = {"img_size": 64, "norm_eps": 1e-12}
V2 = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "image_size": 56, "patch_size": 14}
MAE = {
    **IMAGE,
    "mask_ratio": 0.0,
    "decoder_hidden_size": 64,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 64,
}
NO_MASK = {"noise": torch.arange(16.0)[None]}


def vit(file: str, name: str = "ViTModel", config: str = "ViTConfig", arch: str = TINY, **more):
    more = {"settings": IMAGE, "feature": first_token, "options": READ, **more}
    return case(file, name, config, arch, **more)


CASES = [
    vit("ViT, directory"),
    vit("ViT, directory, sharded", save=sharded),
    vit("ViT, directory with pytorch_model.bin", save=legacy),
    vit("ViT, model.safetensors alone", save=tensors, assumed=frozenset({"num_heads", "norm_eps", "preprocess"})),
    vit("ViT, `torch.save(state_dict)`", save=in_memory, assumed=frozenset({"num_heads", "norm_eps", "preprocess"})),
    vit("ViT, classifier, Trainer's checkpoint directory", "ViTForImageClassification", body="vit", save=trained),
    vit("ViT, classifier, `torch.save(state_dict)`", "ViTForImageClassification", body="vit", save=in_memory),
    vit("ViT, masked image modelling, directory", "ViTForMaskedImageModeling", body="vit"),
    vit("ViT with 12 heads, directory", settings={**IMAGE, "num_attention_heads": 12},
        options={**READ, "num_heads": 12}),
    vit("ViT with epsilon 1e-6, directory", settings={**IMAGE, "layer_norm_eps": 1e-6},
        options={"img_size": 64, "norm_eps": None}),
    vit("ViT without biases of query, key and value, directory", settings={**IMAGE, "qkv_bias": False},
        options={**READ, "qkv_bias": False}),
    vit("ViT with quick GELU, directory", settings={**IMAGE, "hidden_act": "quick_gelu"},
        options={**READ, "act_layer": "quick_gelu"}),
    vit("DINO's ViT-S/16, directory", arch=SMALL, settings={"hidden_size": 384, "num_attention_heads": 6,
        "intermediate_size": 1536}, size=224, options={"norm_eps": 1e-12}),
    vit("DINO's ViT-S/8, directory", arch="vit_small_patch8_224", settings={"hidden_size": 384,
        "num_attention_heads": 6, "intermediate_size": 1536, "patch_size": 8, "image_size": 64}),
    vit("ViT of 6 blocks, directory", settings={**IMAGE, "num_hidden_layers": 6}, options={**READ, "depth": 6}),
    vit("MAE, pre-training, directory", "ViTMAEForPreTraining", "ViTMAEConfig", body="vit", settings=MAE, call=NO_MASK),
    vit("MAE, pre-training, `torch.save(state_dict)`", "ViTMAEForPreTraining", "ViTMAEConfig", body="vit",
        settings=MAE, call=NO_MASK, save=in_memory),
    vit("MAE, encoder, directory", "ViTMAEModel", "ViTMAEConfig", settings=MAE, call=NO_MASK),
    vit("MSN, directory", "ViTMSNModel", "ViTMSNConfig", options={"img_size": 64}),
    vit("DeiT, distilled, directory", "DeiTForImageClassificationWithTeacher", "DeiTConfig",
        "deit_tiny_distilled_patch16_224", body="deit",
        feature=lambda output: (output.last_hidden_state[:, 0] + output.last_hidden_state[:, 1]) / 2),
    vit("DeiT, `torch.save(state_dict)`", "DeiTModel", "DeiTConfig", "deit_tiny_distilled_patch16_224", save=in_memory,
        feature=lambda output: (output.last_hidden_state[:, 0] + output.last_hidden_state[:, 1]) / 2),
    vit("I-JEPA, directory", "IJepaModel", "IJepaConfig", feature=mean,
        options={**READ, "class_token": False, "global_pool": "avg", "fc_norm": False}),
    vit("DINOv2, directory", "Dinov2Model", "Dinov2Config", "vit_small_patch14_dinov2", settings=V2, size=56,
        options={"img_size": 56, "norm_eps": None}),
    vit("DINOv2, `torch.save(state_dict)`", "Dinov2Model", "Dinov2Config", "vit_small_patch14_dinov2", settings=V2,
        size=56, options={"img_size": 56}, save=in_memory),
    vit("DINOv2, classifier, directory", "Dinov2ForImageClassification", "Dinov2Config", "vit_small_patch14_dinov2",
        settings=V2, size=56, body="dinov2", options={"img_size": 56}),
    vit("DINOv2 with registers, directory", "Dinov2WithRegistersModel", "Dinov2WithRegistersConfig",
        "vit_small_patch14_reg4_dinov2", settings=V2, size=56, options={"img_size": 56, "norm_eps": None}),
    *(
        vit(f"DINOv2 with gated layers, {name}", "Dinov2Model", "Dinov2Config", "vit_giant_patch14_dinov2",
            settings={**V2, "use_swiglu_ffn": True, "num_hidden_layers": 4}, size=56, save=save,
            options={"embed_dim": 384, "depth": 4, "num_heads": 6, "img_size": 56})
        for name, save in {"directory": directory, "`torch.save(state_dict)`": in_memory}.items()
    ),
]  # fmt: skip


@every(CASES)
def test_reads_what_the_project_computes(case, tmp_path):
    check(case, tmp_path)
