"""What a run consists of at a step, and how it is saved and continued bit for bit."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from pretrain.backbones import read_options
from pretrain.data.sources import open_source
from pretrain.methods import Method, Progress
from pretrain.optim import global_batch
from sslight.core import distributed
from sslight.core.checkpoint import FORMAT, backbone_state, load_checkpoint, save_backbone, save_checkpoint, sha256
from sslight.core.config import to_dict
from sslight.core.errors import InputError
from sslight.core.files import write_atomically
from sslight.core.logs import RunLog
from sslight.core.rundir import check_same_recipe


class Objective(nn.Module):
    """The method's loss, and the joint linear probe's when there are labels: what one process (or DDP) steps on.

    The probe is a linear classifier on the detached backbone feature; its cross-entropy is added to the loss, so it
    trains beside the network, under the same optimizer, without touching it.
    """

    def __init__(self, method: Method, classes: int = 0):
        super().__init__()
        self.method = method
        self.classifier = nn.Linear(method.backbone.feature_dim, classes) if classes else None
        if self.classifier is not None:
            method.init_probe(self.classifier)

    def forward(self, views: list[Tensor], labels: Tensor | None, progress: Progress) -> dict[str, Tensor]:
        """Returns the method's dict, with `probe_loss` and `probe_top1` (fraction) if there is a probe."""
        result = self.method(views, progress)
        if self.classifier is not None:
            logits = self.classifier(result["feature"].float())
            assert labels is not None  # a probe comes with a labelled source
            probe_loss = F.cross_entropy(logits, labels)
            result["loss"] = result["loss"] + probe_loss
            result["probe_loss"] = probe_loss.detach()
            result["probe_top1"] = (logits.argmax(1) == labels).float().mean()
        return result


@dataclass
class State:
    """Everything a checkpoint holds and a step changes."""

    objective: Objective
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    step: int = 0
    epoch_open: bool = False  # an epoch's last step is done, its measuring and keeping are not
    start: dict = field(default_factory=dict)  # `Start.about` of the weights that the run began with


def last_checkpoint(out_dir: Path) -> Path:
    """Where the run in `out_dir` stands."""
    return out_dir / "checkpoints" / "last.pth"


def save(cfg: CfgNode, state: State, out_dir: Path, steps_per_epoch: int, keep: bool = False) -> None:
    """Write `last.pth`; with `keep` also `epoch_NNNN.pth`."""
    model = state.objective.method.state_dict()
    if state.objective.classifier is not None:
        model |= {f"classifier.{key}": value for key, value in state.objective.classifier.state_dict().items()}
    rng = gather_rng()
    if not distributed.is_main():
        return
    method = state.objective.method
    epoch = state.step // steps_per_epoch
    checkpoint = {
        "format": FORMAT,
        "method": cfg.METHOD,
        "arch": method.backbone.arch,
        "options": read_options(cfg.MODEL.OPTIONS.split()),
        "start": state.start,
        "epoch": epoch,
        "step": state.step,
        "model": model,
        "optimizer": state.optimizer.state_dict(),
        "scaler": state.scaler.state_dict(),
        "rng": rng,
        "config": to_dict(cfg),
        "preprocess": preprocess(cfg, method.backbone),
        "networks": dict(method.networks),
        "global_batch": global_batch(cfg),
        "epoch_open": state.epoch_open,
    }
    last = last_checkpoint(out_dir)
    save_checkpoint(last, checkpoint)
    if keep:
        write_atomically(last.with_name(f"epoch_{epoch:04d}.pth"), lambda temporary: shutil.copyfile(last, temporary))


def gather_rng() -> list[dict[str, Tensor]]:
    """Every rank's random states, in rank order."""
    mine = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        mine["cuda"] = torch.cuda.get_rng_state()
    if distributed.world_size() == 1:
        return [mine]
    gathered: list = [None] * distributed.world_size()
    torch.distributed.all_gather_object(gathered, mine)
    return gathered


def preprocess(cfg: CfgNode, backbone: nn.Module) -> dict:
    """How images must be fed to the network, and how a ViT was trained to see those of another size.

    Part of every file that carries its weights.
    """
    positions = {"pos_resize": backbone.pos_resize} if hasattr(backbone, "pos_resize") else {}
    return {
        "mean": list(cfg.DATA.MEAN),
        "std": list(cfg.DATA.STD),
        "color_order": "RGB",
        "size": cfg.VIEWS.GLOBAL_SIZE,
        **positions,
    }


