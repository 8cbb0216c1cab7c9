"""SwAV."""

from tests.convert.peers.case import Case, check, every, from_record

CASES = [
    Case("SwAV", "DDP checkpoint with projection head and prototypes", from_record("swav_checkpoint"), "resnet50"),
    Case("SwAV", "released file: flat, 'module.', several prototype layers", from_record("swav_flat"), "resnet50"),
]


@every(CASES)
def test_reads_what_the_project_computes(case, tmp_path):
    check(case, tmp_path)
