"""Damaged and hostile checkpoint files: each must give one clean error or the right tensors, and execute nothing.

`python -m tests.convert.mutations COUNT [SEED]` tries COUNT files and prints what came out; the test tries hundreds.
A changed payload is undetectable where the format has no checksum (torch's legacy files, safetensors, pickles of
arrays): such files may give other tensors of the right shapes, and are counted apart. Zip files carry CRCs.
"""

from __future__ import annotations

import collections
import io
import os
import pickle
import random
import struct
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path

import torch

from convert.reader import read_checkpoint
from convert.targets import TARGETS, Outgoing
from sslight.core.errors import InputError
from tests.convert.family_files import lightly, sslight
from tests.convert.own_networks import timm_own

ARCH = "mobilenetv2_035"
CHECKSUMMED = {"run.pth", "lightning.ckpt"}


class Hostile:
    """Pickles as a call of `function(*arguments)`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def originals(folder: Path) -> dict[str, bytes]:
    """One valid file per format."""
    own = timm_own(ARCH)
    torch.save(sslight(own), folder / "run.pth")
    torch.save(lightly(own), folder / "lightning.ckpt")
    torch.save({"state_dict": own.state}, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    checkpoint = read_checkpoint(folder / "run.pth")
    for to, name in (("timm", "backbone.safetensors"), ("detectron2", "arrays.pkl")):
        tensors = {f"model.{key}" * (to == "detectron2") or key: value for key, value in checkpoint.state.items()}
        TARGETS[to].save(folder / name, Outgoing(tensors, {}), checkpoint, None)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def flipped(data: bytes, chance: random.Random) -> bytes:
    """One to four bits flipped, half of the time near the ends, where the structure is."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        span = chance.choice((len(data), 4096, -40000))
        place = (
            chance.randrange(len(data))
            if span == len(data)
            else (chance.randrange(min(span, len(data))) if span > 0 else len(data) - 1 - chance.randrange(-span))
        )
        changed[place % len(data)] ^= 1 << chance.randrange(8)
    return bytes(changed)


def truncated(data: bytes, chance: random.Random) -> bytes:
    """Cut anywhere, or just before the end."""
    return data[: chance.choice((chance.randrange(len(data)), len(data) - chance.randint(1, 200)))]


