"""Configuration: YAML files with `_BASE_`, trailing `KEY VALUE` overrides, and errors that name the nearest key.

`load_config` serves every command of the project; the defaults below are pre-training's. Units are in the comments.
"""

from __future__ import annotations

import ast
import errno
import io
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import yaml
from fvcore.common.config import CfgNode

from pretrain.errors import InputError, nearest_file, nearest_key

DEFAULTS = {
    "METHOD": "dino",  # dino, swav or moco
    "SEED": 0,
    "OUTPUT_DIR": "",
    "DEVICE": "auto",  # auto: a GPU of its own for every process where there are GPUs; cpu
    "MODEL": {
        "BACKBONE_ARCH": "mobilenet_v2",  # an alias of pretrain.backbones or a timm name
        "DROP_PATH_RATE": 0.0,  # of the trained network; rises linearly over depth
        "POS_RESIZE": "published",  # how a ViT's positions follow the views' size: published, or timm (antialiased)
    },
    "DATA": {
        "PATH_TO_DATA_DIR": "",
        "MEAN": [0.485, 0.456, 0.406],  # RGB, of images in [0, 1]
        "STD": [0.229, 0.224, 0.225],
        "WORKERS": 4,  # loader processes per process
        "PIPELINE": "fast",  # fast, or reference: the PIL / torchvision definition of the augmentation
        "COLOR_ON_DEVICE": False,  # colour work batched on the training device instead of in the workers
        "MAX_VALUE": 0.0,  # white in images of 16 bits or floats whose files do not say; 0: such images are refused
        "MAX_CORRUPT": 0.001,  # fraction of unreadable images above which the run stops
    },
    "VIEWS": {
        "GLOBAL_SIZE": 224,  # pixels
        "GLOBAL_SCALE": [0.3, 1.0],  # of the image's area
        "LOCAL_NUMBER": 6,  # 0: two-view training
        "LOCAL_SIZE": 128,
        "LOCAL_SCALE": [0.05, 0.3],
        "FLIP_PROB": 0.5,
        "COLOR_JITTER": [0.4, 0.4, 0.2, 0.1],  # brightness, contrast, saturation, hue
        "COLOR_JITTER_PROB": 0.8,
        "GRAYSCALE_PROB": 0.2,
        "BLUR_PROB": [1.0, 0.1, 0.5],  # global 1, global 2, locals
        "SOLARIZE_PROB": [0.0, 0.2],  # global 1, global 2
    },
    "LOSS": {"WEIGHTS": [0.4, 0.6]},  # of the mean global-global and the mean global-local term
    "DINO": {
        "STUDENT_TEMP": 0.1,
        "TEACHER_TEMP": 0.07,
        "WARMUP_TEACHER_TEMP": 0.04,
        "WARMUP_TEACHER_TEMP_EPOCHS": 50,
        "CENTER_MOMENTUM": 0.9,
        "MOMENTUM": 0.996,  # of the teacher; cosine to MOMENTUM_END
        "MOMENTUM_END": 1.0,
        "FREEZE_LAST_LAYER_EPOCHS": 1,
        "HIDDEN_SIZE": 2048,
        "NUM_LAYERS": 3,
        "BOTTLENECK_DIM": 256,
        "OUTPUT_DIM": 4096,
        "HEAD_BN": True,
        "NORM_LAST_LAYER": True,  # the weight norm's g stays 1
    },
    "SWAV": {
        "TEMPERATURE": 0.1,
        "EPSILON": 0.05,
        "SINKHORN_ITERATIONS": 3,
        "QUEUE_LENGTH": 3840,  # over all processes; rounded down to a multiple of the global batch; 0: none
        "EPOCH_QUEUE_STARTS": 15,
        "FREEZE_PROTOTYPES_EPOCHS": 1,
        "PROTOTYPES": 3000,
        "HIDDEN_SIZE": 4096,
        "NUM_LAYERS": 2,
        "OUTPUT_DIM": 128,
        "HEAD_BN": True,
    },
    "MOCO": {
        "TEMPERATURE": 0.2,
        "QUEUE_LENGTH": 65536,
        "MOMENTUM": 0.999,  # of the key encoder, constant
        "HIDDEN_SIZE": 2048,
        "NUM_LAYERS": 2,
        "OUTPUT_DIM": 128,
        "HEAD_BN": False,
    },
    "SOLVER": {
        "OPTIMIZER": "LARS",  # LARS or AdamW
        "BASE_LR": 0.48,  # per 256 images of the global batch
        "MIN_LR": 0.0048,  # absolute
        "START_WARMUP": 0.0,  # absolute
        "WARMUP_EPOCHS": 10,
        "TOTAL_EPOCHS": 200,
        "WEIGHT_DECAY": 1e-6,
        "WEIGHT_DECAY_END": 1e-6,
        "MOMENTUM": 0.9,  # LARS
        "CLIP_GRAD": 0.0,  # largest norm of each tensor's gradient, not the joint probe's; 0: no clipping
    },
    "TRAIN": {
        "BATCH_SIZE": 128,  # images per process and forward
        "ACCUMULATE": 1,  # forwards per optimizer step: global batch = BATCH_SIZE x processes x ACCUMULATE
        "AMP": "none",  # none, bf16 or fp16
        "CHANNELS_LAST": True,  # the faster memory layout; FP32 stays FP32 (on a CPU: pretrain/batch_norm.py)
        "COMPILE": False,
        "AUTO_RESUME": True,
        "CHECKPOINT_FILE_PATH": "",  # start from this checkpoint
        "ALLOW_CHANGES": False,  # go on under a recipe other than the one that the run or checkpoint began with
        "CHECKPOINT_PERIOD": 20,  # epochs between kept checkpoints; the last one is always kept
        "SAVE_SECONDS": 600.0,  # at most this much work is lost in a crash
        "JOINT_LINEAR_PROBE": False,
        "LOG_PERIOD": 20,  # steps
    },
    "KNN": {
        "PERIOD": 1,  # epochs; 0: off
        "MODE": "loo",  # loo: val against val, leaving one out (published); train: val against train
        "K": 20,
        "TEMPERATURE": 0.07,
    },
}

