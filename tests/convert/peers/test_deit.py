"""Files of facebookresearch/deit (DeiT, DeiT III) and of microsoft/esvit, recorded from checkouts."""

from __future__ import annotations

from tests.convert.peers.case import Case, check, every, from_record

PROJECT = "DeiT (facebookresearch/deit)"
ESVIT = "EsViT (microsoft/esvit)"
TINY = "vit_tiny_patch16_224"

CASES = [
    Case(PROJECT, "published, DeiT-Ti", from_record("deit_tiny"), TINY, {"img_size": 64}),
    Case(
        PROJECT,
        "published, DeiT-S distilled",
        from_record("deit_small_distilled"),
        "deit_small_distilled_patch16_224",
        {"img_size": 64},
    ),
    Case(PROJECT, "published, DeiT III-S", from_record("deit3_small"), "deit3_small_patch16_224", {"img_size": 64}),
    Case(PROJECT, "DeiT III-Ti", from_record("deit3_tiny"), TINY, {"no_embed_class": True, "img_size": 64}),
    Case(PROJECT, "checkpoint with averaged copy", from_record("deit_training"), TINY, {"img_size": 64}),
    Case(PROJECT, "blocks of parallel branches", from_record("deit_par"), refused="norm11"),
    Case(
        ESVIT, "checkpoint, Swin-T", from_record("esvit_swin_tiny"), "swin_tiny_patch4_window7_224", {"norm_eps": 1e-6}
    ),
    Case(ESVIT, "checkpoint, DeiT-Ti", from_record("esvit_deit_tiny"), TINY, {"img_size": 64}),
]


@every(CASES)
def test_reads_what_the_project_computes(case, tmp_path):
    check(case, tmp_path)
