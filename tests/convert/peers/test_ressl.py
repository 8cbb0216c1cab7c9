"""ReSSL."""

from tests.convert.peers.case import Case, check, every, from_record

CASES = [
    Case("ReSSL", "DDP checkpoint", from_record("ressl"), "resnet18"),
]


@every(CASES)
def test_reads_what_the_project_computes(case, tmp_path):
    check(case, tmp_path)
