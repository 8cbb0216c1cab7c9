"""Barlow Twins and VICReg: training checkpoints and the backbones beside them."""

from tests.convert.peers.case import Case, check, every, from_record

CASES = [
    Case("Barlow Twins", "checkpoint.pth", from_record("barlowtwins_checkpoint"), "resnet50"),
    Case("Barlow Twins", "resnet50.pth", from_record("barlowtwins_resnet50"), "resnet50"),
    Case("VICReg", "model.pth of a ResNet-34", from_record("vicreg_model"), "resnet34"),
    Case("VICReg", "resnet50.pth", from_record("vicreg_resnet50"), "resnet50"),
]


@every(CASES)
def test_reads_what_the_project_computes(case, tmp_path):
    check(case, tmp_path)