# What `check_numbers` asks of this recipe, beside what the views and the sources of data say of their own keys.
POSITIVE = {
    "TRAIN.BATCH_SIZE", "TRAIN.ACCUMULATE", "TRAIN.LOG_PERIOD", "TRAIN.CHECKPOINT_PERIOD", "SOLVER.TOTAL_EPOCHS",
    "SOLVER.MOMENTUM", "DATA.STD", "KNN.K", "KNN.TEMPERATURE", "DINO.STUDENT_TEMP", "DINO.TEACHER_TEMP",
    "DINO.WARMUP_TEACHER_TEMP", "DINO.BOTTLENECK_DIM", "SWAV.TEMPERATURE", "SWAV.EPSILON", "SWAV.PROTOTYPES",
    "MOCO.TEMPERATURE", "MOCO.QUEUE_LENGTH",
    *(f"{name}.{size}" for name in ("DINO", "SWAV", "MOCO") for size in ("HIDDEN_SIZE", "NUM_LAYERS", "OUTPUT_DIM"))}
MOST = {"DATA.WORKERS": 1024, "VIEWS.LOCAL_NUMBER": 100, "DINO.NUM_LAYERS": 100, "SWAV.NUM_LAYERS": 100,
        "MOCO.NUM_LAYERS": 100, "DATA.MAX_CORRUPT": 1, "MODEL.DROP_PATH_RATE": 1, "SOLVER.MOMENTUM": 1,
        "DINO.CENTER_MOMENTUM": 1, "DINO.MOMENTUM": 1, "DINO.MOMENTUM_END": 1, "MOCO.MOMENTUM": 1}
LENGTHS = {"DATA.MEAN": 3, "DATA.STD": 3, "LOSS.WEIGHTS": 2}

MAX_FILE_BYTES, MAX_FILES, MAX_VALUES = 1 << 16, 20, 10_000  # of settings with their _BASE_ chain: far above any in use

# Package data, beside this package in a checkout and in site-packages alike. Found by this file's place, not by
# importing `configs`: a folder of that name where a command is started would answer to it.
CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def find_config(file: str | Path) -> Path:
    """The file itself if it is there, else the shipped one where the path is `configs/...`: a user's own file wins.

    A path that is neither comes back unchanged, for the reader to complain about.
    """
    file = Path(file)
    shipped = CONFIGS.parent / file
    return shipped if file.parts[:1] == (CONFIGS.name,) and shipped.is_file() and not file.exists() else file


def load_config(defaults: Mapping, file: str | Path | None, overrides: Sequence[str] = (),
                translate: Callable[[dict, bool], dict] | None = None) -> CfgNode:
    """Defaults, then the file and its `_BASE_` chain, then `KEY VALUE` pairs. The result is frozen.

    `translate(settings, whole_file)` maps a flat {dotted key: value} dict of another spelling to ours before it is
    checked; `whole_file` tells the file from the overrides.
    Raises InputError for an unknown key (naming the nearest), a value of the wrong type, or an unreadable file.
    """
    cfg = CfgNode(defaults)
    for settings, where in ((read_settings(file), str(file)), (_read_overrides(overrides), "command line")):
        if translate:
            settings = translate(settings, where != "command line")
        for key, value in settings.items():
            _set(cfg, key, value, where)
    cfg.freeze()
    return cfg


def check_numbers(cfg: CfgNode, positive: Collection[str], most: Mapping[str, float],
                  lengths: Mapping[str, int]) -> None:
    """Raise InputError for a number that cannot work: negative, 0 for a `positive` key, above its key's `most`, or in
    a list of another length than its key's."""
    for key, value in flatten(to_dict(cfg)):
        numbers = [number for number in (value if isinstance(value, list) else [value])
                   if isinstance(number, int | float)]
        wanted = ("no negative number" if any(number < 0 for number in numbers)
                  else "more than 0" if key in positive and not all(numbers)
                  else f"at most {most[key]}" if any(number > most.get(key, number) for number in numbers)
                  else f"{lengths[key]} numbers" if len(numbers) != lengths.get(key, len(numbers)) else "")
        if wanted:
            raise InputError(f"config key '{key}' wants {wanted}, not {value}")


