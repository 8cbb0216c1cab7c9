"""Attention heads do not show in shapes: recorded, told, or named as an assumption; and ViTs whose patch is not timm's.

The sources are timm's VisionTransformer with 12 heads, checked against attention in plain functions; no reading is
compared with itself.
"""

from __future__ import annotations

import argparse
import json

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from convert.convert_ckpt import convert, main
from convert.reader import load_network, network_of, read_checkpoint, read_content
from convert.targets import TARGETS
from convert.verify import fixed_image
from sslight.core.errors import InputError
from tests.convert import family_files
from tests.convert.own_networks import Own, randomised, timm_own, vit_forward, vit_own

SIZE = 64  # pixels: 4 x 4 patches
TOLERANCE = 1e-5  # of the largest feature
CONFIG = "custom = [1, -2.5, print('never run')]\nmodel = dict(\n    backbone=dict(\n        {}))\n"


def relative(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.fixture(scope="module")
def twelve():
    """A function: width -> MoCo v3's ViT of it, whose features with timm's number of heads are far off."""
    made = {}

    def make(width):
        if width not in made:
            network = VisionTransformer(img_size=SIZE, embed_dim=width, num_heads=12, num_classes=0)
            randomised(network, seed=width)
            state, images = network.state_dict(), fixed_image(SIZE, SIZE)
            with torch.no_grad():
                feature = network(images)
            assert relative(vit_forward(state, images, 12), feature) < TOLERANCE
            assert relative(vit_forward(state, images, width // 64), feature) > 0.1
            made[width] = Own(
                state,
                lambda images: vit_forward(state, images, 12),
                {192: "vit_tiny_patch16_224", 384: "vit_small_patch16_224"}[width],
                SIZE,
            )
        return made[width]

    return make


def mmpretrain(own, backbone):
    names = {
        "patch_embed.proj": "patch_embed.projection",
        "norm.": "ln1.",
        "norm1": "ln1",
        "norm2": "ln2",
        "mlp.fc1": "ffn.layers.0.0",
        "mlp.fc2": "ffn.layers.1",
        "blocks.": "layers.",
    }
    state = {}
    for key, value in own.state.items():
        for old, new in names.items():
            if key.startswith(old) or (old not in ("norm.", "blocks.") and f".{old}." in key):
                key = key.replace(old, new)
        state[key.replace("blocks.", "layers.")] = value
    content = family_files.openmmlab(Own(state, own.pooled, own.arch))
    content["meta"]["cfg"] = CONFIG.format(backbone)
    return content


def solo_learn(own, settings):
    return {**family_files.solo_learn(own), "hyper_parameters": settings}


def omegaconf(settings):
    return pytest.importorskip("omegaconf").OmegaConf.create(settings)


RECORDED = {
    "MoCo v3 ViT-Ti": (192, family_files.mocov3),
    "MoCo v3 ViT-S": (384, family_files.mocov3),
    "solo-learn, flat": (192, lambda own: solo_learn(own, {"method": "mocov3", "backbone": "vit_tiny"})),
    "solo-learn, OmegaConf": (
        192,
        lambda own: solo_learn(own, omegaconf({"method": "mocov3", "backbone": {"name": "vit_tiny", "kwargs": {}}})),
    ),
    "solo-learn, OmegaConf under cfg": (384, lambda own: solo_learn(own, {"cfg": omegaconf({"method": "mocov3"})})),
    "mmpretrain by name": (384, lambda own: mmpretrain(own, "type='MoCoV3ViT', arch='mocov3-small', patch_size=16")),
    "mmpretrain by numbers": (192, lambda own: mmpretrain(own, "arch=dict(embed_dims=192, num_heads=12)")),
    "timm's training": (
        192,
        lambda own: {
            "state_dict": own.state,
            "args": argparse.Namespace(model="vit_tiny_patch16_224", model_kwargs={"num_heads": 12}),
        },
    ),
}


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_heads_are_taken(name, twelve, tmp_path):
    width, layout = RECORDED[name]
    own, path = twelve(width), tmp_path / "file.pth"
    torch.save(layout(own), path)
    network, checkpoint = load_network(path)
    images = fixed_image(SIZE, SIZE)
    with torch.no_grad():
        assert relative(network.eval()(images), own.pooled(images)) < TOLERANCE
    assert checkpoint.options["num_heads"] == 12 and "num_heads" not in checkpoint.assumed


@pytest.mark.parametrize(
    "layout",
    [family_files.dino, family_files.original, lambda own: solo_learn(own, {"method": "byol", "backbone": "vit_tiny"})],
)
def test_where_the_family_or_method_has_timms_heads_nothing_is_assumed(layout):
    own = timm_own("vit_tiny_patch16_224", SIZE, img_size=SIZE)
    if layout is family_files.original:
        own.state = {f"module.student.backbone.{key}": value for key, value in own.state.items()}
    checkpoint = read_content(layout(own), "file.pth")
    assert "num_heads" not in checkpoint.options and "num_heads" not in checkpoint.assumed


@pytest.mark.parametrize(
    "text", ["model = dict(", "(" * 5000, "x" * 2_000_000, "model = {**a}\nmodel.backbone = 1", "model = 3"]
)
def test_a_config_that_is_none_tells_nothing(text, twelve):
    content = mmpretrain(twelve(192), "")
    content["meta"]["cfg"] = text
    assert "3 assumed" in read_content(content, "file.pth").assumed["num_heads"]


def test_a_named_assumption_in_the_output_the_record_and_the_file(twelve, tmp_path, capsys):
    source, out, record = tmp_path / "plain.pth", tmp_path / "out.safetensors", tmp_path / "record.json"
    torch.save(twelve(192).state, source)
    assert main([str(source), "--to", "timm", "-o", str(out), "--report", str(record)]) == 0
    said = (
        "heads are not recorded in the file: 3 assumed (timm's vit_tiny_patch16_224); MoCo v3's and MAE-Lite's have 12"
    )
    printed = capsys.readouterr().out
    assert f"assumed   {said}: --set num_heads=12\n" in printed
    assert "against timm's reading of the file (not the project's own network)" in printed
    assert json.loads(record.read_text())["assumed"]["num_heads"] == said
    assert read_checkpoint(out).assumed["num_heads"] == said
    assert "num_heads" not in read_checkpoint(out, options={"num_heads": 12}).assumed


def test_told_heads_are_built_written_and_read_again(twelve, tmp_path, capsys):
    own, source, out = twelve(192), tmp_path / "plain.pth", tmp_path / "out.safetensors"
    torch.save(own.state, source)
    assert main([str(source), "--to", "timm", "-o", str(out), "--set", "num_heads=12"]) == 0
    assert "heads are not recorded" not in capsys.readouterr().out
    names: dict = {}
    text = out.with_suffix(".py").read_text()
    assert text.count("num_heads=12") == 1
    exec(compile(text, "snippet", "exec"), names)
    images = fixed_image(SIZE, SIZE)
    with torch.no_grad():
        for network in (names["model"], load_network(out)[0], load_network(source, options={"num_heads": 12})[0]):
            assert relative(network.eval()(images), own.pooled(images)) < TOLERANCE
    again = read_checkpoint(out)
    assert again.options["num_heads"] == 12 and "num_heads" not in again.assumed


def test_files_converted_before_heads_were_recorded_are_not_trusted(twelve, tmp_path):
    from sslight.core.checkpoint import save_backbone

    for converted, doubted in (
        ("solo-learn (solo-learn: Lightning), network backbone", True),
        ("dino (DINO: 'student'), network teacher", False),
        ("exported by pretrain", False),
    ):
        path = tmp_path / "old.safetensors"
        save_backbone(
            path,
            twelve(192).state,
            arch="vit_tiny_patch16_224",
            method="unknown",
            converted=converted,
            preprocess=family_files.PREPROCESS,
            options={"img_size": SIZE},
        )
        assert ("num_heads" in read_checkpoint(path).assumed) == doubted


@pytest.mark.parametrize(
    "words, said",
    [
        (["heads=12"], "no build option 'heads' (did you mean 'num_heads'?)"),
        (["num_heads"], "as KEY=VALUE"),
        (["num_heads=7"], "num_heads=7 (AssertionError"),
        *(([f"num_heads={value}"], "expects a whole number") for value in ("0", "-3", "2.5", "True")),
        (["act_layer=none_such"], "timm builds no"),
        (["num_heads=3", "num_heads=12"], "each once"),
        (["checkpoint_path=other.pth"], "no build option"),
        (["depth=1000000000"], "expects a whole number"),
    ],
)
def test_options_that_cannot_be_are_refused(words, said, twelve, tmp_path):
    torch.save(twelve(192).state, tmp_path / "plain.pth")
    with pytest.raises(InputError) as raised:
        convert(tmp_path / "plain.pth", "timm", tmp_path / "out.safetensors", options=words)
    assert said in str(raised.value) and "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["plain.pth"]


@pytest.mark.detectron2
def test_vitdet_is_built_with_the_options(twelve, tmp_path):
    from detectron2.config import get_cfg
    from detectron2.layers import ShapeSpec

    from convert.targets.detectron2_backbones import add_config, build_vitdet_backbone

    torch.save(twelve(192).state, tmp_path / "plain.pth")
    report = convert(tmp_path / "plain.pth", "detectron2", tmp_path / "vit.pth", options=["num_heads=12"])
    assert max(report["differences"]["detectron2 from the file"].values()) <= TOLERANCE
    assert "num_heads=12" in (tmp_path / "vit.py").read_text()
    cfg = get_cfg()
    add_config(cfg)
    cfg.MODEL.TIMM.ARCH, cfg.MODEL.TIMM.OPTIONS = "vit_tiny_patch16_224", f"img_size={SIZE} num_heads=12"
    net = build_vitdet_backbone(cfg, ShapeSpec(channels=3)).net
    assert net.blocks[0].attn.num_heads == 12 and net.pos_embed.shape[1] == (SIZE // 16) ** 2 + 1


@pytest.mark.parametrize("to", ["mmdet", "detectron2"])
def test_registered_backbones_are_built_with_the_options(to, tmp_path):
    pytest.importorskip(to)
    torch.save(timm_own("mobilenetv3_small_050").state, tmp_path / "plain.pth")
    report = convert(
        tmp_path / "plain.pth", to, tmp_path / "out.pth", arch="mobilenetv3_small_050", options=["act_layer=relu"]
    )
    assert max(report["differences"][f"{to} from the file"].values()) <= TOLERANCE
    snippet = next(path for path in tmp_path.iterdir() if path.suffix in (".py", ".yaml")).read_text()
    assert {"mmdet": "options={'act_layer': 'relu'}", "detectron2": 'OPTIONS: "act_layer=relu"'}[to] in snippet


@pytest.mark.parametrize(
    "to, arch",
    [
        ("timm", "resnet18"),
        ("timm", "vit_tiny_patch16_224"),
        ("torchvision", "resnet18"),
        ("torchvision", "mobilenetv2_100"),
        ("torchvision", "vit_base_patch16_224"),
        ("mmdet", "mobilenetv3_small_050"),
        ("detectron2", "mobilenetv3_small_050"),
        ("detectron2", "vit_tiny_patch16_224"),
        ("onnx", "resnet18"),
    ],
)
def test_an_epsilon_goes_where_the_network_goes(to, arch, tmp_path):
    """Features after loading agree, and where the snippet is a program its network's norms all have the epsilon."""
    pytest.importorskip(to)
    torch.save(timm_own(arch).state, tmp_path / "plain.pth")
    out = tmp_path / f"out{TARGETS[to].suffixes[0]}"
    report = convert(tmp_path / "plain.pth", to, out, arch=arch, options=["norm_eps=0.001"])
    assert max(value for seen in report["differences"].values() for value in seen.values()) <= 1e-4
    snippets = [file.read_text() for file in tmp_path.iterdir() if file.suffix in (".py", ".yaml")]
    assert to == "onnx" or "0.001" in snippets[0]
    if to in ("timm", "torchvision"):
        names: dict = {}
        exec(compile(snippets[0], "snippet", "exec"), names)
        assert {module.eps for module in names["model"].modules() if hasattr(module, "eps")} == {0.001}
    with torch.no_grad():
        images = fixed_image(224, 224)
        usual, other = (
            load_network(tmp_path / "plain.pth", arch=arch, options=options)[0].eval()(images)
            for options in ({}, {"norm_eps": 0.001})
        )
        assert relative(usual, other) > 1e-4


@pytest.mark.parametrize("to", ["torchvision", "mmdet", "detectron2"])
def test_a_target_that_cannot_be_built_so_is_refused(to, tmp_path):
    torch.save(timm_own("resnet18").state, tmp_path / "plain.pth")
    with pytest.raises(InputError, match="resnet18 with output_stride=16 cannot go there"):
        convert(tmp_path / "plain.pth", to, tmp_path / "out.pth", options=["output_stride=16"])
    if to != "torchvision":
        with pytest.raises(InputError, match="resnet18 with norm_eps=0.001 cannot go there"):
            convert(tmp_path / "plain.pth", to, tmp_path / "out.pth", options=["norm_eps=0.001"])


def deit3(names):
    """DeiT III's ViT-S in timm's names of the layer scale or in its own."""
    own = timm_own("deit3_small_patch16_224", SIZE, img_size=SIZE)
    state = (
        own.state
        if names == "timm"
        else {
            key.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): value
            for key, value in own.state.items()
        }
    )
    return {"model": state}, own


def dinov2(size, patch, heads):
    own = vit_own(size, patch, heads, "vit", size=SIZE, layer_scale=True, mask_token=True)
    return family_files.dinov2_teacher(own), own


LAYER_SCALE = {
    "DINOv2 S/16": lambda: dinov2(384, 16, 6),
    "DeiT III": lambda: deit3("timm"),
    "DeiT III, its own names": lambda: deit3("own"),
    "DINOv2 B/16": lambda: dinov2(768, 16, 12),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if "B/16" in name else name for name in LAYER_SCALE]
)
def test_layer_scale_at_patch_16(name, tmp_path):
    """timm's nearest network is DINOv2's of patch 14 at 518 px, a size that patches of 16 do not fill."""
    content, own = LAYER_SCALE[name]()
    torch.save(content, tmp_path / "file.pth")
    convert(tmp_path / "file.pth", "timm", tmp_path / "out.safetensors")
    images = fixed_image(SIZE, SIZE)
    with torch.no_grad():
        found = network_of(read_checkpoint(tmp_path / "out.safetensors")).eval()(images)
    assert relative(found, own.pooled(images)) < TOLERANCE


def test_only_the_family_tells_a_networks_heads(twelve):
    """The same tensors in two families: the keys around them decide, and the user comes before both."""
    own = twelve(384)
    assert read_content(family_files.mocov3(own), "a.pth").options["num_heads"] == 12
    assert "num_heads" not in read_content(family_files.dino(own), "b.pth").options
    assert read_content(family_files.mocov3(own), "a.pth", options={"num_heads": 6}).options["num_heads"] == 6
    assert timm.create_model("vit_small_patch16_224", num_classes=0).blocks[0].attn.num_heads == 6
