"""What a target is, which there are, and what several of them share. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from convert.families import FAMILIES, Checkpoint
from convert.naming.rules import CLASSES, Rule, apply_table, class_of
from sslight.core.errors import InputError
from sslight.core.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor


REFUSED = "no: "  # starts the reason in a matrix


@dataclass(frozen=True)
class Outgoing:
    """Tensors as they will stand in the file, keys per rule, source keys the framework has no place for, and the
    target's options with defaults filled in; notes for the report.
    """

    tensors: dict[str, Tensor]
    counts: dict[str, int]
    dropped: dict[str, list[str]] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass
class Verified:
    """What was checked: text per step, and relative feature differences per stage of each comparison.

    `facts`: what else the report says of the file.
    """

    steps: list[str] = field(default_factory=list)
    differences: dict[str, dict[str, float]] = field(default_factory=dict)
    facts: dict = field(default_factory=dict)


class Target(Protocol):
    """A framework or format that a backbone can go to; everything that is known of it, in one file of this folder.

    Commands, verification, `--help` and the documentation use only this. A target derives from it, so what it leaves
    out is as below. Modules of targets import torch and their framework inside functions only: `--help` reads them.

    name: as in TARGETS. package: what must be installed for the file to be loaded, if it is not called so.
    suffixes: of the files that it reads.
    files: of a target that is a folder (`path` and `out` below), the files in it, that with the tensors first.
    matrix: class of architectures (`convert.naming.rules.CLASSES`) -> what becomes of it, or "no: " and the reason.
    options: those of `--model`, `--prefix`, `--stages` and `--results` that it takes; each method gets by name what the
        user gave, else what is in `defaults`. Below, `*_: Any, **options: Any` stands for them: a target's methods name
        its own.
    """

    name: str
    package: str = ""
    suffixes: Sequence[str] = ()
    files: Sequence[str] = ()
    matrix: Mapping[str, str]
    options: Sequence[str] = ()

    @property
    def weights(self) -> str:
        """The file with the tensors in a folder, "" for a target that is one file."""
        return self.files[0] if self.files else ""

    def defaults(self, arch: str) -> dict[str, object]:
        """The options of an architecture that were not given."""
        return {}

    def rename(self, checkpoint: Checkpoint, *_: Any, **options: Any) -> Outgoing:
        """The tensors in the target's names. Raises InputError where it has no such network."""
        ...

    def save(
        self, path: Path, outgoing: Outgoing, checkpoint: Checkpoint, picture: Path | str | None
    ) -> Verified | None:
        """Write the file. A format that no framework loads by names verifies it, too, and returns what was checked
        (`picture` is the image to compare on); of the methods that follow, only the snippet's are then used.
        """
        import torch

        with writing(path):
            torch.save(self.content(outgoing.tensors), path)
        return None

    def content(self, tensors: dict[str, Tensor]) -> dict:
        """What the file holds."""
        return tensors

    def tensors(self, content: dict) -> dict[str, Tensor]:
        """The tensors in what the file holds."""
        return content

    def expected(self, checkpoint: Checkpoint, *_: Any, **options: Any) -> dict[str, Tensor]:
        """The tensors of the framework's own network of this architecture, whatever their values."""
        ...

    def features(
        self, path: Path, checkpoint: Checkpoint, images: Tensor, *_: Any, **options: Any
    ) -> tuple[dict[str, Tensor], str]:
        """Features by stage (named as in `convert.verify.timm_features`) after the framework has loaded the file, and
        how it was loaded, in words. Raises InputError where it did not take every tensor.
        """
        ...

    def reference(
        self, checkpoint: Checkpoint, images: Tensor, *_: Any, **options: Any
    ) -> tuple[dict[str, Tensor], str] | None:
        """What the features must be, and what computed it, where that is not the source network as it is."""
        return None

    def snippet(self, out: Path, checkpoint: Checkpoint, *_: Any, **options: Any) -> tuple[str, str]:
        """The config or code that feeds the network in `out` right (preprocessing, strides, norms, frozen stages), and
        the suffix of its file; in a folder, its name.
        """
        ...


TARGETS: Registry[Target] = Registry(
    "target",
    {
        "timm": ("a backbone file for timm.create_model", "convert.targets.in_timm:TARGET"),
        "huggingface": ("a directory for transformers, timm and the hub", "convert.targets.in_huggingface:TARGET"),
        "torchvision": ("a state dict of torchvision's network", "convert.targets.in_torchvision:TARGET"),
        "detectron2": ("the backbone of a detectron2 model", "convert.targets.in_detectron2:TARGET"),
        "mmdet": ("the backbone of an mmdet detector", "convert.targets.in_mmdet:TARGET"),
        "onnx": ("a graph for onnxruntime, in the form that a device runs", "convert.targets.in_onnx:TARGET"),
    },
)


