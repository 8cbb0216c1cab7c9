"""MobileNetV2 of tonylins/pytorch-mobilenet-v2, whose names many projects took over."""

from tests.convert.peers.case import Case, check, every, from_record

CASES = [
    Case("pytorch-mobilenet-v2", "released file: state dict", from_record("tonylins_flat"), "mobilenetv2_100"),
    Case(
        "pytorch-mobilenet-v2",
        "checkpoint of PyTorch's ImageNet example",
        from_record("tonylins_training"),
        "mobilenetv2_100",
    ),
]


@every(CASES)
def test_reads_what_the_project_computes(case, tmp_path):
    check(case, tmp_path)