def to_dict(cfg: CfgNode) -> dict:
    """The configuration as plain nested dicts, lists and scalars."""
    return {key: to_dict(value) if isinstance(value, CfgNode) else value for key, value in cfg.items()}


def flatten(tree: Mapping, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Pairs (dotted key, value) of nested dicts."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def dump(cfg: CfgNode) -> str:
    """The configuration as YAML."""
    return yaml.safe_dump(to_dict(cfg), sort_keys=False)


def read_yaml(file: str | Path, load: Callable[[str], object] | None = None) -> object:
    """A small YAML file as plain data: nothing in it is run, and no alias unfolds beyond bounds.

    load: the function of the file's name that reads it. Raises InputError for a file that is no such YAML.
    """
    try:
        return load(str(file)) if load else yaml.safe_load(_text(file))
    except InputError:
        raise
    except FileNotFoundError as error:
        missing = "config file" if error.filename == str(file) else f"{file}: _BASE_ file"
        raise InputError(f"{missing} not found: {error.filename}{nearest_file(error.filename)}") from None
    except Exception as error:  # noqa: BLE001  YAML's constructors raise whatever they stumble over
        reason = str(error).splitlines()[0][:200] if str(error) else repr(error)
        raise InputError(f"{file} is not a YAML file of settings: {reason}") from None


def _text(file: str | Path) -> str:
    """The content of a YAML file that is small enough, unfolded too."""
    if not Path(file).is_file():  # nor a device that never ends, nor an address on the net
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(file))
    if os.path.getsize(file) > MAX_FILE_BYTES:
        raise InputError(f"{file} is not a file of settings: it is larger than {MAX_FILE_BYTES} bytes")
    text = Path(file).read_text(encoding="utf-8")
    _count(yaml.safe_load(text), MAX_VALUES, file)
    return text


def read_settings(file: str | Path | None) -> dict:
    """{dotted key: value} of a file and its `_BASE_` chain, read as `read_yaml` reads; of no file, none.

    The file is looked for by `find_config`.
    """
    if not file:
        return {}
    file = find_config(file)
    tree = read_yaml(file, _reader(file).load_yaml_with_base) or {}
    if not isinstance(tree, Mapping):
        raise InputError(f"{file} is not a YAML file of settings: it holds a {type(tree).__name__}, not KEY: VALUE "
                         "lines")
    return dict(flatten(tree))


def _reader(file: str | Path) -> type[CfgNode]:
    """fvcore's reader of a file and its `_BASE_` chain, made to look at every file first."""
    opened: list[str] = []

    class Reader(CfgNode):
        @classmethod
        def _open_cfg(cls, filename: str) -> io.StringIO:
            opened.append(filename)
            if len(opened) > MAX_FILES:
                raise InputError(f"{file} with its _BASE_ files is more than {MAX_FILES}, or they name each other in a "
                                 "circle")
            return io.StringIO(_text(filename))

    return Reader


def _count(node: object, left: int, file: str | Path) -> int:
    """`left` less the values below; a few aliases (&a, *a) can stand for more than any memory holds."""
    if left < 0:
        raise InputError(f"{file} is not a file of settings: its aliases unfold to more than {MAX_VALUES} values")
    for child in node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ():
        left = _count(child, left - 1, file)
    return left


def _read_overrides(overrides: Sequence[str]) -> dict:
    if len(overrides) % 2:
        raise InputError(f"overrides are KEY VALUE pairs; '{overrides[-1]}' has no value")
    return {key: literal(value) for key, value in zip(overrides[::2], overrides[1::2], strict=True)}


def literal(text: object) -> object:
    """The Python literal that a text is, or else the text; YAML 1.1 reads 1e-6 as text, and an override is one."""
    try:
        return ast.literal_eval(text) if isinstance(text, str) else text
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return text


def _set(cfg: CfgNode, key: str, value: object, where: str) -> None:
    known = dict(flatten(cfg))
    if key not in known:
        raise InputError(f"unknown config key '{key}' ({where}){nearest_key(key, known)}")
    value = literal(value)
    try:
        fitted = _fit(known[key], value)
    except (TypeError, OverflowError):
        raise InputError(f"config key '{key}' ({where}) wants {_due(known[key])}, not {value!r:.200}") from None
    *parents, leaf = key.split(".")
    node = cfg
    for parent in parents:
        node = node[parent]
    node[leaf] = fitted


def _fit(default: object, value: object) -> object:
    """The value in the default's type. Raises TypeError, or OverflowError, for one that does not fit."""
    if isinstance(default, list) and isinstance(value, list | tuple):
        return [_fit(default[0] if default else item if type(item) is int else 0.0, item) for item in value]
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    if isinstance(default, str) and value is None:
        value = ""
    if type(value) is not type(default) or (isinstance(value, float) and not math.isfinite(value)):
        raise TypeError
    return value


def _due(default: object) -> str:
    if isinstance(default, list):
        return f"list of {_due(default[0]) if default else 'numbers'}" + f", such as {default}" * bool(default)
    return "finite float" if isinstance(default, float) else type(default).__name__
