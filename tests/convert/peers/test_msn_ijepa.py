"""Files of facebookresearch/msn and facebookresearch/ijepa, recorded from checkouts."""

from __future__ import annotations

from tests.convert.peers.case import Case, check, every, from_record

MSN = "MSN (facebookresearch/msn)"
IJEPA = "I-JEPA (facebookresearch/ijepa)"
POOLED = {"class_token": False, "global_pool": "avg", "fc_norm": False}

CASES = [
    Case(MSN, "checkpoint, ViT-Ti/16", from_record("msn_tiny"), "vit_tiny_patch16_224", {"img_size": 64}),
    Case(
        MSN,
        "checkpoint, ViT-S/7",
        from_record("msn_small_p7"),
        "vit_small_patch16_224",
        {"patch_size": 7, "img_size": 28},
    ),
    Case(MSN, "ViT with a convolutional stem", from_record("msn_vitc"), refused="patch_embed.proj.weight"),
    Case(IJEPA, "checkpoint, ViT-Ti/16", from_record("ijepa_tiny"), "vit_tiny_patch16_224", {**POOLED, "img_size": 64}),
    Case(
        IJEPA,
        "checkpoint, ViT-S/14, one device",
        from_record("ijepa_small14"),
        "vit_small_patch16_224",
        {**POOLED, "patch_size": 14, "img_size": 56},
    ),
    Case(
        IJEPA,
        "checkpoint, width of ViT-H/14, one block",
        from_record("ijepa_huge_1block"),
        "vit_huge_patch14_gap_224",
        {"depth": 1, "img_size": 56},
    ),
]


@every(CASES)
def test_reads_what_the_project_computes(case, tmp_path):
    check(case, tmp_path)
