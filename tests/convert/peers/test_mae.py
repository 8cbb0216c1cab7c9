"""Files of facebookresearch/mae and of MAE-Lite, whose ViT-Ti/S have 12 heads; recorded from checkouts."""

from __future__ import annotations

from tests.convert.peers.case import Case, check, every, from_record

PROJECT = "MAE (facebookresearch/mae)"
LITE = "MAE-Lite (wangsr126/MAE-Lite)"
BASE = "vit_base_patch16_224"

CASES = [
    Case(PROJECT, "checkpoint of pre-training", from_record("mae_base_pretrain"), BASE, {"depth": 2, "img_size": 64}),
    Case(PROJECT, "encoder only", from_record("mae_base_encoder"), BASE, {"depth": 2, "img_size": 64}),
    Case(
        PROJECT,
        "encoder and decoder, width of ViT-L",
        from_record("mae_large_encoder"),
        "vit_large_patch16_224",
        {"depth": 1, "img_size": 64},
    ),
    Case(
        PROJECT,
        "fine-tuned, mean of patches",
        from_record("mae_finetuned"),
        BASE,
        {"depth": 2, "global_pool": "avg", "img_size": 64},
    ),
    Case(PROJECT, "fine-tuned, class token", from_record("mae_finetuned_cls"), BASE, {"depth": 2, "img_size": 64}),
    Case(PROJECT, "linear probe", from_record("mae_linprobe"), BASE, {"depth": 2, "img_size": 64}),
    Case(
        LITE,
        "checkpoint of pre-training, ViT-Ti",
        from_record("maelite_tiny_pretrain"),
        "vit_tiny_patch16_224",
        {"num_heads": 12, "img_size": 64},
    ),
    Case(
        LITE,
        "fine-tuned, ViT-Ti",
        from_record("maelite_tiny_finetuned"),
        "vit_tiny_patch16_224",
        {"num_heads": 12, "global_pool": "avg", "img_size": 64},
    ),
]


@every(CASES)
def test_reads_what_the_project_computes(case, tmp_path):
    check(case, tmp_path)
