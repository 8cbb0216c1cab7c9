"""Checkpoint files whose pickles would execute code, exhaust the machine, or change what outlives the load.

`python -m tests.convert.hostile COUNT [SEED]` reads COUNT of them and prints what came out; a test reads hundreds. Each
must give one clean error or the right tensors. That nothing was executed is seen by a file that the payloads would
write, by Python's audit events (imports, calls, files), by `sys.modules`, and by what library objects look like after.
"""

from __future__ import annotations

import collections
import copyreg
import encodings.cp437  # noqa: F401  (zipfile imports it for odd names)
import io
import pickle
import pickletools
import random
import resource
import struct
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from convert import pickled
from convert.reader import read_checkpoint
from convert.safe_files import flatten_content, read_file
from sslight.core.errors import InputError
from tests.convert.mutations import originals_and_states, rewritten

Fragment = bytes  # instructions that leave one value on the stack


def text(value: str) -> Fragment:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def value_of(value: object) -> Fragment:
    """A plain value, without protocol and stop."""
    return pickle.dumps(value, protocol=2)[2:-1]


def name(module: str, attribute: str, chance: random.Random) -> Fragment:
    """A global, in protocol 0's spelling or that of 4."""
    if chance.random() < 0.5:
        return b"c" + f"{module}\n{attribute}\n".encode()
    return text(module) + text(attribute) + b"\x93"


def group(*values: Fragment) -> Fragment:
    return b"(" + b"".join(values) + b"t"


def call(function: Fragment, *arguments: Fragment, chance: random.Random) -> Fragment:
    """A call by one of the instructions that make one; also with a state, items and entries, which call methods."""
    made = chance.choice(
        (
            function + group(*arguments) + b"R",
            function + group(*arguments) + b"\x81",  # NEWOBJ
            function + group(*arguments) + b"}\x92",  # NEWOBJ_EX
            b"(" + function + b"".join(arguments) + b"o",  # OBJ
        )
    )
    return made + chance.choice((b"", b"", b"}b", b"(lb", text("x") + b"a", b"(" + text("x") + text("y") + b"u"))


CALLS = (
    ("os", "system", "SHELL"),
    ("posix", "system", "SHELL"),
    ("nt", "system", "SHELL"),
    ("os", "popen", "SHELL"),
    ("subprocess", "getoutput", "SHELL"),
    ("subprocess", "check_output", "SHELL"),
    ("pty", "spawn", "SHELL"),
    ("builtins", "eval", "PYTHON"),
    ("builtins", "exec", "PYTHON"),
    ("__builtin__", "execfile", "CANARY"),
    ("builtins", "open", "CANARY w"),
    ("io", "open", "CANARY w"),
    ("codecs", "open", "CANARY w"),
    ("builtins", "__import__", "antigravity"),
    ("importlib", "import_module", "this"),
    ("importlib", "reload", "torch"),
    ("runpy", "run_path", "CANARY"),
    ("timeit", "timeit", "PYTHON"),
    ("code", "InteractiveInterpreter.runcode", "PYTHON"),
    ("pdb", "run", "PYTHON"),
    ("torch", "load", "CANARY"),
    ("torch.hub", "load", "pytorch/vision resnet18"),
    ("torch.jit", "load", "CANARY"),
    ("torch.serialization", "load", "CANARY"),
    ("torch.serialization", "add_safe_globals", "x"),
    ("torch.utils.cpp_extension", "load_inline", "a CANARY"),
    ("numpy", "load", "CANARY"),
    ("numpy", "memmap", "CANARY"),
    ("numpy.core.multiarray", "_reconstruct", "CANARY"),
    ("codecs", "decode", "abc rot13"),
    ("_codecs", "encode", "abc idna"),
    ("pathlib", "Path.touch", "CANARY"),
    ("os", "mkdir", "CANARY"),
    ("shutil", "rmtree", "CANARY"),
    ("operator", "attrgetter", "system"),
    ("operator", "methodcaller", "touch"),
    ("functools", "partial", "SHELL"),
    ("functools", "reduce", "a b"),
    ("builtins", "getattr", "os system"),
    ("builtins", "setattr", "a b c"),
    ("builtins", "map", "a b"),
    ("builtins", "type", "x"),
    ("types", "FunctionType", "x"),
    ("ctypes", "CDLL", "libc.so.6"),
    ("logging.config", "listen", "0"),
    ("copyreg", "add_extension", "os system"),
    ("copyreg", "__newobj__", "x"),
    ("copyreg", "_reconstructor", "x y z"),
    ("pickle", "loads", "NESTED"),
    ("_pickle", "loads", "NESTED"),
    ("torch.storage", "_load_from_bytes", "NESTED"),
    ("torch._tensor", "_rebuild_from_type_v2", "a b c d"),
    ("torch._utils", "_rebuild_tensor_v2", "a b c d"),
    ("torch._utils", "_rebuild_parameter", "a b c"),
    ("collections", "OrderedDict", "x"),
    ("collections", "defaultdict", "SHELL"),
)


