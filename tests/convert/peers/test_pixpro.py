"""PixPro."""

from tests.convert.peers.case import Case, check, every, from_record

CASES = [
    Case("PixPro", "training checkpoint", from_record("pixpro"), "resnet50"),
    Case("PixPro", "published by publish_model.py", from_record("pixpro_published"), "resnet18"),
]


@every(CASES)
def test_reads_what_the_project_computes(case, tmp_path):
    check(case, tmp_path)
