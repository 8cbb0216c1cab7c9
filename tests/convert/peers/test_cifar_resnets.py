"""ResNets for CIFAR's small images, which timm does not have: never read as another network."""

from tests.convert.peers.case import Case, check, every, from_record

CASES = [
    Case("SupContrast", "checkpoint of a ResNet-18 for CIFAR", from_record("supcontrast"), refused="3x3 stem"),
    Case(
        "SupContrast",
        "cross entropy, ResNet-50 for CIFAR in DataParallel",
        from_record("supcontrast_ce"),
        refused="3x3 stem",
    ),
    Case("pytorch-cifar", "ckpt.pth of ResNet18", from_record("pytorch_cifar_resnet18"), refused="3x3 stem"),
    Case(
        "pytorch-cifar",
        "ckpt.pth of MobileNetV2",
        from_record("pytorch_cifar_mobilenetv2"),
        refused="no backbone in it",
    ),
]


@every(CASES)
def test_reads_what_the_project_computes(case, tmp_path):
    check(case, tmp_path)
