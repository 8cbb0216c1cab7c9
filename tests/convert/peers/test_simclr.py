"""SimCLR in three PyTorch forms; one has a stem for CIFAR."""

from tests.convert.peers.case import Case, check, every, from_record

CASES = [
    Case("SimCLR (sthalles)", "checkpoint with optimizer", from_record("simclr_sthalles"), "resnet18"),
    Case("SimCLR (Spijkervet)", "the model's state dict", from_record("simclr_spijkervet"), "resnet18"),
    Case(
        "SimCLR (leftthomas)",
        "the model's state dict: ResNet-50 for CIFAR",
        from_record("simclr_leftthomas"),
        refused="3x3 stem",
    ),
]


@every(CASES)
def test_reads_what_the_project_computes(case, tmp_path):
    check(case, tmp_path)
