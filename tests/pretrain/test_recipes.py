"""Every published recipe takes real steps, saves, resumes and exports; sizes are shrunk by overrides alone."""

from __future__ import annotations

import pytest
import timm
import torch

from pretrain import train
from sslight.core.errors import Stopped
from sslight.core.rundir import StopSignal
from tests.conftest import ROOT

# The 12 rows of the published table, baseline and SSLight.
ROWS = [(f"dino_vit_{kind}", "vit_tiny") for kind in ("baseline", "sslight")]
ROWS += [
    (f"dino_cnn_{kind}", arch) for arch in ("resnet18", "resnet34", "mobilenet_v2") for kind in ("baseline", "sslight")
]
ROWS += [(f"{method}_cnn_{kind}", "mobilenet_v2") for method in ("swav", "moco") for kind in ("baseline", "sslight")]
ROWS += [("simsiam_resnet", "resnet18")]  # of its own paper

SMALL = [
    "VIEWS.GLOBAL_SIZE",
    32,
    "VIEWS.LOCAL_SIZE",
    16,
    "DINO.OUTPUT_DIM",
    64,
    "DINO.HIDDEN_SIZE",
    64,
    "SWAV.PROTOTYPES",
    32,
    "SWAV.HIDDEN_SIZE",
    64,
    "SWAV.QUEUE_LENGTH",
    8,
    "SWAV.EPOCH_QUEUE_STARTS",
    1,
    "MOCO.QUEUE_LENGTH",
    32,
    "MOCO.HIDDEN_SIZE",
    64,
    "SIMSIAM.HIDDEN_SIZE",
    64,
    "SIMSIAM.OUTPUT_DIM",
    64,
    "TRAIN.BATCH_SIZE",
    4,
    "SOLVER.TOTAL_EPOCHS",
    2,
    "SOLVER.WARMUP_EPOCHS",
    1,
    "TRAIN.JOINT_LINEAR_PROBE",
    True,
    "DATA.WORKERS",
    0,
    "KNN.PERIOD",
    2,
]


@pytest.fixture(scope="module")
def few_images(image_folder, tmp_path_factory):
    """Three optimizer steps an epoch."""
    root = tmp_path_factory.mktemp("few")
    for split, number in (("train", 3), ("val", 2)):
        for folder in (image_folder / split).iterdir():
            (root / split / folder.name).mkdir(parents=True)
            for image in sorted(folder.iterdir())[:number]:
                (root / split / folder.name / image.name).symlink_to(image)
    return root


@pytest.mark.parametrize("config, arch", ROWS)
def test_recipe(config, arch, few_images, tmp_path, monkeypatch):
    out_dir = tmp_path / "run"
    command = [
        str(item)
        for item in [
            "--cfg",
            ROOT / "configs" / "pretrain" / f"{config}.yaml",
            "MODEL.BACKBONE_ARCH",
            arch,
            *SMALL,
            "DATA.PATH_TO_DATA_DIR",
            few_images,
            "OUTPUT_DIR",
            out_dir,
        ]
    ]
    asked = iter([False, True])  # stop after the second of six steps
    with monkeypatch.context() as patch:
        patch.setattr(StopSignal, "requested", lambda self: next(asked))
        with pytest.raises(Stopped):
            train.main(command)
    stopped = torch.load(out_dir / "checkpoints" / "last.pth", weights_only=True)
    assert stopped["step"] == 2 and "classifier.weight" in stopped["model"]  # published with the joint probe
    train.main(command)
    finished = torch.load(out_dir / "checkpoints" / "last.pth", weights_only=True)
    assert finished["step"] == 6
    prefix = next(iter(finished["networks"].values()))
    weights = [key for key in finished["model"] if key.startswith(prefix) and key.endswith(".weight")]
    moved = [key for key in weights if not torch.equal(finished["model"][key], stopped["model"][key])]
    assert len(moved) > 0.9 * len(weights)
    network = timm.create_model(finished["arch"], num_classes=0, checkpoint_path=str(out_dir / "backbone.safetensors"))
    for key, value in network.state_dict().items():
        assert torch.equal(value, finished["model"][prefix + key]), key
