"""SimSiam."""

from tests.convert.peers.case import Case, check, every, from_record

CASES = [
    Case("SimSiam", "DDP checkpoint", from_record("simsiam"), "resnet18"),
    Case("SimSiam", "linear classification checkpoint", from_record("simsiam_lincls"), "resnet50"),
]


@every(CASES)
def test_reads_what_the_project_computes(case, tmp_path):
    check(case, tmp_path)
