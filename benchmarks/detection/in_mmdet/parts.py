"""What our mmdet configs need beside mmdet: exact resuming, stops, the proof of the backbone, one head's start.

mmengine goes on after an interruption by loading all past batches again and throwing them away; its checkpoints
cannot be read by torch 2.6 and later. Importing this module registers the parts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from convert.targets.mmcv_ops import install

install()

from mmcv.transforms import LoadImageFromFile  # noqa: E402
from mmdet.datasets.samplers import AspectRatioBatchSampler  # noqa: E402
from mmdet.models.roi_heads.mask_heads import FCNMaskHead  # noqa: E402
from mmdet.registry import DATA_SAMPLERS, HOOKS, MODELS, TRANSFORMS  # noqa: E402
from mmengine.fileio import LocalBackend, register_backend  # noqa: E402
from mmengine.hooks import Hook  # noqa: E402
from mmengine.logging import HistoryBuffer  # noqa: E402
from mmengine.model import is_model_wrapper  # noqa: E402

from benchmarks.detection.data import (  # noqa: E402
    CROWD,
    FEW_POINTS,
    OUTSIDE,
    SMALL_IMAGE,
    TINY,
    outlines,
    visible,
)
from benchmarks.detection.preflight import other_size, unreadable, whole  # noqa: E402
from benchmarks.detection.weights import prove  # noqa: E402
from pretrain.data.decode import decode_reference  # noqa: E402
from sslight.core import compat  # noqa: E402
from sslight.core.checkpoint import check_archive  # noqa: E402
from sslight.core.errors import InputError, Stopped  # noqa: E402
from sslight.core.files import write_atomically  # noqa: E402
from sslight.core.rundir import StopSignal  # noqa: E402


class WholeFiles(LocalBackend):
    """mmengine's access to local files, by which a checkpoint appears whole or not at all."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        write_atomically(filepath, lambda temporary: temporary.write_bytes(obj))


register_backend("local", WholeFiles, force=True, prefixes="")


def newest_checkpoint(work_dir: str | Path) -> str | None:
    """The checkpoint of most iterations. mmengine's own note of it, `last_checkpoint`, may be cut off in a crash."""
    files = sorted(Path(work_dir).glob("iter_*.pth"), key=lambda path: int(path.stem.removeprefix("iter_")))
    if files:
        check_archive(files[-1])
    return str(files[-1]) if files else None


@TRANSFORMS.register_module(name="LoadImageFromFile")
class NamedImage(LoadImageFromFile):
    """mmcv's reading of an image under its name, so in every recipe; the error for an unreadable one names it.

    OpenCV fills up with grey what a file lacks: one that does not end as its format does is decoded by PIL as well.
    """

    def transform(self, results: dict) -> dict | None:
        path = results["img_path"]
        try:
            results = super().transform(results)
            with open(path, "rb") as file:
                if not whole(file):
                    file.seek(0)
                    decode_reference(file.read())
        except Exception as cause:  # noqa: BLE001  decoders raise whatever they stumble over
            raise unreadable(path, cause) from None
        size, width, height = results["ori_shape"][::-1], results.get("width"), results.get("height")
        if width is not None and height is not None and size != (width, height):
            raise other_size(path, size, (width, height))
        return results


def left_out(annotation: dict, image: dict, *, masks: bool, min_size: int) -> str:
    """Why mmdet does not train on an object (`CocoDataset`, `LoadAnnotations`); an empty string if it does."""
    if annotation.get("iscrowd"):
        return CROWD
    if min(image["width"], image["height"]) < min_size:
        return SMALL_IMAGE
    if not min(visible(annotation["bbox"], image)):
        return OUTSIDE
    if min(annotation["bbox"][2:]) < 1:
        return TINY
    polygons = annotation.get("segmentation")
    return FEW_POINTS if masks and isinstance(polygons, list) and not outlines(polygons) else ""


@DATA_SAMPLERS.register_module()
class ResumableBatchSampler(AspectRatioBatchSampler):
    """mmdet's batches of like aspect ratio, able to start at any batch without loading the ones before it."""

    skip = 0

    def restart(self, batches: int) -> None:
        """Begin the sequence again, without its first `batches` batches of indices."""
        self.skip = batches
        compat.restart_batches(self)

    def __iter__(self) -> Iterator[list[int]]:
        for number, batch in enumerate(super().__iter__()):
            if number >= self.skip:
                yield batch


class _AfterSkipped:
    """An iterator whose first `skip` items are None: mmengine's loop discards that many when it resumes."""

    def __init__(self, iterator: Iterator, skip: int):
        self.iterator, self.skip = iterator, skip

    def __next__(self):
        if self.skip:
            self.skip -= 1
            return None
        return next(self.iterator)


