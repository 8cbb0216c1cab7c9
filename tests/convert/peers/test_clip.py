"""Files of openai/CLIP, mlfoundations/open_clip and microsoft/unilm's BEiT, recorded from checkouts."""

from __future__ import annotations

from tests.convert.peers.case import Case, check, every, from_record

CLIP = "CLIP (openai/CLIP)"
OPEN = "OpenCLIP (mlfoundations/open_clip)"
QUICK = {"act_layer": "quick_gelu", "img_size": 64}

CASES = [
    Case(
        CLIP,
        "weights, width 192",
        from_record("clip_vit"),
        "vit_base_patch16_clip_224",
        {**QUICK, "embed_dim": 192, "depth": 2, "num_heads": 3},
    ),
    Case(
        CLIP,
        "weights, width of ViT-B/32, one layer",
        from_record("clip_vit_b32"),
        "vit_base_patch32_clip_224",
        {**QUICK, "depth": 1},
    ),
    Case(CLIP, "weights, ModifiedResNet smaller than timm's", from_record("clip_resnet"), refused="tensors do not fit"),
    Case(CLIP, "weights, ModifiedResNet of RN50, before the projection", from_record("clip_rn50"), "resnet50_clip"),
    Case(
        OPEN,
        "checkpoint, width of ViT-S/16, two layers",
        from_record("openclip_gelu"),
        "vit_base_patch16_clip_224",
        {"embed_dim": 384, "depth": 2, "num_heads": 6, "img_size": 64},
    ),
    Case(
        OPEN,
        "checkpoint, QuickGELU said by the user",
        from_record("openclip_quickgelu"),
        "vit_base_patch16_clip_224",
        {"embed_dim": 384, "depth": 2, "num_heads": 6, "act_layer": "quick_gelu"},
        {"options": {"act_layer": "quick_gelu"}},
    ),
    Case(
        OPEN,
        "weights, image tower of timm",
        from_record("openclip_timm"),
        "vit_tiny_patch16_224",
        {"depth": 2, "img_size": 64},
    ),
    Case(OPEN, "weights, CoCa's attention pooling", from_record("openclip_coca"), refused="attn_pool"),
    Case(
        "BEiT (microsoft/unilm)",
        "fine-tuned, width 192, two blocks",
        from_record("beit_finetuned"),
        "beit_base_patch16_224",
        {"embed_dim": 192, "depth": 2, "num_heads": 3},
        {"arch": "beit_base_patch16_224", "options": {"embed_dim": 192, "depth": 2, "num_heads": 3}},
    ),
]


@every(CASES)
def test_reads_what_the_project_computes(case, tmp_path):
    check(case, tmp_path)