def resume(cfg: CfgNode, state: State, out_dir: Path, log: RunLog, free: Collection[str], consent: str) -> None:
    """Load where the run stands: its own `last.pth`, else TRAIN.CHECKPOINT_FILE_PATH, else nothing.

    A checkpoint from elsewhere must be of the same recipe but for the keys `free`, unless the flag `consent` is set.
    """
    last = last_checkpoint(out_dir)
    if cfg.TRAIN.AUTO_RESUME and last.exists():
        path = last
    elif cfg.TRAIN.CHECKPOINT_FILE_PATH:
        path = Path(cfg.TRAIN.CHECKPOINT_FILE_PATH)
    else:
        if last.exists():
            raise InputError(
                f"{out_dir} already holds a run and TRAIN.AUTO_RESUME is off: choose another OUTPUT_DIR or turn it on"
            )
        return
    try:
        checkpoint = load_checkpoint(path)
    except InputError as error:
        if path == last:
            raise
        raise InputError(
            f"TRAIN.CHECKPOINT_FILE_PATH goes on with a run of this project: {error}; to start a new run from a "
            f"checkpoint's backbone: MODEL.INIT_WEIGHTS {path}"
        ) from None
    arch = state.objective.method.backbone.arch
    if (checkpoint["method"], checkpoint["arch"]) != (cfg.METHOD, arch):
        raise InputError(
            f"{path} is of {checkpoint['method']} on {checkpoint['arch']}, this run is {cfg.METHOD} on "
            f"{arch}: choose the matching checkpoint or configuration"
        )
    if checkpoint["global_batch"] != global_batch(cfg):
        raise InputError(
            f"{path} was trained with a global batch of {checkpoint['global_batch']}, this start has "
            f"{global_batch(cfg)}: set TRAIN.BATCH_SIZE or TRAIN.ACCUMULATE so that processes x batch x "
            "accumulation stays the same"
        )
    if path != last:
        check_same_recipe(f"{path} was trained", checkpoint["config"], cfg, free, consent)
    model = dict(checkpoint["model"])
    probe = {key: model.pop(f"classifier.{key}") for key in ("weight", "bias") if f"classifier.{key}" in model}
    try:
        state.objective.method.load_state_dict(model, strict=True)
        if state.objective.classifier is not None:
            state.objective.classifier.load_state_dict(probe, strict=True)
        state.optimizer.load_state_dict(checkpoint["optimizer"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise InputError(f"{path} does not fit this configuration: {error}") from None
    state.scaler.load_state_dict(checkpoint.get("scaler", {})) if state.scaler.is_enabled() else None
    if distributed.rank() < len(checkpoint["rng"]):
        rng = checkpoint["rng"][distributed.rank()]
        torch.set_rng_state(rng["cpu"])
        if "cuda" in rng and torch.cuda.is_available():
            torch.cuda.set_rng_state(rng["cuda"])
    state.step, state.epoch_open = checkpoint["step"], checkpoint["epoch_open"]
    state.start = checkpoint.get("start", {})
    if path != last and distributed.is_main():  # the run owns what it stands on, also before it saves for itself
        write_atomically(last, lambda temporary: shutil.copyfile(path, temporary))
    log(f"continuing from {path} at step {state.step}")


def describe(start: dict) -> str:
    """`Start.about` in words."""
    revision = f"revision {start['revision']}, " if start["revision"] else ""
    return (
        f"{start['path']} ({start['arch']}, {start['method']}; {start['family']}, network {start['network']}, "
        f"{revision}sha256 {start['sha256']})"
    )


IN_MMDET = ("resnet18", "resnet34", "resnet50", "mobilenetv2_100")


def export_backbone(out_dir: Path) -> str:
    """Write `backbone.safetensors` from `last.pth`; returns a closing message with the next commands."""
    last, target = last_checkpoint(out_dir), out_dir / "backbone.safetensors"
    checkpoint = load_checkpoint(last)
    start, options = checkpoint.get("start", {}), checkpoint.get("options", {})
    save_backbone(
        target,
        backbone_state(checkpoint),
        arch=checkpoint["arch"],
        method=checkpoint["method"],
        preprocess=checkpoint["preprocess"],
        source_sha256=sha256(last),
        converted="exported by pretrain" + (f", which started from {describe(start)}" if start else ""),
        options=options,
        assumed=start.get("assumed"),
    )
    in_mmdet = checkpoint["arch"] in IN_MMDET and not options
    commands = next_commands(out_dir, in_mmdet, checkpoint["config"]["DATA"]["PATH_TO_DATA_DIR"])
    return f"done: {target}\nnext:\n" + "".join(f"  {shlex.join(words)}\n" for words in commands).rstrip()


def next_commands(out_dir: Path, in_mmdet: bool, data: str) -> list[list[str]]:
    """Commands that work as they stand, one after the other: k-NN and the report only where the images have classes."""
    last = str(last_checkpoint(out_dir))
    target, name = ("mmdet", "mmdet.pth") if in_mmdet else ("timm", "timm.safetensors")
    convert = ["sslight", "convert", last, "--to", target, "-o", str(out_dir / name)]
    try:
        for split in ("train", "val"):
            open_source(data, split)
    except InputError:
        return [convert]
    return [
        [
            "sslight",
            "bench",
            "knn",
            "--cfg",
            "configs/classification/knn.yaml",
            "WEIGHTS",
            last,
            "DATA.PATH_TO_DATA_DIR",
            data,
            "OUTPUT_DIR",
            str(out_dir / "results" / "knn"),
        ],
        convert,
        ["sslight", "report", str(out_dir), "-o", str(out_dir / "report.html")],
    ]