def _argument(word: str, canary: Path, chance: random.Random) -> Fragment:
    """One argument of a call in CALLS."""
    shell, python = f"touch {canary}", f"open({str(canary)!r}, 'w').close()"
    if word == "NESTED":
        inner = b"\x80\x02" + call(name("os", "system", chance), text(shell), chance=chance) + b"."
        return b"B" + struct.pack("<I", len(inner)) + inner
    return text({"SHELL": shell, "PYTHON": python, "CANARY": str(canary)}.get(word, word))


def executing(canary: Path, chance: random.Random) -> Fragment:
    """A call, also of what another call gave, or of a member of a module."""
    module, attribute, words = chance.choice(CALLS)
    arguments = [_argument(word, canary, chance) for word in words.split()]
    function = name(module, attribute, chance)
    kind = chance.randrange(5)
    if kind == 0:  # getattr chains, in the dotted names of protocol 4, too
        function = call(name("builtins", "getattr", chance), name(module, "__dict__", chance), text("x"), chance=chance)
    elif kind == 1:
        function = call(name("functools", "partial", chance), function, *arguments, chance=chance)
    elif kind == 2 and attribute.isidentifier() and all(32 < ord(letter) < 127 for letter in attribute):
        return b"(" + b"".join(arguments) + f"i{module}\n{attribute}\n".encode()  # INST
    return call(function, *arguments, chance=chance)