def swapped_blocks(data: bytes, chance: random.Random) -> bytes:
    """Two blocks of equal length exchanged."""
    length = min(chance.choice((16, 512, 4096)), len(data) // 4)
    one, other = sorted(chance.sample(range(0, len(data) - length, length), 2))
    return (
        data[:one]
        + data[other : other + length]
        + data[one + length : other]
        + data[one : one + length]
        + data[other + length :]
    )


def overwritten(data: bytes, chance: random.Random) -> bytes:
    """A block of zeros, of ones, or of a text page over the data."""
    start, length = chance.randrange(len(data)), chance.choice((1, 64, 5000))
    filling = chance.choice((b"\0", b"\xff", b"<html>"))
    return data[:start] + (filling * length)[:length] + data[start + length :]


def inserted(data: bytes, chance: random.Random) -> bytes:
    """Bytes that do not belong there."""
    place = chance.randrange(len(data))
    return data[:place] + chance.randbytes(chance.choice((1, 8, 300))) + data[place:]


def rewritten(data: bytes, change) -> bytes:
    """A zip with its records passed through `change(list of (name, bytes))`, all checksums right."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = [(info.filename, archive.read(info)) for info in archive.infolist()]
    result = io.BytesIO()
    with zipfile.ZipFile(result, "w", zipfile.ZIP_STORED) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # repeated names are meant
        for name, content in change(records):
            archive.writestr(name, content)
    return result.getvalue()


def swapped_records(data: bytes, chance: random.Random) -> bytes:
    """Zip only: the contents of two records of different sizes exchanged, checksums made right again."""

    def change(records):
        while True:
            one, other = chance.sample(range(len(records)), 2)
            if len(records[one][1]) != len(records[other][1]):
                break
        first, second = records[one], records[other]
        records[one], records[other] = (first[0], second[1]), (second[0], first[1])
        return records

    return rewritten(data, change)


def doubled_record(data: bytes, chance: random.Random) -> bytes:
    """Zip only: a second record of the same name, which another reader might prefer."""

    def change(records):
        name, content = chance.choice(records)
        return [*records, (name, bytes(len(content)))]

    return rewritten(data, change)


def retyped(data: bytes, chance: random.Random) -> bytes:
    """Torch's files only: a weight or a setting replaced by something of another type, or put under another key."""
    content = torch.load(io.BytesIO(data), weights_only=True)
    names = content.pop("networks", {})  # says which network is meant: changed, another one is rightly read
    holders = [content]
    for holder in holders:
        holders += [value for value in holder.values() if isinstance(value, dict)]
    holder = max(holders, key=len) if chance.random() < 0.5 else chance.choice([some for some in holders if some])
    key = chance.choice([key for key in holder if key != "format"])
    tensor = holder[key] if torch.is_tensor(holder[key]) and holder[key].is_floating_point() else torch.ones(3)
    wrong = (
        None,
        7,
        "text",
        [],
        {},
        {1: tensor},
        (tensor, tensor),
        tensor.double(),
        tensor.to(torch.int8),
        tensor.to(torch.complex64),
        tensor.to_sparse(),
        tensor.to("meta"),
        tensor[None],
        tensor.flatten(),
        torch.zeros(0),
        torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
    )
    if chance.random() < 0.8:
        holder[key] = chance.choice(wrong)
    else:
        holder[chance.choice((3, None, "", ".", "model.", "blocks." + 5000 * "9" + ".conv"))] = holder.pop(key)
    content.update({"networks": names} if names else {})
    changed = io.BytesIO()
    torch.save(content, changed)
    return changed.getvalue()


def hostile(name: str, data: bytes, chance: random.Random, canary: Path) -> bytes:
    """A file whose pickle would create `canary` if anything in it were called."""
    touch = f"touch {canary}"
    call = chance.choice(
        (
            Hostile(os.system, touch),
            Hostile(eval, f"open({str(canary)!r}, 'w')"),
            Hostile(open, str(canary), "w"),
            Hostile(exec, f"open({str(canary)!r}, 'w')"),
            Hostile(os.mkdir, str(canary)),
            Hostile(Path.touch, canary),
            Hostile(getattr, Hostile(__import__, "os"), "system"),
            Hostile(__import__, "os"),
            Hostile(torch.load, str(canary)),
            Hostile(pickle.loads, pickle.dumps(Hostile(os.system, touch))),
            Hostile(torch.storage._load_from_bytes, pickle.dumps(Hostile(os.system, touch))),
        )
    )
    content = {"model": {"conv1.weight": call}, "__author__": "x"} if chance.random() < 0.5 else call
    raw = pickle.dumps(content, protocol=chance.choice((0, 2, 4)))
    if name.endswith(".pkl") or chance.random() < 0.2:
        return raw
    if name in CHECKSUMMED:
        return rewritten(
            data, lambda records: [(file, raw if file.endswith("data.pkl") else kept) for file, kept in records]
        )
    legacy = io.BytesIO()
    torch.save({}, legacy, _use_new_zipfile_serialization=False)
    return (
        legacy.getvalue()[:24] + raw
        if chance.random() < 0.5
        else b"".join(
            pickle.dumps(part, protocol=2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
        )
        + raw
    )


def bad_header(data: bytes, chance: random.Random) -> bytes:
    """safetensors only: a header whose length or offsets lie."""
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].decode()
    kind = chance.randrange(3)
    if kind == 0:
        return struct.pack("<Q", chance.choice((0, 2, length - 1, length + 1, 2**40, 2**63))) + data[8:]
    if kind == 1:
        header = header.replace("F32", chance.choice(("F64", "I8", "BF16", "XX")), chance.randint(1, 5))
    else:
        digit = chance.choice([place for place, letter in enumerate(header) if letter.isdigit()])
        header = header[:digit] + str(chance.randrange(10)) + header[digit + 1 :]
    return struct.pack("<Q", len(header)) + header.encode() + data[8 + length :]


def mutate(name: str, data: bytes, chance: random.Random, canary: Path) -> tuple[str, bytes]:
    """The kind of a random mutation and the mutated file."""
    kinds = [flipped, flipped, truncated, swapped_blocks, overwritten, inserted]
    if name in CHECKSUMMED:
        kinds += [swapped_records, doubled_record]
    if name.endswith((".pth", ".ckpt")):
        kinds.append(retyped)
    if name.endswith(".safetensors"):
        kinds.append(bad_header)
    elif chance.random() < 0.15:
        return "hostile", hostile(name, data, chance, canary)
    kind = chance.choice(kinds)
    return kind.__name__, kind(data, chance)


def try_one(number: object, files: dict[str, bytes], right: dict[str, dict], folder: Path) -> tuple[str, str, str]:
    """Try one mutated file, drawn by `number`; its (format, kind, outcome). AssertionError for a wrong outcome."""
    chance, canary = random.Random(str(number)), folder / "canary"
    name = chance.choice(list(files))
    kind, data = mutate(name, files[name], chance, canary)
    path = folder / f"mutated{Path(name).suffix}"
    path.write_bytes(data)
    try:
        state = read_checkpoint(path).state
    except InputError as error:
        outcome = "clean error"
        assert "\n" not in str(error), (number, name, kind, error)
    else:
        equal = state.keys() == right[name].keys() and all(
            torch.equal(state[key], value) for key, value in right[name].items()
        )
        outcome = "right tensors" if equal else "other values, no checksum"
        shapes = {key: value.shape for key, value in state.items()} == {
            key: value.shape for key, value in right[name].items()
        }
        assert equal or (shapes and name not in CHECKSUMMED and kind not in ("truncated", "hostile")), (
            number,
            name,
            kind,
        )
    assert not canary.exists(), (number, name, kind, "executed code")
    return name, kind, outcome


def try_mutations(count: int, seed: int, folder: Path) -> collections.Counter:
    """Try `count` mutated files; counts by (format, kind, outcome). AssertionError at the first wrong outcome."""
    files, right = originals_and_states(folder)
    return collections.Counter(try_one(f"{seed} {number}", files, right, folder) for number in range(count))


def originals_and_states(folder: Path) -> tuple[dict[str, bytes], dict[str, dict]]:
    """The valid files and what they hold."""
    files = originals(folder)
    return files, {name: read_checkpoint(folder / name, arch=ARCH).state for name in files}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        seen = try_mutations(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0, Path(place))
    for (name, kind, outcome), number in sorted(seen.items()):
        print(f"{number:6d}  {name:<22}{kind:<18}{outcome}")
    print(f"{seen.total():6d}  files, no code executed")
