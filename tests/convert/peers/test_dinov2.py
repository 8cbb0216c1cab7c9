"""Files of facebookresearch/dinov2, recorded from a checkout: published backbones and checkpoints of its training."""

from __future__ import annotations

from tests.convert.peers.case import Case, check, every, from_record

PROJECT = "DINOv2 (facebookresearch/dinov2)"
SMALL = "vit_small_patch14_dinov2"
REGISTERS = "vit_small_patch14_reg4_dinov2"

CASES = [
    Case(PROJECT, "backbone, ViT-S/14", from_record("dinov2_small14"), SMALL, {}),
    Case(PROJECT, "backbone, ViT-S/14, registers", from_record("dinov2_small14_reg"), REGISTERS, {"img_size": 70}),
    Case(PROJECT, "backbone, ViT-S/16", from_record("dinov2_small16"), SMALL, {"patch_size": 16, "img_size": 64}),
    Case(
        PROJECT,
        "backbone, ViT-S/16, made for 518 pixels",
        from_record("dinov2_small16_518"),
        SMALL,
        {"patch_size": 16, "img_size": 512},
    ),
    Case(
        PROJECT,
        "backbone, width of ViT-B, one block",
        from_record("dinov2_base_1block"),
        "vit_base_patch14_dinov2",
        {"depth": 1, "img_size": 56},
    ),
    Case(
        PROJECT,
        "backbone without layer scale",
        from_record("dinov2_noscale"),
        "vit_tiny_patch16_224",
        {"depth": 2, "img_size": 64},
    ),
    Case(
        PROJECT,
        "backbone, SwiGLU",
        from_record("dinov2_swiglu"),
        "vit_giant_patch14_dinov2",
        {"embed_dim": 192, "depth": 2, "num_heads": 3},
    ),
    Case(PROJECT, "teacher_checkpoint.pth", from_record("dinov2_teacher"), SMALL, {"img_size": 56}),
    Case(
        PROJECT,
        "training checkpoint, 2 registers",
        from_record("dinov2_training"),
        REGISTERS,
        {"reg_tokens": 2, "img_size": 56},
    ),
    Case(PROJECT, "backbone beside a linear head", from_record("dinov2_lc"), SMALL, {"img_size": 56}),
    Case(PROJECT, "one rank's flat parameters", from_record("dinov2_sharded"), refused="no naming that is known"),
]


@every(CASES)
def test_reads_what_the_project_computes(case, tmp_path):
    check(case, tmp_path)
