"""The only place where private names of libraries are used, each with its reason.

A library may change them in any release: then a test of tests/core/test_compat.py fails, not a run. Seen in torch 2.11,
torchvision 0.26, timm 1.0, NumPy 2.4, tqdm 4.70, mmengine 0.10, mmdet 3.3, detectron2 0.6 (main), submitit 1.5 and
Python 3.11. Libraries are imported where they are used: this module is quick to import.

A class of ours that overrides a private method must keep its name where it is: OVERRIDDEN lists them. The module
`mmcv._ext` is replaced as a whole, in convert/targets/mmcv_ops.py.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from types import MethodType, SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

OVERRIDDEN = {
    "pickle:_Unpickler": "_instantiate",  # convert.pickled: what two of its instructions would build is data
    "argparse:ArgumentParser": "_check_value",  # sslight.core.arguments: a wrong choice names the nearest
    "fvcore.common.config:CfgNode": "_open_cfg",  # sslight.core.config: looks at every file of a _BASE_ chain first
    "detectron2.modeling.roi_heads:Res5ROIHeads": "_build_res5_block",  # convert.targets.detectron2_backbones
}


# Python


def option_strings(parser: argparse.ArgumentParser) -> list[str]:
    """Every spelling of every option. argparse shows them in its help alone."""
    return list(parser._option_string_actions)


def actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Every argument, positional ones too, in their order. argparse has no public list of them."""
    return parser._actions


def python_unpickler() -> Any:
    """The pickle module's unpickler in Python, whose instructions can be replaced one by one, and not in C."""
    import pickle

    return pickle._Unpickler


# tqdm


def set_clock(bar: Any, clock: Callable[[], float]) -> None:
    """Have a new bar measure time by `clock`. tqdm's own is the day's, which may be set back, and is no argument."""
    bar._time = clock
    bar.start_t = bar.last_print_t = clock()


# torch


def foreach() -> SimpleNamespace:
    """`add_`, `mul_`, `norm` and `lerp_` of whole lists of tensors in one call, as torch's optimizers use them."""
    import torch

    return SimpleNamespace(
        add_=torch._foreach_add_, mul_=torch._foreach_mul_, norm=torch._foreach_norm, lerp_=torch._foreach_lerp_
    )


def fused_sgd() -> Callable[..., None]:
    """SGD's whole step in one sweep over memory, what `torch.optim.SGD(fused=True)` calls; LARS sets its factors."""
    import torch

    return torch._fused_sgd_


def bicubic_into() -> Callable[..., Tensor]:
    """What `torch.nn.functional.interpolate` calls for antialiased bicubic, here into given memory (`out=`).

    torch.ops would take twice as long to dispatch.
    """
    import torch

    return torch._C._nn._upsample_bicubic2d_aa


def shared_storage(size: int) -> torch.UntypedStorage:
    """So many bytes of shared memory, without the copy that `share_memory_` makes; as torch's own collating does."""
    import torch

    return torch.UntypedStorage._new_shared(size)


def batch_norm_class() -> type[nn.Module]:
    """The base of all of torch's batch norms, synchronised ones too, which has no public name."""
    from torch.nn.modules.batchnorm import _BatchNorm

    return _BatchNorm


def forget_workers(loader: Any) -> None:
    """Have a `DataLoader` start other persistent workers, for its next iteration to begin with nothing drawn."""
    loader._iterator = None


# torchvision


def roi_align_backward() -> Callable[..., Tensor]:
    """The gradient of `roi_align` with respect to the features, for mmcv's operator of that name."""
    import torch
    import torchvision  # noqa: F401  (registers it)

    return torch.ops.torchvision._roi_align_backward


# NumPy


def array_constructors() -> list[Callable]:
    """What pickled arrays and scalars name: to be allowed when such a file is read without running anything."""
    import numpy as np

    core: Any = np._core  # type: ignore[attr-defined]  # numpy's annotations leave it out
    return [core.multiarray._reconstruct, core.multiarray.scalar]


