"""transformers' convolutional networks."""

from __future__ import annotations

from tests.convert.peers.case import check, every
from tests.convert.peers.huggingface import case, in_memory, legacy, sharded, tensors, trained

RESNET18 = {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic", "image_size": 64}
TENSORFLOW = {"pad_type": "same", "norm_eps": 0.001}
REGNET = {"embedding_size": 32, "hidden_sizes": [24, 56, 152, 368], "depths": [1, 1, 4, 7], "groups_width": 8}
EFFICIENTNET = {"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280, "image_size": 224}


def resnet(file: str, name: str = "ResNetModel", arch: str = "resnet18", settings: dict | None = None, **more):
    return case(f"ResNet, {file}", name, "ResNetConfig", arch, settings={**RESNET18, **(settings or {})}, **more)


def mobilenet(file: str, arch: str, name: str = "MobileNetV2Model", width: float = 1.0, settings=(), **more):
    settings = {"depth_multiplier": width, **dict(settings)}
    return case(f"MobileNetV2, {file}", name, "MobileNetV2Config", arch, settings=settings, **more)


CASES = [
    resnet("directory"),
    resnet("directory, sharded", save=sharded),
    resnet("directory with pytorch_model.bin", save=legacy),
    resnet("classifier, Trainer's checkpoint directory", "ResNetForImageClassification", body="resnet", save=trained),
    resnet("model.safetensors alone", save=tensors),
    resnet("classifier, `torch.save(state_dict)`", "ResNetForImageClassification", body="resnet", save=in_memory),
    case("ResNet-50, classifier, directory", "ResNetForImageClassification", "ResNetConfig", "resnet50", body="resnet"),
    case(
        "ResNet-50 that strides in its 1x1 convolutions, directory",
        "ResNetModel",
        "ResNetConfig",
        settings={"downsample_in_bottleneck": True},
        refused="downsample_in_bottleneck",
    ),
    case("RegNetY, directory", "RegNetModel", "RegNetConfig", "regnety_002", settings=REGNET),
    case("RegNetX, directory", "RegNetModel", "RegNetConfig", "regnetx_002", settings={
        **REGNET, "layer_type": "x", "depths": [1, 1, 4, 7]}),
    mobilenet("directory", "mobilenetv2_100", options=TENSORFLOW),
    mobilenet("classifier, directory", "mobilenetv2_100", "MobileNetV2ForImageClassification", body="mobilenet_v2",
              options=TENSORFLOW),
    mobilenet("width 0.35, directory", "mobilenetv2_035", width=0.35, options=TENSORFLOW),
    mobilenet("symmetric padding, directory", "mobilenetv2_100", settings={"tf_padding": False},
              options={"pad_type": None, "norm_eps": 0.001}),
    mobilenet("epsilon 1e-5, directory", "mobilenetv2_100", settings={"layer_norm_eps": 1e-5},
              options={"pad_type": "same", "norm_eps": None}),
    mobilenet("ReLU, directory", "mobilenetv2_100", settings={"hidden_act": "relu"},
              options={**TENSORFLOW, "act_layer": "relu"}),
    mobilenet("`torch.save(state_dict)`", "mobilenetv2_100", save=in_memory, options=TENSORFLOW),
    mobilenet("width 0.35 with a narrow last layer, directory", "", width=0.35,
              settings={"finegrained_output": False}, refused="conv_head"),
    case("MobileNetV1, directory", "MobileNetV1Model", "MobileNetV1Config", "mobilenetv1_100", options=TENSORFLOW),
    case("EfficientNet-B0, directory", "EfficientNetModel", "EfficientNetConfig", "tf_efficientnet_b0",
         settings=EFFICIENTNET),
    case("ConvNeXt-T, classifier, directory", "ConvNextForImageClassification", "ConvNextConfig", "convnext_tiny",
         body="convnext"),
    case("ConvNeXt V2-A, directory", "ConvNextV2Model", "ConvNextV2Config", "convnextv2_atto",
         settings={"hidden_sizes": [40, 80, 160, 320], "depths": [2, 2, 6, 2]}),
    case("ConvNeXt V2-A, `torch.save(state_dict)`", "ConvNextV2Model", "ConvNextV2Config", "convnextv2_atto",
         settings={"hidden_sizes": [40, 80, 160, 320], "depths": [2, 2, 6, 2]}, save=in_memory),
    case("DINOv3 ConvNeXt-T, directory", "DINOv3ConvNextModel", "DINOv3ConvNextConfig", "convnext_tiny"),
    case("DINOv3 ConvNeXt-T, `torch.save(state_dict)`", "DINOv3ConvNextModel", "DINOv3ConvNextConfig", "convnext_tiny",
         save=in_memory),
]  # fmt: skip


@every(CASES)
def test_reads_what_the_project_computes(case, tmp_path):
    check(case, tmp_path)
