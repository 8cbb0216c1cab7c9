"""Files of facebookresearch/dinov3, recorded from a checkout: its ViTs with rotary positions, and ConvNeXt."""

from __future__ import annotations

from tests.convert.peers.case import Case, check, every, from_record

PROJECT = "DINOv3 (facebookresearch/dinov3)"
SMALL = "vit_small_patch16_dinov3_qkvb"

CASES = [
    Case(PROJECT, "backbone, ViT-S/16", from_record("dinov3_small"), SMALL, {"global_pool": "token"}),
    Case(
        PROJECT,
        "backbone, rotary positions of another base",
        from_record("dinov3_small_base30"),
        SMALL,
        {"global_pool": "token", "rope_temperature": 30.0},
        assumed=frozenset({"norm_eps", "preprocess"}),
    ),
    Case(
        PROJECT,
        "backbone, a norm of its own for the class token",
        from_record("dinov3_small_untied"),
        SMALL,
        {"global_pool": "token"},
    ),
    Case(
        PROJECT,
        "backbone, rotary positions between two periods",
        from_record("dinov3_small_periods"),
        refused="no powers of one base",
    ),
    Case(
        PROJECT,
        "backbone, ViT-S+/16",
        from_record("dinov3_small_plus"),
        "vit_small_plus_patch16_dinov3_qkvb",
        {"global_pool": "token"},
    ),
    Case(PROJECT, "teacher_checkpoint.pth", from_record("dinov3_teacher"), SMALL, {"global_pool": "token"}),
    Case(PROJECT, "backbone, ConvNeXt-T", from_record("dinov3_convnext_tiny"), "convnext_tiny"),
    Case(PROJECT, "ViT with a bias of keys", from_record("dinov3_small_bf16"), refused="k_bias"),
]


@every(CASES)
def test_reads_what_the_project_computes(case, tmp_path):
    check(case, tmp_path)
