"""MoCo v1, v2 and v3, and PCL, which keeps MoCo's layout."""

from tests.convert.peers.case import Case, check, every, from_record

CASES = [
    Case("MoCo v2", "DDP checkpoint with queue and optimizer", from_record("moco_v2"), "resnet18"),
    Case("MoCo v1", "DDP checkpoint with queue", from_record("moco_v1"), "resnet50"),
    Case("MoCo", "linear classification checkpoint (lincls)", from_record("moco_lincls"), "resnet18"),
    Case("MoCo v3", "DDP checkpoint of a ResNet-50", from_record("mocov3_resnet50"), "resnet50"),
    Case("PCL", "DDP checkpoint with queue", from_record("pcl"), "resnet18"),
]


@every(CASES)
def test_reads_what_the_project_computes(case, tmp_path):
    check(case, tmp_path)
