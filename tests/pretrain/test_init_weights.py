"""Pre-training that starts from a checkpoint: every encoder has its tensors, the run its network and preprocessing."""

from __future__ import annotations

import json
import shutil

import pytest
import timm
import torch

from benchmarks.classification import knn
from benchmarks.classification.weights import load_subject
from convert.convert_ckpt import convert
from pretrain import train
from pretrain.settings import DEFAULTS
from pretrain.start import begin
from sslight.core.checkpoint import backbone_state, load_checkpoint, save_backbone, sha256
from sslight.core.config import configure, load_config, read_given
from sslight.core.errors import InputError
from tests.convert.own_networks import randomised
from tests.pretrain.tiny import TINY

PREPROCESS = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "color_order": "RGB", "size": 64}
SMALL = {
    **{key: value for key, value in TINY.items() if key != "MODEL.BACKBONE_ARCH"},
    "METHOD": "dino",
    "TRAIN.BATCH_SIZE": 32,
    "SOLVER.TOTAL_EPOCHS": 2,
    "SOLVER.WARMUP_EPOCHS": 0,
    "TRAIN.CHECKPOINT_PERIOD": 1,
    "VIEWS.GLOBAL_SIZE": 48,
    "VIEWS.LOCAL_SIZE": 32,
    "VIEWS.LOCAL_NUMBER": 1,
    "MOCO.QUEUE_LENGTH": 64,
    "DATA.WORKERS": 0,
    "KNN.PERIOD": 0,
    "DEVICE": "cpu",
}
NETWORKS = {"dino": 2, "moco": 2, "swav": 1, "simsiam": 1}


def words(settings: dict) -> list[str]:
    return [str(word) for key, value in settings.items() for word in (key, value)]


def start(*further: object, **settings: object):
    """(configuration, start) of a small run; settings spell the dots of keys as double underscores."""
    named = {key.replace("__", "."): value for key, value in settings.items()}
    given = read_given(None, [*words({**SMALL, **named}), *map(str, further)])
    return begin(configure(DEFAULTS, given), {key for key, *_ in given})


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """A file of torchvision's names with a classifier: nothing but a conversion reads it into timm's network."""
    network = randomised(timm.create_model("resnet18"))
    file = tmp_path_factory.mktemp("given") / "resnet.pth"
    torch.save({"state_dict": {f"module.{key}": value for key, value in network.state_dict().items()}}, file)
    return file, {key: value for key, value in network.state_dict().items() if not key.startswith("fc.")}


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """A backbone file of a ViT-Ti of 12 heads and another epsilon at 64 px, with its own mean and std."""
    network = randomised(timm.create_model("vit_tiny_patch16_224", num_classes=0, num_heads=12, img_size=64, depth=2))
    file = tmp_path_factory.mktemp("given") / "vit.safetensors"
    save_backbone(
        file,
        network.state_dict(),
        arch="vit_tiny_patch16_224",
        method="mocov3",
        preprocess=PREPROCESS,
        options={"num_heads": 12, "norm_eps": 1e-12, "img_size": 64, "depth": 2},
    )
    return file, network.state_dict()


@pytest.mark.parametrize("method", NETWORKS)
def test_every_encoder_is_the_checkpoint_and_the_heads_are_new(method, resnet, image_folder):
    file, expected = resnet
    settings = {"METHOD": method, "DATA__PATH_TO_DATA_DIR": image_folder}
    cfg, begun = start(**settings, MODEL__INIT_WEIGHTS=file)
    assert cfg.MODEL.BACKBONE_ARCH == "resnet18" and cfg.MODEL.INIT_SHA256 == sha256(file)
    started = train.build(cfg, torch.device("cpu"), begun)[0].objective.method
    plain = train.build(*start(**settings, MODEL__BACKBONE_ARCH="resnet18")[:1], torch.device("cpu"))[
        0
    ].objective.method
    prefixes = tuple(started.networks.values())
    assert len(prefixes) == NETWORKS[method]
    state = started.state_dict()
    for prefix in prefixes:
        own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        assert own.keys() == expected.keys() and all(torch.equal(own[key], expected[key]) for key in own)
    for key, value in plain.state_dict().items():
        assert key.startswith(prefixes) or torch.equal(state[key], value), key


