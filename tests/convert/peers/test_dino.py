"""Files of facebookresearch/dino, recorded from a checkout: ViTs, ResNets, checkpoints of its trainer."""

from __future__ import annotations

from tests.convert.peers.case import Case, check, every, from_record

PROJECT = "DINO (facebookresearch/dino)"
TINY = "vit_tiny_patch16_224"

CASES = [
    Case(
        PROJECT,
        "checkpoint.pth, ViT-Ti/16",
        from_record("dino_tiny16_full"),
        TINY,
        {"img_size": 64},
        assumed=frozenset({"preprocess"}),
    ),
    Case(PROJECT, "checkpoint.pth, ViT-Ti/8", from_record("dino_tiny8_full"), TINY, {"patch_size": 8, "img_size": 32}),
    Case(
        PROJECT,
        "checkpoint.pth, ViT-Ti/16, averaged teacher asked for",
        from_record("dino_tiny16_full"),
        TINY,
        {"img_size": 64},
        {"network": "teacher"},
    ),
    Case(PROJECT, "checkpoint.pth, ResNet18", from_record("dino_resnet18_full"), "resnet18"),
    Case(
        PROJECT,
        "backbone only, ViT-S/16",
        from_record("dino_small16_backbone"),
        "vit_small_patch16_224",
        {"img_size": 64},
    ),
    Case(
        PROJECT, "backbone only, ViT-S/8", from_record("dino_small8_backbone"), "vit_small_patch8_224", {"img_size": 32}
    ),
    Case(PROJECT, "backbone only, ResNet50", from_record("dino_resnet50_backbone"), "resnet50"),
    Case(
        PROJECT,
        "ViT without qkv_bias, half the MLP, depth 3",
        from_record("dino_nobias"),
        TINY,
        {"depth": 3, "mlp_ratio": 2.0, "qkv_bias": False, "img_size": 64},
    ),
    Case(
        PROJECT,
        "ViT of a width of its own, heads given",
        from_record("dino_width200"),
        TINY,
        {"embed_dim": 200, "depth": 2, "num_heads": 5, "img_size": 64},
        {"options": {"num_heads": 5}},
    ),
    Case(PROJECT, "ViT of a width of its own", from_record("dino_width200"), refused="num_heads"),
    Case(PROJECT, "linear classifier without its backbone", from_record("dino_linear"), refused="no backbone"),
    Case(PROJECT, "a block cut short", from_record("dino_incomplete"), refused="blocks.7.mlp.fc1.weight"),
]


@every(CASES)
def test_reads_what_the_project_computes(case, tmp_path):
    check(case, tmp_path)
