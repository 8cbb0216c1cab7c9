"""Which network of timm's has these tensors, by names and shapes alone.

Names are timm's, whatever they were in the file. Plain Vision Transformers, which have many sizes, are told by rules,
every other network by the index over all of timm's (`convert.timm_index`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from convert import timm_index
from convert.naming.rules import HEAD
from convert.timm_index import COUNTER, Shapes, group_of
from convert.vits import infer_vit, vit_options
from pretrain.backbones import backbone_shapes, check_options
from sslight.core.errors import InputError

FOREIGN = "of no backbone"  # why a tensor is left out


@dataclass(frozen=True)
class Identity:
    """What the tensors are.

    archs: timm's names, or in words what it is like, where there are problems; those of one inner tuple compute the
        same, the others only have the same tensors. Empty if nothing of timm's is near. options: build options beside
        the first.
    problems: what is missing, mis-shaped or too much for a complete network, in words; empty if it is complete.
    beside: reason -> names of tensors that are none of the network's: of its classifier, or of no module of it.
    """

    archs: tuple[tuple[str, ...], ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    beside: dict[str, list[str]] = field(default_factory=dict)


def identify(kind: str, shapes: Shapes, arch: str = "", options: Mapping[str, Any] | None = None) -> Identity:
    """The network of these tensors; `kind` is that of their naming.

    `arch` is timm's name if it is known already, `options` are build options that are known, too. Raises InputError for
    options that the network does not have.
    """
    archs: tuple[tuple[str, ...], ...] = ((arch,),) if arch else ()
    built: dict[str, Any] = {}
    if kind == "vit":
        try:
            if not arch:
                arch, built = infer_vit(shapes, options or {})
            else:
                built = vit_options(arch, shapes)
        except InputError as error:
            return Identity(archs or (("a plain ViT",),), problems=[str(error)])
        archs = ((arch,),)
    elif not arch:
        network = timm_index.complete(shapes) or timm_index.nearest(shapes)
        if network is None:
            return Identity(problems=["no network of timm's has such tensors"])
        archs = network.archs
    if options:  # by themselves, but for the width that heads must divide
        check_options(
            archs[0][0], {key: built[key] for key in built.keys() & {"embed_dim", "num_heads"}} | dict(options)
        )
    built |= options or {}
    return _compared(archs, built, shapes)


def _compared(archs: tuple[tuple[str, ...], ...], options: dict, shapes: Shapes) -> Identity:
    """The identity of tensors that should be the first network's."""
    arch = archs[0][0]
    expected = backbone_shapes(arch, **options)
    modules = {name.split(".", 1)[0] for name in expected}
    foreign = {group_of(name) for name in shapes if name not in expected}
    heads = foreign & {group_of(name) for name in classifier_keys(arch)} if foreign else set()
    beside: dict[str, list[str]] = {}
    own = {}
    for name, shape in shapes.items():
        if name not in expected and group_of(name) in heads:
            beside.setdefault(HEAD, []).append(name)
        elif name not in expected and name.split(".", 1)[0] not in modules:
            beside.setdefault(FOREIGN, []).append(name)
        else:
            own[name] = shape
    problems = mismatches(own, without_counters(expected, own))
    if own.get("conv1.weight") == (64, 3, 3, 3) and expected.get("conv1.weight") == (64, 3, 7, 7):
        problems = [
            "'conv1.weight' is a 3x3 stem, as ResNets for CIFAR's small images have and timm's have not",
            *(problem for problem in problems if not problem.startswith("'conv1.weight'")),
        ]
    return Identity(archs, options, problems, beside)


def without_counters(expected: Shapes, shapes: Shapes) -> Shapes:
    """What a file must hold: counters, on which no feature depends, may be absent if all are."""
    if any(name.endswith(COUNTER) for name in shapes):
        return expected
    return {name: shape for name, shape in expected.items() if not name.endswith(COUNTER)}


def mismatches(actual: Mapping[str, tuple], expected: Mapping[str, tuple]) -> list[str]:
    """Every difference between two lists of names and shapes, in words."""
    return [
        *(f"missing '{key}' {list(expected[key])}" for key in expected if key not in actual),
        *(f"unexpected '{key}' {list(actual[key])}" for key in actual if key not in expected),
        *(
            f"'{key}' has shape {list(actual[key])} instead of {list(expected[key])}"
            for key in expected
            if key in actual and tuple(actual[key]) != tuple(expected[key])
        ),
    ]


@functools.cache
def classifier_keys(arch: str) -> frozenset[str]:
    """Names in timm's network with its classifier that it lacks without: what a plain timm file may hold beside."""
    return frozenset(backbone_shapes(arch, num_classes=1000).keys() - backbone_shapes(arch).keys())
