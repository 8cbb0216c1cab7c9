"""Small networks distilled from self-supervised teachers: the student is read, never the teacher in its place."""

from tests.convert.peers.case import Case, check, every, from_record

CASES = [
    Case("SEED", "ResNet-18 student beside its teacher", from_record("seed_resnet18"), "resnet18"),
    Case("SEED", "EfficientNet-B0 student", from_record("seed_efficientnet_b0"), "tf_efficientnet_b0"),
    Case(
        "SEED",
        "MobileNetV3 of its own kind as student",
        from_record("seed_mobilenetv3"),
        refused="network 'student' are in no naming",
    ),
    Case("DisCo", "EfficientNet-B0 student", from_record("disco_efficientnet_b0"), "efficientnet_b0"),
    Case(
        "DisCo",
        "MobileNetV3-L student",
        from_record("disco_mobilenetv3"),
        "mobilenetv3_large_100",
        ask={"arch": "mobilenetv3_large_100"},
    ),
    Case(
        "DisCo",
        "MobileNetV3-L student, its twin not told apart",
        from_record("disco_mobilenetv3"),
        refused="tf_mobilenetv3_large_100",
    ),
    Case("DisCo", "ResNet-18 student", from_record("disco_resnet18"), "resnet18"),
    Case("SimReg", "MobileNetV2 student beside its teacher", from_record("simreg_mobilenet"), "mobilenetv2_100"),
    Case("SimReg", "ResNet-18 student beside its teacher", from_record("simreg_resnet18"), "resnet18"),
    Case("CompRess", "ResNet-18 student", from_record("compress_resnet18"), "resnet18"),
    Case("CompRess", "MobileNetV2 student", from_record("compress_mobilenet"), "mobilenetv2_100"),
    Case("BINGO", "EfficientNet-B0 student", from_record("bingo_efficientnet_b0"), "tf_efficientnet_b0"),
    Case("BINGO", "ResNet-18 student beside its teacher", from_record("bingo"), "resnet18"),
]


@every(CASES)
def test_reads_what_the_project_computes(case, tmp_path):
    check(case, tmp_path)
