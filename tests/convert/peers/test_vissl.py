"""VISSL."""

from tests.convert.peers.case import Case, check, every, from_record

CASES = [
    Case("VISSL", "phase checkpoint", from_record("vissl_checkpoint"), "resnet50"),
    Case("VISSL", "trunk under 'model_state_dict'", from_record("vissl_model_state_dict"), "resnet50"),
]


@every(CASES)
def test_reads_what_the_project_computes(case, tmp_path):
    check(case, tmp_path)