def test_a_run_goes_on_bit_for_bit_without_the_file(vit, image_folder, tmp_path, capsys):
    """The file is read at the start alone; the backbone says what it came from, and is built as it was."""
    file = tmp_path / "start.safetensors"
    shutil.copyfile(vit[0], file)
    common = words({**SMALL, "MODEL.INIT_WEIGHTS": file, "DATA.PATH_TO_DATA_DIR": image_folder})
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train.main([*common, "OUTPUT_DIR", str(whole)])
    log = (whole / "log.txt").read_text()
    assert f"starting from {file} (vit_tiny_patch16_224, mocov3; sslight-backbone" in log
    (stopped / "checkpoints").mkdir(parents=True)
    shutil.copyfile(whole / "checkpoints" / "epoch_0001.pth", stopped / "checkpoints" / "last.pth")
    shutil.copyfile(whole / "config.yaml", stopped / "config.yaml")
    other = tmp_path / "other.safetensors"
    save_backbone(
        other,
        vit[1],
        arch="vit_tiny_patch16_224",
        method="x",
        preprocess=PREPROCESS,
        options={"num_heads": 12, "img_size": 64, "depth": 2},
    )
    with pytest.raises(InputError, match="MODEL.INIT_SHA256"):
        train.main([*common, "MODEL.INIT_WEIGHTS", str(other), "OUTPUT_DIR", str(stopped)])
    moved = file.rename(tmp_path / "moved.safetensors")
    for weights in (file, moved):  # gone; elsewhere
        train.main([*common, "MODEL.INIT_WEIGHTS", str(weights), "OUTPUT_DIR", str(stopped)])
    ends = [load_checkpoint(folder / "checkpoints" / "last.pth") for folder in (whole, stopped)]
    assert all(torch.equal(ends[0]["model"][key], value) for key, value in ends[1]["model"].items())
    assert ends[0]["start"] == ends[1]["start"] and ends[0]["start"]["sha256"] == sha256(moved)
    assert ends[0]["options"] == {"num_heads": 12, "norm_eps": 1e-12, "img_size": 64, "depth": 2}
    # what it was built of stays: in the export, in a conversion, in what an evaluation measures
    last, converted = stopped / "checkpoints" / "last.pth", tmp_path / "converted.safetensors"
    convert(last, "timm", converted)
    reference = timm.create_model("vit_tiny_patch16_224", num_classes=0, num_heads=12, img_size=64, depth=2).eval()
    reference.load_state_dict(backbone_state(ends[1]))
    for norm in (module for module in reference.modules() if isinstance(module, torch.nn.LayerNorm)):
        norm.eps = 1e-12
    snippet: dict = {}
    exec(compile(converted.with_suffix(".py").read_text(), "snippet", "exec"), snippet)
    assert snippet["model"](torch.randn(1, 3, 48, 48)).shape == (1, 192)  # the size of the views, not of the positions
    images = torch.randn(2, 3, 64, 64)
    for made in (stopped / "backbone.safetensors", last, converted):
        evaluated = ["WEIGHTS", made, "DATA.PATH_TO_DATA_DIR", image_folder]
        subject = load_subject(load_config(knn.EVALUATION.settings, None, [str(word) for word in evaluated]))
        assert subject.about["options"] == ends[0]["options"] and subject.about["assumed"] == []
        assert (subject.mean, subject.std) == (PREPROCESS["mean"], PREPROCESS["std"])
        with torch.no_grad():
            torch.testing.assert_close(subject.backbone.eval()(images), reference(images), rtol=1e-6, atol=1e-6)
    # and round again: the next run starts from what this one exported
    cfg, begun = start(MODEL__INIT_WEIGHTS=stopped / "backbone.safetensors")
    assert all(torch.equal(begun.state[key], value) for key, value in reference.state_dict().items())
    assert cfg.MODEL.OPTIONS == "num_heads=12 norm_eps=1e-12 img_size=64 depth=2"


