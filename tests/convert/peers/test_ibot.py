"""Files of bytedance/ibot, recorded from a checkout."""

from __future__ import annotations

from tests.convert.peers.case import Case, check, every, from_record

PROJECT = "iBOT (bytedance/ibot)"
TINY = "vit_tiny_patch16_224"

CASES = [
    Case(PROJECT, "checkpoint.pth, ViT-Ti/16", from_record("ibot_tiny16_full"), TINY, {"img_size": 64}),
    Case(
        PROJECT,
        "extracted backbone, ViT-S/16",
        from_record("ibot_small16_extracted"),
        "vit_small_patch16_224",
        {"img_size": 64},
    ),
    Case(PROJECT, "extracted backbone, layer scale", from_record("ibot_gamma"), TINY, {"depth": 4, "img_size": 64}),
    Case(
        PROJECT,
        "extracted backbone, mean of patches",
        from_record("ibot_meanpool"),
        TINY,
        {"depth": 4, "global_pool": "avg", "img_size": 64},
    ),
    Case(
        PROJECT,
        "checkpoint.pth, Swin-T",
        from_record("ibot_swin_tiny_full"),
        "swin_tiny_patch4_window7_224",
        {"norm_eps": 1e-6},
    ),
]


@every(CASES)
def test_reads_what_the_project_computes(case, tmp_path):
    check(case, tmp_path)
