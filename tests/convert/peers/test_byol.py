"""BYOL in its two usual PyTorch forms."""

from tests.convert.peers.case import Case, check, every, from_record

CASES = [
    Case("byol-pytorch", "the learner's state dict", from_record("byol_pytorch_learner"), "resnet18"),
    Case("byol-pytorch", "the network's state dict, as its trainer saves", from_record("byol_pytorch_net"), "resnet18"),
    Case("PyTorch-BYOL", "model.pth with both networks", from_record("pytorch_byol"), "resnet18"),
]


@every(CASES)
def test_reads_what_the_project_computes(case, tmp_path):
    check(case, tmp_path)
