"""How networks are built: widths, build options, how a ViT starts and resizes its positions, also in an evaluation."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F

from benchmarks.classification import knn
from benchmarks.classification.features import entry_facts
from benchmarks.classification.labelled import open_splits
from benchmarks.classification.weights import load_subject
from convert.convert_ckpt import convert
from convert.reader import load_network
from pretrain import train
from pretrain.backbones import build_backbone, check_options, own_size, read_options, set_pos_resize, write_options
from sslight.core.config import load_config
from sslight.core.errors import InputError


def test_the_class_token_starts_as_published():
    """std 0.02 within 20% (192 draws: a standard error of 5%), not timm's 1e-6."""
    torch.manual_seed(0)
    assert build_backbone("vit_tiny").cls_token.std().item() == pytest.approx(0.02, rel=0.2)


def test_the_two_ways_of_resizing_differ_only_at_other_sizes():
    """At 128 and 96 px timm's antialiasing leaves 58% and 42% of the norm that the published way leaves."""
    torch.manual_seed(0)
    published = build_backbone("vit_tiny", pos_resize="published").eval()
    antialiased = build_backbone("vit_tiny").eval()
    antialiased.load_state_dict(published.state_dict())
    for size, left in ((224, 1.0), (128, 0.58), (96, 0.42)):
        images, empty = torch.randn(2, 3, size, size), torch.zeros(1, size // 16, size // 16, 192)
        with torch.no_grad():
            assert torch.equal(published(images), antialiased(images)) == (size == 224)
            norms = [float(model._pos_embed(empty)[:, 1:].norm()) for model in (published, antialiased)]
        assert norms[1] / norms[0] == pytest.approx(left, abs=0.02)


@pytest.mark.parametrize(
    "arch, options",
    [
        ("vit_tiny_patch16_224", {}),
        ("deit_tiny_distilled_patch16_224", {}),
        ("vit_tiny_patch16_224", {"reg_tokens": 2, "no_embed_class": True}),
        ("vit_tiny_patch16_224", {"reg_tokens": 2}),
    ],
)
def test_tokens_are_put_together_as_timm_does(arch, options, monkeypatch):
    """timm's own code with nothing but its resampling replaced gives the same features, at its size and elsewhere."""

    def resample(positions, new_size, old_size, num_prefix_tokens):
        first, rest = positions[:, :num_prefix_tokens], positions[:, num_prefix_tokens:]
        rest = F.interpolate(
            rest.transpose(1, 2).reshape(1, -1, *old_size),
            scale_factor=((new_size[0] + 0.1) / old_size[0], (new_size[1] + 0.1) / old_size[1]),
            mode="bicubic",
        )
        return torch.cat([first, rest.flatten(2).transpose(1, 2)], 1)

    torch.manual_seed(0)
    ours = build_backbone(arch, pos_resize="published", **options).eval()
    theirs = build_backbone(arch, **options).eval()
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        assert torch.equal(ours(torch.ones(1, 3, 224, 224)), theirs(torch.ones(1, 3, 224, 224)))
        for module in ("vision_transformer", "deit"):
            monkeypatch.setattr(getattr(timm.models, module), "resample_abs_pos_embed", resample)
        images = torch.randn(2, 3, 96, 128)
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-6, atol=1e-6)


def test_a_copy_and_a_compiled_graph_resize_the_same_way():
    torch.manual_seed(0)
    model, images = build_backbone("test_vit", pos_resize="published").eval(), torch.randn(2, 3, 96, 96)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        expected = model(images)
        torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(images), expected)
        twin.pos_embed.mul_(2.0)
        assert twin._pos_embed.__self__ is twin and not torch.allclose(twin(images), expected)
        assert torch.equal(model(images), expected)
        set_pos_resize(model, "timm")
        assert not torch.allclose(model(images), expected)
    with pytest.raises(InputError, match="did you mean 'published'"):
        build_backbone("test_vit", pos_resize="publish")


