"""transformers' other vision transformers, and timm's networks inside transformers."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.convert.peers.case import Case, Made, check, every, image
from tests.convert.peers.huggingface import PROJECT, VIT, case, directory, fill, in_memory, mean, network

V3 = {**VIT, "num_register_tokens": 4, "image_size": 64}
XSMALL = {"hidden_size": 256, "num_hidden_layers": 10, "num_attention_heads": 4, "intermediate_size": 1024,
          "patch_size": 16, "image_size": 64, "hidden_act": "gelu"}  # fmt: skip
BEIT = {**VIT, "num_hidden_layers": 2, "use_relative_position_bias": True, "image_size": 64}
TOLD = {"arch": "beit_base_patch16_224", "options": {"embed_dim": 192, "depth": 2, "num_heads": 3}}


def wrapped(name: str, arch: str, **settings):
    """transformers' wrapper around a network of timm's."""

    def make(folder: Path) -> Made:
        model = fill(network(name, "TimmWrapperConfig", architecture=arch, **settings))
        images = image(64)
        with torch.no_grad():
            features = model.timm_model.forward_head(model.timm_model.forward_features(images), pre_logits=True)
        return Made(directory(model, folder), images, features)

    return make


def pushed(folder: Path) -> Made:
    """timm's own directory for the hub."""
    import timm
    from timm.models import save_for_hf

    model = fill(timm.create_model("mobilenetv2_035", num_classes=10))
    save_for_hf(model, folder / "saved")
    images = image(64)
    with torch.no_grad():
        return Made(folder / "saved", images, model.forward_head(model.forward_features(images), pre_logits=True))


CASES = [
    case("DINOv3 ViT-Ti, directory", "DINOv3ViTModel", "DINOv3ViTConfig", "vit_tiny_patch16_dinov3_qkvb", settings=V3,
         options={"global_pool": "token"}),
    case("DINOv3 ViT-S, `torch.save(state_dict)`", "DINOv3ViTModel", "DINOv3ViTConfig", "vit_small_patch16_dinov3_qkvb",
         settings={**V3, "hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}, save=in_memory,
         options={"global_pool": "token"}),
    case("DINOv3 ViT-S+, directory", "DINOv3ViTModel", "DINOv3ViTConfig", "vit_small_plus_patch16_dinov3_qkvb",
         settings={**V3, "hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536, "use_gated_mlp": True,
                   "hidden_act": "silu"}, options={"global_pool": "token"}),
    case("Swin-T, directory", "SwinModel", "SwinConfig", "swin_tiny_patch4_window7_224", size=224),
    case("Swin-T, masked image modelling, directory", "SwinForMaskedImageModeling", "SwinConfig",
         "swin_tiny_patch4_window7_224", size=224, body="swin", feature=mean),
    case("Swin-T, `torch.save(state_dict)`", "SwinModel", "SwinConfig", "swin_tiny_patch4_window7_224", size=224,
         save=in_memory),
    case("BEiT, two blocks, directory", "BeitModel", "BeitConfig", "beit_base_patch16_224", settings=BEIT, ask=TOLD,
         options={"img_size": 64, "norm_eps": 1e-12}),
    case("BEiT, two blocks, `torch.save(state_dict)`", "BeitModel", "BeitConfig", "beit_base_patch16_224",
         settings=BEIT, save=in_memory, ask={**TOLD, "options": {**TOLD["options"], "img_size": 64}}),
    case("Data2Vec, two blocks, classifier, directory", "Data2VecVisionForImageClassification",
         "Data2VecVisionConfig", "beit_base_patch16_224", body="data2vec_vision", settings=BEIT, ask=TOLD,
         options={"img_size": 64, "norm_eps": 1e-12}),
    case("CLIP's image tower, directory", "CLIPVisionModel", "CLIPVisionConfig", "vit_base_patch16_clip_224",
         settings=XSMALL, options={"img_size": 64}),
    case("CLIP's image tower with quick GELU, directory", "CLIPVisionModel", "CLIPVisionConfig",
         "vit_base_patch16_clip_224", settings={**XSMALL, "hidden_act": "quick_gelu"},
         options={"img_size": 64, "act_layer": "quick_gelu"}),
    case("CLIP, both towers, directory", "CLIPModel", "CLIPConfig", "vit_base_patch16_clip_224", body="vision_model",
         settings={"vision_config": XSMALL, "text_config": {"hidden_size": 64, "num_hidden_layers": 1,
                   "num_attention_heads": 1, "intermediate_size": 64, "vocab_size": 99}}, options={"img_size": 64}),
    case("SigLIP's image tower, directory", "SiglipVisionModel", "SiglipVisionConfig", "vit_base_patch16_siglip_224",
         settings={"image_size": 64}, options={"img_size": 64, "act_layer": "gelu_tanh"}),
    Case(PROJECT, "TimmWrapper around ResNet-18, directory", wrapped("TimmWrapperModel", "resnet18"), "resnet18",
         package="transformers"),
    Case(PROJECT, "TimmWrapper around ViT-Ti of 12 heads, classifier, directory",
         wrapped("TimmWrapperForImageClassification", "vit_tiny_patch16_224",
                 model_args={"num_heads": 12, "img_size": 64}),
         "vit_tiny_patch16_224", {"num_heads": 12, "img_size": 64}, package="transformers"),
    Case("timm 1.0", "`save_for_hf`, directory", pushed, "mobilenetv2_035"),
]  # fmt: skip


@every(CASES)
def test_reads_what_the_project_computes(case, tmp_path):
    check(case, tmp_path)