def test_the_preprocessing_is_the_checkpoints_unless_it_is_set(vit):
    cfg, begun = start(MODEL__INIT_WEIGHTS=vit[0])
    assert (cfg.DATA.MEAN, cfg.DATA.STD, cfg.MODEL.POS_RESIZE) == (PREPROCESS["mean"], PREPROCESS["std"], "timm")
    assert not begun.notes
    imagenet = DEFAULTS["DATA"]["MEAN"]  # type: ignore[index]
    cfg, begun = start(MODEL__INIT_WEIGHTS=vit[0], DATA__MEAN=imagenet)
    assert (cfg.DATA.MEAN, cfg.DATA.STD) == (imagenet, PREPROCESS["std"])
    assert begun.notes == [f"DATA.MEAN {imagenet} is used, as it is set; {vit[0]} was trained with [0.1, 0.2, 0.3]"]


def test_a_network_of_bgr_images_sees_them_as_rgb(tmp_path, image_folder):
    network, file = randomised(timm.create_model("resnet18", num_classes=0)), tmp_path / "bgr.safetensors"
    save_backbone(
        file, network.state_dict(), arch="resnet18", method="x", preprocess={**PREPROCESS, "color_order": "BGR"}
    )
    cfg, begun = start(MODEL__INIT_WEIGHTS=file, DATA__PATH_TO_DATA_DIR=image_folder)
    assert cfg.DATA.MEAN == [0.3, 0.2, 0.1] and "expects BGR" in begun.notes[0]
    ours = train.build(cfg, torch.device("cpu"), begun)[0].objective.method.backbone.eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), network.eval()(images.flip(1)), rtol=1e-5, atol=1e-5)


def test_words_and_folders_name_weights_as_everywhere(tmp_path, monkeypatch):
    """ImageNet's of torchvision, from torch's cache; a folder that timm's saver wrote; random ones, which are none."""
    network = randomised(timm.create_model("resnet18"))
    (tmp_path / "cache" / "checkpoints").mkdir(parents=True)
    torch.save(network.state_dict(), tmp_path / "cache" / "checkpoints" / "resnet18-f37072fd.pth")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
    timm.models.save_for_hf(network, tmp_path / "saved", safe_serialization=True)
    for word, method in (("SUPERVISED", "supervised"), (tmp_path / "saved", "unknown")):
        cfg, begun = start(MODEL__INIT_WEIGHTS=word, MODEL__BACKBONE_ARCH="resnet18")
        assert (begun.about["path"], begun.about["method"], begun.about["revision"]) == (str(word), method, "")
        assert torch.equal(begun.state["conv1.weight"], network.conv1.weight)
    with pytest.raises(InputError, match="SUPERVISED needs an architecture"):
        start(MODEL__INIT_WEIGHTS="SUPERVISED")
    cfg, begun = start(MODEL__INIT_WEIGHTS="random", MODEL__BACKBONE_ARCH="resnet18")
    assert not begun.state and cfg.MODEL.BACKBONE_ARCH == "resnet18"


def test_a_dinov2_sees_views_of_whole_patches(tmp_path, image_folder):
    """Its positions are of 518 px: they are resized to the views, timm's way."""
    arch, options = "vit_small_patch14_dinov2", {"depth": 1}
    network, file = (
        timm.create_model(arch, num_classes=0, dynamic_img_size=True, **options),
        tmp_path / "v2.safetensors",
    )
    save_backbone(
        file, network.state_dict(), arch=arch, method="dinov2", preprocess={**PREPROCESS, "size": 518}, options=options
    )
    settings = {"MODEL__INIT_WEIGHTS": file, "DATA__PATH_TO_DATA_DIR": image_folder, "VIEWS__GLOBAL_SIZE": 56}
    cfg, begun = start(**settings, VIEWS__LOCAL_SIZE=28)
    backbone = train.build(cfg, torch.device("cpu"), begun)[0].objective.method.backbone.eval()
    images = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), network.eval()(images))
    with pytest.raises(InputError, match="does not take views of 32 px.* to multiples of 14"):
        train.build(start(**settings)[0], torch.device("cpu"))


def test_options_of_the_user_reach_the_network(tmp_path, image_folder):
    torch.save(timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict(), tmp_path / "plain.pth")
    settings = {"DATA__PATH_TO_DATA_DIR": image_folder, "MODEL__INIT_WEIGHTS": tmp_path / "plain.pth"}
    cfg, begun = start(**settings)
    assert any("heads are not recorded" in note for note in begun.notes)
    cfg, begun = start(**settings, MODEL__OPTIONS="num_heads=12 norm_eps=1e-12")
    backbone = train.build(cfg, torch.device("cpu"), begun)[0].objective.method.backbone
    assert backbone.blocks[0].attn.num_heads == 12 and backbone.norm.eps == 1e-12
    assert not any("heads" in note for note in begun.notes)


