"""Files of facebookresearch/ConvNeXt and facebookresearch/ConvNeXt-V2, recorded from checkouts."""

from __future__ import annotations

from tests.convert.peers.case import Case, check, every, from_record

V1 = "ConvNeXt (facebookresearch/ConvNeXt)"
V2 = "ConvNeXt V2 (facebookresearch/ConvNeXt-V2)"
ATTO = "convnextv2_atto"

CASES = [
    Case(V1, "published, ConvNeXt-T", from_record("convnext_tiny"), "convnext_tiny"),
    Case(V2, "fine-tuned, atto", from_record("convnextv2_finetuned"), ATTO),
    Case(V2, "published pre-training, atto", from_record("convnextv2_fcmae_dense"), ATTO),
    Case(V2, "checkpoint of pre-training, atto", from_record("convnextv2_fcmae"), ATTO),
]


@every(CASES)
def test_reads_what_the_project_computes(case, tmp_path):
    check(case, tmp_path)
