"""Which of timm's networks has these names and shapes: an index over all of them, made by tools/make_timm_index.py.

The tensors of a network fall into groups by the first two parts of their names (`blocks.3`, `conv_stem`); the index has
a hash of each group's names and shapes. A network is complete in a file where all its groups are, with the same hashes,
and none of its modules holds more than the network has. Counters of batch norms do not count.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

FILE = Path(__file__).parent / "data" / "timm_index.json.gz"
COUNTER = "num_batches_tracked"
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Network:
    """Networks of the same names and shapes.

    archs: timm's names; those of one inner tuple compute the same, the others do not (strides, padding, activation).
    names: of its groups. heads: of the groups that the classifier adds.
    """

    archs: tuple[tuple[str, ...], ...]
    names: frozenset[str]
    heads: frozenset[str]

    def whole(self, given: Mapping[str, int]) -> bool:
        """Whether none of its modules, its classifier aside, holds any of the given groups but its own."""
        modules = {name.split(".", 1)[0] for name in self.names}
        own = self.names | self.heads
        return all(name in own or name.split(".", 1)[0] not in modules for name in given)


class Index:
    """The index as shipped: few and flat objects, so that reading it takes milliseconds.

    anchors: keys of which each network has one: wherever one ends a key, a backbone may lie.
    numbers: "name hash" of a group -> its number. groups: these numbers for each network.
    """

    def __init__(self, file: Path) -> None:
        content = json.loads(gzip.decompress(file.read_bytes()))
        self.anchors = frozenset(content["anchors"])
        self._named = content["groups"].split("\n")
        self.numbers = {text: number for number, text in enumerate(self._named)}
        self._networks = content["networks"].split("\n")
        self.groups = [array("H", map(int, text.split(";")[1].split())) for text in self._networks]

    def network(self, number: int) -> Network:
        """A network by its place."""
        archs, groups, heads = self._networks[number].split(";")
        names = (self._named[int(group)].split()[0] for group in groups.split())
        return Network(
            tuple(tuple(alike.split()) for alike in archs.split("|")), frozenset(names), frozenset(heads.split())
        )


@functools.cache
def index() -> Index:
    """The index, read once."""
    return Index(FILE)


def write(anchors: Iterable[str], groups: Iterable[tuple[str, int]], networks: Iterable[dict]) -> bytes:
    """What the index's file holds: groups as (name, hash); of a network its `archs`, `groups` (numbers) and `heads`."""
    lines = (
        f"{'|'.join(' '.join(alike) for alike in network['archs'])};{' '.join(map(str, network['groups']))};"
        f"{' '.join(network['heads'])}"
        for network in networks
    )
    content = {
        "anchors": list(anchors),
        "groups": "\n".join(f"{name} {digest:x}" for name, digest in groups),
        "networks": "\n".join(lines),
    }
    return gzip.compress(json.dumps(content).encode(), 9, mtime=0)


def complete(shapes: Shapes) -> Network | None:
    """The largest network that is complete among these tensors, or None."""
    given = digests(shapes)
    present = _present(given)
    fitting = [number for number, groups in enumerate(index().groups) if present.issuperset(groups)]
    for number in sorted(fitting, key=lambda number: -len(index().groups[number])):
        network = _installed(index().network(number))
        if network and network.whole(given):
            return network
    return None


def nearest(shapes: Shapes) -> Network | None:
    """The network with most groups in common with these tensors, for a message; None if none has half of its own."""
    given = digests(shapes)
    present = _present(given)

    def likeness(number: int) -> int:
        groups = index().groups[number]
        return 2 * len(present.intersection(groups)) - len(groups) + len(index().network(number).names & given.keys())

    best = index().network(max(range(len(index().groups)), key=likeness))
    return _installed(best) if 2 * len(best.names & given.keys()) >= len(best.names) else None


def _installed(network: Network) -> Network | None:
    """The network with those of its names that the installed timm has; None if it has none."""
    from timm.models import is_model

    archs = tuple(known for alike in network.archs if (known := tuple(filter(is_model, alike))))
    return replace(network, archs=archs) if archs else None


def _present(given: Mapping[str, int]) -> set[int]:
    numbers = index().numbers
    return {number for name, digest in given.items() if (number := numbers.get(f"{name} {digest:x}")) is not None}


def group_of(name: str) -> str:
    """The group of a tensor: the name's first two parts (three in `head`, where classifiers sit), never the last."""
    parts = name.split(".")
    return ".".join(parts[: min(3 if parts[0] == "head" else 2, max(len(parts) - 1, 1))])


def digests(shapes: Shapes) -> dict[str, int]:
    """A hash of names and shapes for each group, whatever their order."""
    sums: dict[str, int] = {}
    for name, shape in shapes.items():
        if not name.endswith(COUNTER):
            group = group_of(name)
            text = f"{name[len(group) :]} {','.join(map(str, shape))}"
            number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest())
            sums[group] = (sums.get(group, 0) + number) % (1 << 48)
    return sums