def test_a_checkpoint_says_how_it_was_trained_and_is_evaluated_so(image_folder, tmp_path):
    """By default as trained; a file that says nothing, timm's way; MODEL.POS_RESIZE names another."""
    files = {}
    for how in ("published", "timm"):
        out = tmp_path / how
        train.main(
            [
                str(word)
                for word in [
                    "DATA.PATH_TO_DATA_DIR",
                    image_folder,
                    "OUTPUT_DIR",
                    out,
                    "MODEL.BACKBONE_ARCH",
                    "test_vit",
                    "VIEWS.GLOBAL_SIZE",
                    160,
                    "VIEWS.LOCAL_SIZE",
                    32,
                    "VIEWS.LOCAL_NUMBER",
                    1,
                    "TRAIN.BATCH_SIZE",
                    48,
                    "SOLVER.TOTAL_EPOCHS",
                    1,
                    "SOLVER.WARMUP_EPOCHS",
                    0,
                    "DINO.OUTPUT_DIM",
                    16,
                    "DINO.HIDDEN_SIZE",
                    16,
                    "DATA.WORKERS",
                    0,
                    "KNN.PERIOD",
                    0,
                    *(["MODEL.POS_RESIZE", how] if how == "timm" else []),
                ]
            ]
        )
        files[how] = out / "checkpoints" / "last.pth"
        convert(files[how], "timm", out / "converted.safetensors")
        for file in (files[how], out / "backbone.safetensors", out / "converted.safetensors"):
            network, read = load_network(file)
            assert network.pos_resize == read.preprocess["pos_resize"] == how
    model = build_backbone("test_vit")
    torch.save(model.state_dict(), tmp_path / "other.pth")
    for weights, asked, expected in (
        (files["published"], "", "published"),
        (files["published"], "timm", "timm"),
        (files["timm"], "", "timm"),
        (tmp_path / "other.pth", "", "timm"),
        (tmp_path / "other.pth", "published", "published"),
    ):
        cfg = load_config(
            knn.EVALUATION.settings,
            None,
            [
                "WEIGHTS",
                str(weights),
                "MODEL.POS_RESIZE",
                asked,
                "MODEL.BACKBONE_ARCH",
                "test_vit",
                "DATA.PATH_TO_DATA_DIR",
                str(image_folder),
            ],
        )
        subject = load_subject(cfg)
        assert subject.backbone.pos_resize == subject.about["pos_resize"] == expected
        facts = entry_facts(cfg, subject, open_splits(cfg)[1], "pooled", flip=False)
        assert facts["transform"]["pos_resize"] == expected  # cached features are not taken for the other way's


# One small network of each of timm's ways to pool.
WIDTHS = """
beit_base_patch16_224 botnet26t_256 cait_xxs24_224 coat_lite_tiny coatnet_nano_rw_224 convit_tiny convmixer_768_32
convnext_atto crossvit_tiny_240 cspresnet50 davit_tiny deit_tiny_distilled_patch16_224 densenet121 dla34
edgenext_xx_small efficientformer_l1 efficientnet_b0 efficientvit_b0 eva02_tiny_patch14_224 fastvit_t8 ghostnet_050
hardcorenas_a hgnet_tiny inception_v3 lcnet_050 levit_128s mixer_s32_224 mobilenetv2_100 mobilenetv3_small_050
mobilenetv4_conv_small mobilevit_xxs mvitv2_tiny nf_resnet26 poolformer_s12 pvt_v2_b0 regnetx_002 repvgg_a0
res2net50_26w_4s resnet18 rexnet_100 sequencer2d_s swin_tiny_patch4_window7_224 tinynet_e
tf_mobilenetv3_small_minimal_100 vgg11 vit_small_patch16_dinov3 vit_tiny_r_s16_p8_224 xcit_nano_12_p16_224
""".split()