# timm


def set_pos_embed(model: nn.Module, add: Callable[[Any, Tensor], Tensor] | None) -> None:
    """Have a ViT add its positions by `add(model, patches [N, h, w, C]) -> tokens [N, L, C]`; None: timm's own way.

    timm has no argument for how positions are resized.
    """
    model.__dict__.pop("_pos_embed", None)
    if add:
        model.__dict__["_pos_embed"] = MethodType(add, model)


# mmengine and mmdet


def config_tree(cfg: Any) -> Mapping:
    """The dicts below a `mmengine.Config`, whose attributes hide which keys there are."""
    return cfg._cfg_dict


def parse_value(text: str) -> object:
    """A value of `--cfg-options` as mmengine's scripts read it, so that both understand the same words."""
    from mmengine.config import DictAction

    return DictAction._parse_iterable(text)


def endless(loader: Any) -> Any:
    """mmengine's endless iterator over a `DataLoader`, as its training loop has it, to be put back after a resume."""
    from mmengine.runner.loops import _InfiniteDataloaderIterator

    return _InfiniteDataloaderIterator(loader)


def restart_batches(batches: Any) -> None:
    """Have mmdet's `AspectRatioBatchSampler` over mmengine's `InfiniteSampler` begin its sequence from the start."""
    batches.sampler.indices = batches.sampler._indices_of_rank()
    batches._aspect_ratio_buckets = [[], []]


def save_now(hook: Any, runner: Any) -> None:
    """Have mmengine's `CheckpointHook` save between its intervals."""
    hook._save_checkpoint(runner)


# detectron2


def set_outputs(backbone: Any, names: Sequence[str], channels: Sequence[int], strides: Sequence[int]) -> None:
    """What a `Backbone` gives, for its `output_shape`; detectron2 documents no other way."""
    backbone._out_features = list(names)
    backbone._out_feature_channels = dict(zip(names, channels, strict=True))
    backbone._out_feature_strides = dict(zip(names, strides, strict=True))


def res5_block(head: Any, cfg: Any) -> tuple[nn.Sequential, int]:
    """The last stage that a C4 head, `Res5ROIHeads`, runs on every region, and its width."""
    return head._build_res5_block(cfg)


def only_write(evaluator: Any) -> None:
    """Have `COCOEvaluator` write the detections and leave them to this project's evaluation."""
    evaluator._do_evaluation = False


def set_period(writer: Any, iterations: int) -> None:
    """How often a `PeriodicWriter` writes; `DefaultTrainer` makes it with its own number."""
    writer._period = iterations


def set_train_data(trainer: Any, loader: Any) -> None:
    """Have a `DefaultTrainer` go on with another loader than the one that it made."""
    trainer._trainer.data_loader = loader
    trainer._trainer._data_loader_iter_obj = None


def last_results(trainer: Any) -> Mapping:
    """What a `DefaultTrainer` measured last; its `train` returns it only where numbers are expected in the config."""
    return getattr(trainer, "_last_eval_results", {})


# submitit


def slurm_parameters() -> set[str]:
    """The options of sbatch that submitit knows, to name the nearest to a wrong one."""
    from submitit.slurm.slurm import SlurmExecutor

    return set(SlurmExecutor._valid_parameters())


# mmpretrain


def import_mmpretrain() -> None:
    """Import mmpretrain, if installed, as mmdet does, but for its language models: 1.2 fails beside newer transformers.

    It asks for the versions of installed packages where transformers may not be found, and takes no setting.
    """
    if importlib.util.find_spec("mmpretrain") is None:
        return
    metadata: Any = importlib.import_module("importlib_metadata")
    real = metadata.distribution

    def distribution(name: str) -> Any:
        if name == "transformers":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    metadata.distribution = distribution
    try:
        importlib.import_module("mmpretrain")
    finally:
        metadata.distribution = real
