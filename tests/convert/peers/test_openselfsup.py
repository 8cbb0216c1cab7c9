"""OpenSelfSup, DenseCL and mmselfsup 0.x."""

from tests.convert.peers.case import Case, check, every, from_record

CASES = [
    Case("DenseCL", "training checkpoint", from_record("densecl_training"), "resnet18"),
    Case("DenseCL", "extracted backbone", from_record("densecl_extracted"), "resnet18"),
    Case("OpenSelfSup", "BYOL, training checkpoint", from_record("openselfsup_byol"), "resnet18"),
    Case("mmselfsup 0.11", "MoCo v2, training checkpoint", from_record("mmselfsup0_moco"), "resnet18"),
    Case("mmselfsup 0.11", "extracted backbone", from_record("mmselfsup0_extracted"), "resnet18"),
]


@every(CASES)
def test_reads_what_the_project_computes(case, tmp_path):
    check(case, tmp_path)