def test_a_dry_run_checks_the_file_and_shows_what_it_says(vit, image_folder, tmp_path, capsys):
    common = ["--dry-run", *words(SMALL), "DATA.PATH_TO_DATA_DIR", str(image_folder)]
    train.main([*common, "MODEL.INIT_WEIGHTS", str(vit[0]), "DATA.STD", "[1.0, 1.0, 1.0]"])
    printed = capsys.readouterr().out
    for line in (
        "BACKBONE_ARCH: vit_tiny_patch16_224",
        f"# starting from {vit[0]}",
        "# note: DATA.STD [1.0, 1.0, 1.0]",
    ):
        assert line in printed
    with pytest.raises(InputError, match="not found: .*none.pth"):
        train.main([*common, "MODEL.INIT_WEIGHTS", str(tmp_path / "none.pth")])


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"MODEL__BACKBONE_ARCH": "resnet34"}, "holds a resnet18, but MODEL.BACKBONE_ARCH is resnet34"),
        ({"MODEL__BACKBONE_ARCH": "vit_tiny"}, "holds a resnet18, but MODEL.BACKBONE_ARCH is vit_tiny"),
        ({"MODEL__INIT_SHA256": "f" * 64}, "is another file than MODEL.INIT_SHA256 says"),
        ({"MODEL__OPTIONS": "num_heads=12"}, "has no build option 'num_heads'"),
        ({"MODEL__INIT_WEIGHTS": "", "MODEL__INIT_SHA256": "f" * 64}, "MODEL.INIT_WEIGHTS, which is not set"),
    ],
)
def test_what_contradicts_the_file_is_refused_in_one_line(settings, said, resnet):
    with pytest.raises(InputError) as raised:
        start(**{"MODEL__INIT_WEIGHTS": resnet[0], **settings})
    assert said in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("arch", ["", "resnet18"])
def test_the_same_network_by_name_is_no_contradiction(arch, resnet):
    assert start(MODEL__INIT_WEIGHTS=resnet[0], MODEL__BACKBONE_ARCH=arch)[0].MODEL.BACKBONE_ARCH == "resnet18"


def test_a_foreign_file_to_go_on_with_is_told_its_key(resnet, image_folder, tmp_path):
    with pytest.raises(InputError, match=f"MODEL.INIT_WEIGHTS {resnet[0]}"):
        train.main(
            words(
                {
                    **SMALL,
                    "MODEL.BACKBONE_ARCH": "resnet18",
                    "DATA.PATH_TO_DATA_DIR": image_folder,
                    "OUTPUT_DIR": tmp_path / "run",
                    "TRAIN.CHECKPOINT_FILE_PATH": resnet[0],
                }
            )
        )


def test_two_processes_start_from_the_same_weights(vit, image_folder, tmp_path, run):
    """At a learning rate of 0 a ViT, which has no statistics, is after an epoch what it was, on the mean of both."""
    still = {"SOLVER.BASE_LR": 0, "SOLVER.MIN_LR": 0, "SOLVER.WEIGHT_DECAY": 0, "SOLVER.WEIGHT_DECAY_END": 0}
    settings = {**SMALL, **still, "SOLVER.TOTAL_EPOCHS": 1, "MODEL.INIT_WEIGHTS": vit[0], "TRAIN.LOG_PERIOD": 1}
    run(
        *("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, "-m", "pretrain", *words(settings)),
        *("DATA.PATH_TO_DATA_DIR", image_folder, "OUTPUT_DIR", tmp_path / "two"),
    )
    model = load_checkpoint(tmp_path / "two" / "checkpoints" / "last.pth")["model"]
    for key, value in vit[1].items():
        assert torch.equal(model[f"student.backbone.{key}"], value), key
        torch.testing.assert_close(model[f"teacher.backbone.{key}"], value)  # a moving average rounds
    lines = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    assert len([line for line in lines if "loss" in line]) == 1