def chosen(to: str, options: Mapping[str, object]) -> tuple[Target, dict[str, object]]:
    """The target, and those of the options that are set.

    Raises InputError for an unknown target, or for an option that it does not take.
    """
    target, given = TARGETS[to], {name: value for name, value in options.items() if value}
    for name in given:
        if name not in target.options:
            takers = " or ".join(other for other in TARGETS if name in TARGETS[other].options)
            raise InputError(f"--{name} is for --to {takers} only")
    return target, given


def rename(checkpoint: Checkpoint, to: str, **options) -> Outgoing:
    """The tensors of a checkpoint in the target's names; options as in `Target.options`.

    Raises InputError where the target has no such network.
    """
    target, given = chosen(to, options)
    text = target.matrix[class_of(checkpoint.arch)]
    if text.startswith(REFUSED):
        raise InputError(f"{checkpoint.arch} cannot go to {to}: {text.removeprefix(REFUSED)}")
    given = {**target.defaults(checkpoint.arch), **given}
    return replace(target.rename(checkpoint, **given), options=given)


def matrix_text() -> str:
    """What converts to what, as plain text for `--help`."""
    lines = ["what converts to what (every family below goes to every target of its architecture's row):"]
    for architectures in CLASSES:
        lines.append(f"  {architectures}")
        lines += [f"    {name:<12} {target.matrix[architectures]}" for name, target in TARGETS.items()]
    lines.append("families read, and the architectures in them:")
    lines += [f"  {family.name:<20} {', '.join(family.architectures)}" for family in FAMILIES.values()]
    return "\n".join(lines)


# What several targets share.


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise InputError if the file cannot be written."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch has no word for a full disk
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"cannot write {path.name}: is the disk full? ({reason})") from None


def renamed(
    checkpoint: Checkpoint, table: Iterable[Rule], place: Callable[[str], str] = str, without: Collection[str] = ()
) -> Outgoing:
    """The tensors, but those `without`, in the foreign names of a table, each put in its `place`."""
    state = {key: value for key, value in checkpoint.state.items() if key not in without}
    names = apply_table(table, state, to_timm=False, where=f"{checkpoint.arch} to the target's names")
    return Outgoing({place(name): state[key] for key, name in names.keys.items()}, names.counts)


def refuse_options(checkpoint: Checkpoint, where: str, known: Collection[str] = ()) -> None:
    """Raise InputError if the network has build options other than those `known` to the framework."""
    from pretrain.backbones import write_options

    others = {key: value for key, value in checkpoint.options.items() if key not in known}
    if others:
        raise InputError(f"{checkpoint.arch} with {write_options(others)} cannot go there: {where} is not built so")


def refuse_vit_extras(checkpoint: Checkpoint, where: str) -> None:
    """Raise InputError if a ViT has what a plain one lacks."""
    names = {
        "dist_token": "a distillation token",
        "reg_token": "register tokens",
        "blocks.0.ls1.gamma": "layer scale",
    }
    extras = [text for key, text in names.items() if key in checkpoint.state]
    if extras:
        raise InputError(f"{checkpoint.arch} has {' and '.join(extras)}, which {where} lacks")


def origin(checkpoint: Checkpoint) -> str:
    """Where a backbone comes from, for a snippet's first line."""
    return f"{checkpoint.arch}, {checkpoint.method} ({checkpoint.family}, network {checkpoint.network})"


def pixels(checkpoint: Checkpoint) -> tuple[list[float], list[float]]:
    """Mean and std on the 0..255 scale of detection frameworks, in the network's order of channels."""
    preprocess = checkpoint.preprocess
    mean, std = ([round(255 * value, 4) for value in preprocess[name]] for name in ("mean", "std"))
    return mean, std


def transform(checkpoint: Checkpoint) -> str:
    """Code that makes the network's input of a picture, with torchvision's transforms."""
    preprocess = checkpoint.preprocess
    turn = "    transforms.Lambda(lambda image: image.flip(0)),  # to BGR\n" * (preprocess["color_order"] == "BGR")
    return f"""transform = transforms.Compose([
    transforms.Resize({round(preprocess["size"] * 256 / 224)}, transforms.InterpolationMode.BICUBIC),
    transforms.CenterCrop({preprocess["size"]}),
    transforms.ToTensor(),  # RGB, 0..1
{turn}    transforms.Normalize(mean={list(preprocess["mean"])}, std={list(preprocess["std"])}),
])
"""
