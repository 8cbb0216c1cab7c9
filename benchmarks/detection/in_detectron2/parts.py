"""What our runs need beside detectron2's own trainer: exact resuming, a stop on signals, our evaluation, AdamW."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections import OrderedDict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
    detection_utils,
    get_detection_dataset_dicts,
)
from detectron2.data.datasets import register_coco_instances
from detectron2.data.samplers import TrainingSampler
from detectron2.engine import DefaultTrainer, HookBase, defaults
from detectron2.evaluation import COCOEvaluator, PascalVOCDetectionEvaluator
from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate
from detectron2.solver import build_optimizer
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from benchmarks.detection.data import CROWD, FEW_POINTS, OUTSIDE, Split, outlines, read_annotations, visible
from benchmarks.detection.evaluation import evaluate
from benchmarks.detection.preflight import other_size, unreadable
from sslight.core import compat, devices
from sslight.core.errors import Stopped
from sslight.core.files import write_atomically
from sslight.core.rundir import StopSignal

LEAST_BOX = 1e-5  # pixels


class ResumedSampler(TrainingSampler):
    """detectron2's sequence of training images from the point where `batches` batches of this process are done.

    Batches hold images of like aspect ratio, so some images drawn earlier still wait for partners: they come first.
    """

    def __init__(self, wide: list[bool], batch: int, batches: int, seed: int):
        super().__init__(len(wide), shuffle=True, seed=seed)
        self.wide, self.batch, self.batches = wide, batch, batches

    def __iter__(self) -> Iterator[int]:
        stream = super().__iter__()
        waiting: dict[bool, list[int]] = {True: [], False: []}
        done = 0
        while done < self.batches:
            index = next(stream)
            group = waiting[self.wide[index]]
            group.append(index)
            if len(group) == self.batch:
                group.clear()
                done += 1
        yield from waiting[True] + waiting[False]
        yield from stream


def left_out(annotation: dict, image: dict) -> str:
    """Why detectron2 does not train on an object (`load_coco_json`, `DatasetMapper`); an empty string if it does."""
    if annotation.get("iscrowd"):
        return CROWD
    polygons = annotation.get("segmentation")
    if polygons and isinstance(polygons, list) and not outlines(polygons):
        return FEW_POINTS  # also where it learns boxes only
    return "" if min(visible(annotation["bbox"], image)) > LEAST_BOX else OUTSIDE


class Mapper(DatasetMapper):
    """detectron2's reading of one image; the error for an unreadable one names it."""

    def __call__(self, entry: dict) -> dict:
        try:
            return super().__call__(entry)
        except Exception as error:
            try:
                image = detection_utils.read_image(entry["file_name"], self.image_format)
            except Exception as cause:  # noqa: BLE001  decoders raise whatever they stumble over
                raise unreadable(entry["file_name"], cause) from None
            if isinstance(error, detection_utils.SizeMismatchError):
                raise other_size(entry["file_name"], image.shape[1::-1], (entry["width"], entry["height"])) from None
            raise


class Classes:
    """The names that a detector's head knows, saved with it: detectron2's checkpoints do not say them."""

    def __init__(self, names: list[str]):
        self.names = names

    def state_dict(self) -> dict:
        return {"names": list(self.names)}

    def load_state_dict(self, state: dict) -> None:
        """Whoever resumes has compared them before building anything."""


class StopHook(HookBase):
    """On SIGTERM, SIGUSR1 or Ctrl-C: save after the current step and raise Stopped; the same command goes on.

    After the last step, which is saved anyway, there is no need to wait for anything.
    """

    def __init__(self, signal: StopSignal | None):
        self.signal = signal

    def before_train(self) -> None:
        self._set(immediate=False)

    def _set(self, immediate: bool) -> None:
        if self.signal:
            self.signal.immediate = immediate

    def after_step(self) -> None:
        done, total = self.trainer.iter + 1, self.trainer.max_iter
        if done == total:
            self._set(immediate=True)
        elif self.signal and self.signal.requested():
            self.trainer.checkpointer.save(f"model_{self.trainer.iter:07d}", iteration=self.trainer.iter)
            raise Stopped(f"saved at iteration {done} of {total} in {self.trainer.cfg.OUTPUT_DIR}")


class WholeFiles:
    """detectron2's access to files, by which a checkpoint appears whole or not at all."""

    def __getattr__(self, name: str):
        return getattr(PathManager, name)

    @contextlib.contextmanager
    def open(self, path: str, mode: str = "r"):
        if "w" not in mode:
            with PathManager.open(path, mode) as file:
                yield file
            return
        with io.BytesIO() if "b" in mode else io.StringIO() as file:
            yield file
            content = file.getvalue()
        data = content if isinstance(content, bytes) else content.encode()
        write_atomically(path, lambda temporary: temporary.write_bytes(data))


