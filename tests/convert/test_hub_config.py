"""What config.json and preprocessor_config.json say, against values worked out by hand."""

from __future__ import annotations

import torch

from convert.hub_config import read_hub_config
from convert.naming.huggingface import LAYOUTS, MOBILENET_V2, joined
from convert.naming.rules import apply_table
from convert.reader import read_checkpoint
from tests.convert.own_networks import timm_own

FOREIGN = [
    "encoder.layer.0.mlp.gate_proj.weight",
    "encoder.layer.0.mlp.up_proj.weight",
    "embeddings.class_embedding",
    "embeddings.position_embedding.weight",
    "embeddings.patch_embeddings.weight",
    "encoder.stages.0.layers.0.grn.weight",
    "encoder.stages.0.layers.0.pwconv1.weight",
    "head.attention.in_proj_weight",
    "encoder.blocks.0.expansion.expand_conv.weight",
]
VIT = ["vit.embeddings.cls_token", "vit.encoder.layer.0.layernorm_before.weight"]


def test_settings_become_options_only_where_they_differ_from_timm_s():
    vit = {"model_type": "vit", "num_attention_heads": 12, "layer_norm_eps": 1e-6, "hidden_act": "gelu"}
    said = read_hub_config(VIT, vit, {})
    assert (said.options, said.heads, said.assumed, said.preprocess) == ({}, 12, {}, None)
    changed = {**vit, "layer_norm_eps": 1e-12, "hidden_act": "gelu_pytorch_tanh"}
    assert read_hub_config(VIT, changed, {}).options == {"norm_eps": 1e-12, "act_layer": "gelu_tanh"}


def test_without_config_transformers_defaults_are_assumed_and_named():
    said = read_hub_config(VIT, {}, {})
    assert said.options == {"norm_eps": 1e-12} and said.heads is None
    assert list(said.assumed) == ["norm_eps"] and "1e-12 assumed" in said.assumed["norm_eps"]
    said = read_hub_config(["conv_stem.first_conv.convolution.weight"], {}, {})
    assert said.options == {"norm_eps": 1e-3, "pad_type": "same"}
    assert said.assumed.keys() == {"norm_eps", "pad_type", "output_stride"}


def test_settings_of_others_say_nothing():
    assert read_hub_config(["layer1.0.conv1.weight"], {"lr": 0.1}, {}) is None
    assert read_hub_config(["blocks.0.attn.qkv.weight", "patch_embed.proj.weight"], {}, {}) is None


def test_padding_and_strides():
    mobilenet = {"model_type": "mobilenet_v2", "layer_norm_eps": 1e-3, "tf_padding": False, "hidden_act": "relu6"}
    assert read_hub_config([], mobilenet, {}).options == {"norm_eps": 1e-3}
    resnet = {"model_type": "resnet", "hidden_act": "relu", "downsample_in_bottleneck": True}
    assert read_hub_config([], resnet, {}).impossible == ["downsample_in_bottleneck=True"]


def test_the_image_tower_of_two():
    tower = {"model_type": "clip_vision_model", "hidden_act": "quick_gelu", "image_size": 64, "num_attention_heads": 4}
    both = {"model_type": "clip", "vision_config": tower, "text_config": {"num_attention_heads": 2}}
    said = read_hub_config([], both, {})
    assert said.heads == 4 and said.options == {"act_layer": "quick_gelu"}
    del tower["model_type"]  # as older files have it
    assert read_hub_config([], both, {}) == said


def test_preprocessing():
    half = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    crops = {**half, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}, "size": {"shortest_edge": 256}}
    for size in ({"size": 224}, {"size": {"height": 224, "width": 224}}, {"size": {"shortest_edge": 224}}, crops):
        said = read_hub_config(VIT, {}, {**half, **size}).preprocess
        assert said == {"mean": [0.5] * 3, "std": [0.25] * 3, "color_order": "RGB", "size": 224}
    assert read_hub_config(VIT, {}, {"do_normalize": False, "size": 96}).preprocess["std"] == [1.0] * 3
    timm = {"architecture": "mobilenetv2_100", "model_args": {"bn_eps": 1e-3}, "pretrained_cfg": {
        "mean": [0.5] * 3, "std": [0.25] * 3, "input_size": [3, 192, 192]}}  # fmt: skip
    said = read_hub_config([], timm, {})
    assert (said.arch, said.options, said.preprocess["size"]) == ("mobilenetv2_100", {"norm_eps": 1e-3}, 192)


def test_what_the_user_says_is_not_assumed_and_a_wrapper_hides_no_default(tmp_path):
    state = timm_own("mobilenetv2_035").state
    names = apply_table(MOBILENET_V2, state, to_timm=False, where="test").keys
    wrapped = {"state_dict": {f"backbone.{names[key]}": value for key, value in state.items()}, "hyper_parameters": {}}
    torch.save(wrapped, tmp_path / "last.ckpt")
    read = read_checkpoint(tmp_path / "last.ckpt")
    assert read.options == {"pad_type": "same", "norm_eps": 0.001}
    assert {"pad_type", "norm_eps"} <= read.assumed.keys()
    read = read_checkpoint(tmp_path / "last.ckpt", options={"norm_eps": 1e-5})
    assert read.options["norm_eps"] == 1e-5 and "norm_eps" not in read.assumed and "pad_type" in read.assumed


def test_damaged_parts_are_named_not_stumbled_over():
    layer = "encoder.layer.0.attention.attention."
    parts = {f"{layer}{name}.weight": torch.ones(4, 4) for name in ("query", "key", "value")}
    assert joined(parts)[f"{layer}qkv.weight"].shape == (12, 4)
    for wrong in (torch.ones(4, 3), torch.ones(()), torch.ones(4)):
        assert f"{layer}q_weight" in joined({**parts, f"{layer}key.weight": wrong})
    for layout in LAYOUTS:
        if layout.prepare:
            for shape in ((), (0,), (3,), (3, 5), (3, 5, 2)):
                layout.prepare({foreign: torch.ones(shape) for foreign in FOREIGN})