@HOOKS.register_module()
class ExactResumeHook(Hook):
    """A resumed run sees the batches that the uninterrupted one would have, without reading the earlier ones."""

    def before_train(self, runner) -> None:
        done, loop = runner.iter, runner.train_loop
        sampler = getattr(loop.dataloader, "batch_sampler", None)
        if done and isinstance(sampler, ResumableBatchSampler):
            del loop.dataloader_iterator
            compat.forget_workers(loop.dataloader)  # they hold batches drawn before the checkpoint was read
            sampler.restart(done)
            loop.dataloader_iterator = _AfterSkipped(compat.endless(loop.dataloader), done)


@MODELS.register_module()
class MatchedMaskHead(FCNMaskHead):
    """mmdet's mask head, started as detectron2's: small logits (N(0, 0.001)), the other layers by fan-out and ReLU.

    mmdet draws the last layer by fan-out too, that is by the number of classes: with few of them its logits start so
    large that the first steps can kill the head's ReLUs (a mask loss of 1.2 to 400 instead of 0.69).
    """

    def init_weights(self) -> None:
        super().init_weights()
        for convolution in self.convs:
            nn.init.kaiming_normal_(convolution.conv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.conv_logits.weight, std=0.001)


@HOOKS.register_module()
class BackboneProofHook(Hook):
    """Before the first step: every backbone tensor equals the file's, or the run stops with the list."""

    priority = "VERY_HIGH"

    def __init__(self, file: str, prefix: str = ""):
        self.file, self.prefix = file, prefix

    def before_train(self, runner) -> None:
        if runner.iter == 0:
            model = runner.model.module if is_model_wrapper(runner.model) else runner.model
            state = torch.load(self.file, map_location="cpu", weights_only=True)["state_dict"]
            count = prove(model.backbone.state_dict(), state, self.file)
            runner.logger.info(f"backbone proved: {count} tensors equal to {self.file}")


@HOOKS.register_module()
class SameClassesHook(Hook):
    """A detector's head of other categories than the data's would be loaded with no more than a warning."""

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        trained = (checkpoint.get("meta", {}).get("dataset_meta") or {}).get("classes")
        classes = runner.cfg.train_dataloader.dataset.get("metainfo", {}).get("classes")
        if trained and classes and tuple(trained) != tuple(classes):
            absent = [name for name in trained if name not in classes]
            raise InputError(
                f"the checkpointed head knows {len(trained)} categories, the data has {len(classes)} or "
                f"another order (absent from the data: {', '.join(absent[:5]) or 'none'}): go on with the "
                "data it was trained on, or start from a backbone in another directory"
            )


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """A diverged training stops at once instead of spending the rest of the schedule on NaN."""

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if not torch.isfinite(torch.as_tensor(outputs["loss"])):
            raise InputError(
                f"the loss is not finite at iteration {runner.iter + 1}: lower SOLVER.BASE_LR or lengthen "
                "SOLVER.WARMUP_ITERS"
            )


@HOOKS.register_module()
class StopHook(Hook):
    """On SIGTERM, SIGUSR1 or Ctrl-C: save after the current step and raise Stopped; the same command goes on.

    After the last step, which is saved anyway, there is no need to wait for anything.
    """

    priority = "LOWEST"

    def __init__(self, signal: StopSignal):
        self.signal = signal

    def before_train(self, runner) -> None:
        self.signal.immediate = False

    def after_train(self, runner) -> None:
        self.signal.immediate = True

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if self.signal.requested() and runner.iter + 1 < runner.max_iters:
            for hook in runner.hooks:
                if type(hook).__name__ == "CheckpointHook":
                    compat.save_now(hook, runner)
            raise Stopped(f"saved at iteration {runner.iter + 1} of {runner.max_iters} in {runner.work_dir}")


@contextlib.contextmanager
def readable_checkpoints() -> Iterator[None]:
    """Allow what mmengine's own checkpoints hold besides tensors (its log buffers), and nothing else."""
    arrays = [
        np.ndarray,
        np.dtype,
        *compat.array_constructors(),
        *(getattr(np.dtypes, name) for name in np.dtypes.__all__),
    ]
    with torch.serialization.safe_globals([HistoryBuffer, (_method_of_history, "builtins.getattr"), *arrays]):
        yield


def _method_of_history(owner: type, name: str):
    """The one attribute look-up in such files: a statistic of the log buffer."""
    if owner is not HistoryBuffer or name not in ("min", "max", "mean", "current"):
        raise ValueError(f"refused to look up {name!r} of {owner!r} while reading a checkpoint")
    return getattr(owner, name)