@pytest.mark.parametrize("arch", WIDTHS)
def test_the_width_is_that_of_the_networks_own_output(arch):
    """And looking for it draws no random number: the next network starts as after timm's own."""
    torch.manual_seed(0)
    network = build_backbone(arch).eval()
    drawn = torch.rand(1)
    with torch.no_grad():
        assert network(torch.zeros(1, 3, *own_size(network))).shape == (1, network.feature_dim)
    torch.manual_seed(0)
    build_backbone(arch)  # its width is known by now
    assert torch.equal(torch.rand(1), drawn)


@pytest.mark.parametrize(
    "arch, words, size",
    [
        ("vit_small_patch14_dinov2", "patch_size=16", 512),  # 518 px are no whole number of such patches
        ("vit_small_patch14_dinov2", "patch_size=16 img_size=224", 224),
        ("deit3_small_patch16_224", "patch_size=14", 224),
        ("vit_tiny_patch16_224", "class_token=False global_pool=avg fc_norm=False depth=2", 224),
        (
            "vit_tiny_patch16_224",
            "pre_norm=True act_layer=quick_gelu norm_eps=1e-05 qk_norm=True mlp_ratio=2 depth=2",
            224,
        ),
        (
            "vit_tiny_patch16_224",
            "embed_dim=96 num_heads=2 reg_tokens=4 no_embed_class=True qkv_bias=False depth=2",
            224,
        ),
        ("vit_small_patch16_dinov3", "rope_temperature=50 rope_rotate_half=True global_pool=token depth=2", 256),
        ("vit_small_patch16_dinov3", "num_reg_tokens=0 num_heads=12 qk_norm=True init_values=0.1 depth=2", 256),
        ("mobilenetv2_100", "pad_type=same act_layer=relu", 224),
        ("tf_mobilenetv3_small_100", "pad_type= norm_eps=1e-05", 224),
        ("efficientnet_b0", "act_layer=relu6 global_pool=catavgmax", 224),
    ],
)
def test_options_are_written_read_and_built(arch, words, size):
    options = read_options(words.split())
    assert read_options(write_options(options).split()) == options
    check_options(arch, options)
    network = build_backbone(arch, **options).eval()
    assert own_size(network) == (size, size)
    with torch.no_grad():
        assert network(torch.zeros(1, 3, size, size)).shape == (1, network.feature_dim)


@pytest.mark.parametrize(
    "arch, words, said",
    [
        ("vit_tiny_patch16_224", "global_pool=", "has no pooled feature"),
        ("vit_tiny_patch16_224", "class_token=False", "Token pooling needs the class token"),
        ("vit_tiny_patch16_224", "act_layer=none_such", "timm builds no vit_tiny_patch16_224 with act_layer=none_such"),
        ("vit_tiny_patch16_224", "num_heads=", "a whole number"),
        ("vit_small_patch16_dinov3", "reg_tokens=4", "did you mean 'num_reg_tokens'"),
        ("mobilenetv2_100", "pad_type=valid_", "pad_type expects same"),
        ("resnet18", "norm_eps=0", "norm_eps expects a number"),
        ("resnet18", "norm_eps=small", "norm_eps expects a number"),
        ("dm_nfnet_f0", "norm_eps=1e-5", "has no norm layers"),
    ],
)
def test_options_that_cannot_be_built_are_refused_in_one_line(arch, words, said):
    with pytest.raises(InputError) as raised:
        check_options(arch, read_options(words.split()))
    assert said in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("arch", ["resnet18", "vit_tiny", "convnext_atto", "levit_128s", "test_efficientnet_gn"])
def test_norm_eps_reaches_every_norm_layer(arch):
    """Against the modules' own attribute, but those whose epsilon is of no norm layer."""
    torch.manual_seed(0)
    usual = build_backbone(arch).eval()
    torch.manual_seed(0)
    other = build_backbone(arch, norm_eps=0.5).eval()
    assert {module.eps for module in other.modules() if hasattr(module, "eps")} == {0.5}
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert not torch.allclose(usual(images), other(images), rtol=1e-3)
