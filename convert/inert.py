"""Inert stand-ins for the foreign objects known to sit in checkpoints: settings that are kept as data, never executed.

Each entry replaces a class or function of another package by one of three harmless ones; the packages themselves
are never imported. Anything not listed here, and not a tensor or plain data, is refused.
"""

from __future__ import annotations

from collections import OrderedDict


class Inert:
    """Accepts whatever a pickle hands to a class or function, keeps only an object's attributes, and calls nothing."""

    kept: object = None

    def __new__(cls, *arguments, **named):
        return super().__new__(cls)

    def __init__(self, *arguments, **named):
        pass

    def __setstate__(self, state):
        self.kept = state


def empty_dict(*arguments) -> dict:
    """Stands for `defaultdict(factory)`: the factory is dropped, the items that follow are kept."""
    return {}


_DICTS = (
    "fvcore.common.config.CfgNode", "yacs.config.CfgNode", "detectron2.config.config.CfgNode",
    "easydict.EasyDict", "addict.addict.Dict", "mmcv.utils.config.ConfigDict", "mmengine.config.config.ConfigDict",
    "pytorch_lightning.utilities.parsing.AttributeDict", "lightning.pytorch.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict", "lightning.fabric.utilities.data.AttributeDict",
)
_OMEGACONF = (
    "dictconfig.DictConfig", "listconfig.ListConfig", "base.ContainerMetadata", "base.Metadata", "base.Node",
    "base.SCMode", "nodes.AnyNode", "nodes.StringNode", "nodes.IntegerNode", "nodes.FloatNode", "nodes.BooleanNode",
    "nodes.BytesNode", "nodes.PathNode", "nodes.EnumNode", "nodes.UnionNode", "nodes.ValueNode",
    "nodes.InterpolationResultNode",
)
_OBJECTS = (
    "argparse.Namespace", "types.SimpleNamespace", "typing.Any", "builtins.getattr", "builtins.dict", "builtins.list",
    "builtins.tuple", "builtins.int", "builtins.float", "builtins.str", "builtins.bool", "builtins.bytes",
    "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib.PurePosixPath", "pathlib.Path",
    "pathlib._local.PosixPath", "pathlib._local.WindowsPath",
    "datetime.datetime", "datetime.timedelta", "mmengine.logging.history_buffer.HistoryBuffer",
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    *(f"numpy.{part}" for part in ("ndarray", "dtype", "bool_", "float32", "float64", "int32", "int64")),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *(f"numpy.dtypes.{name}DType" for name in ("Float32", "Float64", "Int32", "Int64", "Bool", "UInt8")),
    *(f"omegaconf.{name}" for name in _OMEGACONF),
)


def allow_list() -> list[tuple[object, str]]:
    """(stand-in, full name) pairs for `torch.serialization.safe_globals`."""
    return [*((OrderedDict, name) for name in _DICTS), (empty_dict, "collections.defaultdict"),
            *((Inert, name) for name in _OBJECTS)]
