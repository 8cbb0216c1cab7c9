#!/usr/bin/env python
"""Write convert/data/timm_index.json.gz: names and shapes of every timm network, in a few hashes each.

    python tools/make_timm_index.py

Takes some minutes and no memory worth a word: networks are built on the meta device. Run it when timm has new networks;
tests/convert/test_timm_index.py compares a sample with the timm that is installed. What is written is described in
convert/timm_index.py, which reads it.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import timm  # noqa: E402
from torch import nn  # noqa: E402
from tqdm import tqdm  # noqa: E402

from convert.timm_index import FILE, digests, group_of, write  # noqa: E402
from pretrain.backbones import backbone_shapes, meta_backbone  # noqa: E402
from sslight.core.errors import InputError  # noqa: E402
from sslight.core.files import write_atomically  # noqa: E402

# Attributes that two networks may differ in without computing anything else.
_NO_MATTER = {"training", "drop_rate", "init_values", "distillation", "distilled_training", "grad_checkpointing"}


def function_of(network: nn.Module) -> tuple:
    """What a network computes: class and plain attributes (strides, epsilons, heads) of each of its modules."""
    return tuple(
        (
            name,
            type(module).__name__,
            *sorted((key, repr(value)) for key, value in vars(module).items() if _matters(key, value)),
        )
        for name, module in network.named_modules()
    )


def _matters(key: str, value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(_matters(key, item) for item in value)
    return key[0] != "_" and key not in _NO_MATTER and (value is None or isinstance(value, bool | int | float | str))


def main() -> None:
    """Build every network, one of each kind also with its classifier, and write the index."""
    groups: dict[tuple[str, int], int] = {}
    networks: dict[tuple[int, ...], dict] = {}
    anchors: dict[str, None] = {}
    functions: dict[str, tuple] = {}
    for arch in tqdm(timm.list_models(), disable=None):
        try:
            shapes = backbone_shapes(arch)
        except (InputError, TypeError, RuntimeError, AssertionError, ValueError) as error:
            print(f"left out: {arch} ({type(error).__name__}: {' '.join(str(error).split())[:80]})")
            continue
        functions[arch] = function_of(meta_backbone(arch))
        key = tuple(sorted(groups.setdefault(group, len(groups)) for group in digests(shapes).items()))
        if key not in networks:
            heads = {group_of(name) for name in backbone_shapes(arch, num_classes=1000).keys() - shapes.keys()}
            networks[key] = {"archs": [], "groups": list(key), "heads": sorted(heads)}
            shared = heads & digests(shapes).keys()
            if shared:
                print(f"{arch}: the classifier shares {', '.join(shared)} with the backbone")
        networks[key]["archs"].append(arch)
        if not any(name in shapes for name in anchors):
            anchors[next((name for name in shapes if name.count(".") > 1), next(iter(shapes)))] = None
    for network in networks.values():
        alike = defaultdict(list)
        for arch in network["archs"]:
            alike[functions[arch]].append(arch)
        network["archs"] = [sorted(archs, key=lambda arch: (len(arch), arch)) for archs in alike.values()]
        network["archs"].sort(key=lambda archs: (len(archs[0]), archs[0]))
    data = write(anchors, groups, networks.values())
    write_atomically(FILE, lambda temporary: temporary.write_bytes(data))
    print(
        f"{len(functions)} networks, {len(networks)} of different tensors, {len(anchors)} anchors: {len(data):,} bytes"
    )


if __name__ == "__main__":
    main()