class DetectionWriter(COCOEvaluator):
    """Writes `coco_instances_results.json`; evaluates it with this project's evaluation where `numbers` is set."""

    def __init__(self, dataset_name: str, output_dir: str, numbers: bool):
        super().__init__(dataset_name, output_dir=output_dir)
        self.dataset_name, self.numbers = dataset_name, numbers
        self.folder = Path(output_dir)
        compat.only_write(self)  # detectron2's own numbers would differ from mmdet's

    def evaluate(self, img_ids=None) -> OrderedDict:
        numbers = super().evaluate(img_ids) or OrderedDict()
        if self.numbers and comm.is_main_process():
            entries = json.loads((self.folder / "coco_instances_results.json").read_text())
            truth, _ = read_annotations(Path(MetadataCatalog.get(self.dataset_name).json_file))
            kinds = {"bbox": "box", **({"segm": "mask"} if entries and "segmentation" in entries[0] else {})}
            for task, kind in kinds.items():
                numbers[task] = evaluate(truth, entries, kind, keep_matches=False).numbers
        return numbers


class Trainer(DefaultTrainer):
    """detectron2's trainer with our evaluation, AdamW with layer decay, and data that goes on where it was."""

    numbers = True  # evaluate after testing, not only write the detections
    signal: StopSignal | None = None
    log_period = 20  # iterations

    def __init__(self, cfg):
        with _ddp_on_own_device():
            super().__init__(cfg)
        self.checkpointer.path_manager = WholeFiles()
        names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes
        self.checkpointer.add_checkpointable("classes", Classes(names))

    def build_hooks(self) -> list[HookBase]:
        *others, writer = super().build_hooks()
        if comm.is_main_process():
            compat.set_period(writer, self.log_period)
        return [*others, StopHook(self.signal), writer]

    @classmethod
    def build_train_loader(cls, cfg, **how):
        return build_detection_train_loader(cfg, mapper=Mapper(cfg, is_train=True), **how)

    @classmethod
    def build_test_loader(cls, cfg, dataset_name: str):
        return build_detection_test_loader(cfg, dataset_name, mapper=Mapper(cfg, is_train=False))

    @classmethod
    def build_evaluator(cls, cfg, dataset_name: str):
        if MetadataCatalog.get(dataset_name).evaluator_type == "pascal_voc":
            return PascalVOCDetectionEvaluator(dataset_name)
        return DetectionWriter(dataset_name, str(Path(cfg.OUTPUT_DIR) / "inference"), cls.numbers)

    @classmethod
    def build_optimizer(cls, cfg, model: Any) -> torch.optim.Optimizer:
        if cfg.SOLVER.OPTIMIZER == "SGD":
            return build_optimizer(cfg, model)
        blocks = len(model.backbone.net.blocks)
        parameters = get_default_optimizer_params(
            model,
            base_lr=cfg.SOLVER.BASE_LR,
            weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
            lr_factor_func=partial(get_vit_lr_decay_rate, lr_decay_rate=cfg.SOLVER.LAYER_DECAY, num_layers=blocks),
            overrides={"pos_embed": {"weight_decay": 0.0}},
        )
        return maybe_add_gradient_clipping(cfg, torch.optim.AdamW)(
            parameters, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY
        )

    def resume_or_load(self, resume: bool = True) -> None:
        super().resume_or_load(resume)
        if self.start_iter and self.start_iter < self.max_iter:
            images = get_detection_dataset_dicts(
                self.cfg.DATASETS.TRAIN, filter_empty=self.cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
            )
            sampler = ResumedSampler(
                [image["width"] > image["height"] for image in images],
                self.cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size(),
                self.start_iter,
                self.cfg.SEED,
            )
            compat.set_train_data(self, self.build_train_loader(self.cfg, dataset=images, sampler=sampler))
        elif self.start_iter and not (Path(self.cfg.OUTPUT_DIR) / "model_final.pth").exists():
            # Killed between the two checkpoints of its last iteration: there is no step left to save the second after.
            self.checkpointer.save("model_final", iteration=self.start_iter - 1)


@contextlib.contextmanager
def _ddp_on_own_device() -> Iterator[None]:
    """detectron2 names the GPU of its local rank to DistributedDataParallel, whatever this process sees and uses."""
    wrap = defaults.create_ddp_model
    defaults.create_ddp_model = partial(wrap, device_ids=devices.current())
    try:
        yield
    finally:
        defaults.create_ddp_model = wrap


def register(role: str, split: Split) -> str:
    """Register a COCO-format set under a name made of its files, unless that was done; returns the name."""
    assert split.ready  # the frameworks are handed files only
    digest = hashlib.sha256(f"{split.ready.resolve()}\n{split.images.resolve()}".encode()).hexdigest()[:12]
    name = f"sslight_{role}_{digest}"
    if name not in DatasetCatalog.list():
        register_coco_instances(name, {}, str(split.ready), str(split.images))
    categories = sorted(split.content["categories"], key=lambda category: category["id"])
    MetadataCatalog.get(name).thing_classes = [category["name"] for category in categories]  # as its reading will
    return name