TARGETS = (
    ("torch", "UntypedStorage"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch.nn.parameter", "Parameter"),
    ("collections", "OrderedDict"),
    ("torch", "Size"),
    ("torch", "float32"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("builtins", "dict"),
    ("argparse", "Namespace"),
    ("sys", "modules"),
    ("convert.pickled", "Inert"),
    ("convert.pickled", "_BUILDERS"),
    ("sslight.core.errors", "InputError"),
)
ATTRIBUTES = ("__defaults__", "__setstate__", "__class__", "__dict__", "__getattr__", "items", "from_file", "__code__",
              "__globals__", "__reduce__", "shape", "_parameters", "_modules", "_buffers", "_metadata")  # fmt: skip


def changing(canary: Path, chance: random.Random) -> Fragment:
    """Attributes, items and entries set on a library's objects, and on what they make."""
    target = name(*chance.choice(TARGETS), chance)
    target += chance.choice((b"", b")R", b")\x81"))
    inner = executing(canary, chance) if chance.random() < 0.5 else text("x")
    attribute = text(chance.choice(ATTRIBUTES))
    return target + chance.choice(
        (
            b"}" + attribute + inner + b"sb",  # the state is a dict
            b"N}" + attribute + inner + b"s\x86b",  # (None, slots)
            inner + b"b",
            attribute + inner + b"s",
            inner + b"a",
            b"(" + inner + inner + b"e",
        )
    )


def _sized(chance: random.Random) -> int:
    return chance.choice((2**31 - 1, 2**40, 2**62, 10**12, 2**20))


def exhausting(canary: Path, chance: random.Random) -> Fragment:
    """What takes forever, all memory, or the interpreter's stack."""
    size = _sized(chance)
    deep = chance.choice((900, 100_000))
    doubling = b"(tq\x00" + b"".join(b"h\x00h\x00\x86q\x00" for _ in range(60))
    storage = b"(" + text("storage") + name("torch", "FloatStorage", chance)
    return chance.choice(
        (
            b"]" * deep + b"a" * (deep - 1),
            b"ca\nB\n(" * deep + b"N" + b"tR" * deep,
            name("a", "B", chance) + b")R\x94" * deep,  # a call of a call of a call
            b"(X" + struct.pack("<I", 10**6) + b"x" * 10**6 + b"q\x00" + b"h\x00h\x00\x93" * 2000 + b"l",  # long names
            b"((lq\x00" + b"h\x00" * 10**5 + b"l",
            b")" + b"\x85" * deep,
            b"}" + doubling + b"Ns",  # a key whose hash takes 2^60 steps
            doubling,
            b"(" + text("storage") + doubling + text("0") + text("cpu") + value_of(4) + b"tQ",
            storage + doubling + text("cpu") + value_of(4) + b"tQ",
            call(name("torch", "device", chance), doubling, chance=chance),
            call(name("torch._utils", "_rebuild_meta_tensor_no_storage", chance), doubling, b")", b")", chance=chance),
            call(name("numpy", "dtype", chance), doubling, chance=chance),
            b"\x8f(" + doubling + b"\x90",  # in a set
            b"(" + doubling + b"\x91",
            b"]q\x00h\x00a",  # a list in itself
            b"}q\x00" + text("x") + b"h\x00s",
            name("a", "B", chance) + b")\x81q\x00}" + text("me") + b"h\x00sb",
            b"\x8b" + struct.pack("<i", 9000) + b"\x7f" * 9000,  # an integer of 20,000 digits
            b"L" + b"9" * 5000 + b"L\n",
            b"}\x8b" + struct.pack("<i", 900) + b"\x7f" * 900 + b"Ns",
            b"\x8e" + struct.pack("<Q", size),  # BINBYTES8
            b"\x96" + struct.pack("<Q", size),  # BYTEARRAY8
            b"\x8d" + struct.pack("<Q", size),  # BINUNICODE8
            b"\x95" + struct.pack("<Q", size),  # FRAME
            b"Nr" + struct.pack("<I", 2**31),  # LONG_BINPUT
            bytes([chance.choice((0x82, 0x83, 0x84)), 1, 0, 0, 0]),  # EXT1, EXT2, EXT4
            b"Pmine\n",
            value_of(("storage", "x")) + b"Q",
            storage + text("0") + text("cpu") + value_of(size) + b"tQ",
            storage + text("../../data.pkl") + text("cpu") + value_of(4) + b"tQ",
            _tensor(storage, (size,), (0,), chance),
            _tensor(storage, (size, size), (0, 0), chance),
            _tensor(storage, (1,) * 5000, (1,) * 5000, chance),
            _tensor(storage, (3, -1), (1, 1), chance),
            _tensor(storage, (2,), (size,), chance),
            _tensor(storage, (0, size), (1, 1), chance),
            _array(size, "f4", chance),
            _array(4, chance.choice(("O8", "V99", "M8[s]", "U99", "f4,f4", "i4" * 1000)), chance),
            call(name("builtins", "bytearray", chance), value_of(size), chance=chance),
            call(name("builtins", "range", chance), value_of(size), chance=chance),
            text("\ud800\n\x1b[31m".encode("utf-8", "replace").decode()),
            b"}V\\ud800\n\x1b[2J\nNs",
        )
    )


def _tensor(storage: Fragment, size: tuple, stride: tuple, chance: random.Random) -> Fragment:
    """A tensor of a storage that may be there, of a shape that lies."""
    there = storage + text(chance.choice("0123")) + text("cpu") + value_of(chance.choice((1, 16, 864))) + b"tQ"
    function = name("torch._utils", "_rebuild_tensor_v2", chance)
    return function + group(there, value_of(0), value_of(size), value_of(stride), b"\x89", b"}") + b"R"


def _array(count: int, code: str, chance: random.Random) -> Fragment:
    """A numpy array whose shape or type lies."""
    dtype = name("numpy", "dtype", chance) + group(text(code), b"\x89", b"\x88") + b"R"
    state = group(value_of(1), value_of((count,)), dtype, b"\x89", b"C\x04\0\0\0\0")
    made = name("numpy.core.multiarray", "_reconstruct", chance)
    return made + group(name("numpy", "ndarray", chance), value_of((0,)), b"C\x01b") + b"R" + state + b"b"


def payload(canary: Path, chance: random.Random) -> Fragment:
    """A hostile value, alone or in containers."""
    value = chance.choice((executing, executing, changing, exhausting))(canary, chance)
    for _ in range(chance.randrange(3)):
        value = chance.choice(
            (
                b"]" + value + b"a",
                b"}" + text(chance.choice(ATTRIBUTES)) + value + b"s",
                group(value, text("x")),
                name("torch.nn.modules.conv", "Conv2d", chance) + b")\x81}" + text("_modules") + value + b"sb",
            )
        )
    return value


def hostile_file(kind: str, data: bytes, canary: Path, chance: random.Random) -> bytes:
    """A valid file with a hostile value beside its content, or in its place."""
    value = payload(canary, chance)

    def changed(program: bytes) -> bytes:
        if chance.random() < 0.5:
            return program[:-1] + text(chance.choice(("extra", "model", "state_dict"))) + value + b"s."
        return chance.choice((b"", b"\x80\x02", b"\x80\x04", b"\x80\x05")) + value + b"."

    if data.startswith(b"PK") and chance.random() < 0.9:
        return rewritten(
            data, lambda records: [(file, changed(old) if file.endswith("data.pkl") else old) for file, old in records]
        )
    if kind == "legacy.pth":
        stream = io.BytesIO(data)
        for part in range(4):
            start = stream.tell()
            collections.deque(pickletools.genops(stream), maxlen=0)
            if part == chance.randrange(4) or part == 3:
                end = stream.tell()
                return data[:start] + changed(data[start:end]) + data[end:]
    return changed(data) if kind.endswith(".pkl") else b"\x80\x04" + value + b"."


EVENTS = ("exec", "compile", "import", "marshal", "pickle", "os.", "subprocess", "shutil", "socket", "ctypes", "code.",
          "builtins.input", "builtins.breakpoint", "object.__setattr__")  # fmt: skip
_watched: list[tuple[str, object]] | None = None
_hooked = False


def _hook(event: str, arguments: tuple) -> None:
    if _watched is not None and (event.startswith(EVENTS) or event == "open"):
        _watched.append((event, arguments[0] if arguments else None))


@contextmanager
def nothing_happens(path: Path) -> Iterator[None]:
    """Raises AssertionError if anything is imported, executed, opened (but `path`), or changed for good meanwhile."""
    global _watched, _hooked
    if not _hooked:
        sys.addaudithook(_hook)  # for good; there is no way to remove one
        _hooked = True
    before, _watched = _world(), []
    try:
        yield
    finally:
        seen, _watched = _watched, None
    strange = [one for one in seen if one not in (("open", str(path)), ("open", path))]
    assert not strange, str(strange)[:500]
    assert _world() == before


def _world() -> list:
    """What a load must not change."""
    objects = (torch.UntypedStorage, torch.nn.Parameter, torch.Size, torch._utils._rebuild_tensor_v2, pickled.Inert,
               pickled.Name, pickled.Interpreter, InputError)  # fmt: skip
    looks = [tuple((key, id(value)) for key, value in vars(one).items()) for one in objects]
    functions = [(one.__defaults__, one.__code__) for one in pickled._BUILDERS.values()]
    registries = [dict(copyreg.dispatch_table), dict(copyreg._extension_cache)]
    return [set(sys.modules), looks, functions, registries, torch.serialization.get_safe_globals()]


def try_hostile(count: int, seed: int, folder: Path) -> collections.Counter:
    """Read `count` hostile files; counts by (format, outcome). AssertionError at the first that does anything."""
    files, right = originals_and_states(folder)
    files.pop("backbone.safetensors")  # holds no pickle
    outcomes: collections.Counter = collections.Counter()
    for number in range(count):
        chance, canary = random.Random(f"{seed} {number}"), folder / "canary"
        kind = chance.choice(list(files))
        path = folder / f"hostile{Path(kind).suffix}"
        path.write_bytes(hostile_file(kind, files[kind], canary, chance))
        outcome = "clean error"
        try:
            with nothing_happens(path):
                flat = flatten_content(read_file(path, mapped=chance.random() < 0.5)[0], str(path))
                for words in (("args", "num_heads"), ("extra",), ("meta", "cfg"), ("model",)):
                    flat.setting(*words)
            state = read_checkpoint(path, arch="mobilenetv2_035").state
            wrong = [key for key, value in right[kind].items() if not torch.equal(state[key], value)]
            assert not wrong and state.keys() == right[kind].keys(), (seed, number, kind, wrong)
            outcome = "right tensors"
        except InputError as error:
            assert "\n" not in str(error) and str(error).isprintable(), (seed, number, kind, str(error))
        assert not canary.exists(), (seed, number, kind, "executed code")
        outcomes[kind, outcome] += 1
    return outcomes


if __name__ == "__main__":
    from time import monotonic

    started = monotonic()
    with tempfile.TemporaryDirectory() as place:
        seen = try_hostile(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0, Path(place))
    for (kind, outcome), number in sorted(seen.items()):
        print(f"{number:6d}  {kind:<16}{outcome}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{seen.total():6d}  files, nothing executed; {monotonic() - started:.0f} s, at most {peak:.0f} MB")
