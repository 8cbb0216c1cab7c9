"""Bad files: one clear line, exit 2, no output; settings of other projects are read past; nothing is executed."""

from __future__ import annotations

import argparse
import dataclasses
import enum
import functools
import importlib.util
import os
import pickle
import resource
import subprocess
import sys
import tarfile
import zipfile
from collections import OrderedDict, defaultdict, deque
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import torch

from convert.convert_ckpt import convert, main
from convert.pickled import plain
from convert.reader import read_checkpoint
from convert.safe_files import _under, flatten_content, read_file
from sslight.core.errors import InputError
from tests.convert.family_files import sslight
from tests.convert.hostile import nothing_happens, try_hostile
from tests.convert.mutations import try_mutations
from tests.convert.own_networks import timm_own

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "last.pth"
    torch.save(sslight(timm_own("mobilenetv2_035")), path)
    return path


def _bytes(path, data):
    path.write_bytes(data)
    return path


BAD = {
    "missing": (lambda folder, good: folder / "none.pth", "not found"),
    "directory": (lambda folder, good: folder, "is a directory"),
    "empty": (lambda folder, good: _bytes(folder / "a.pth", b""), "0 bytes"),
    "text": (lambda folder, good: _bytes(folder / "a.pth", b"hello world\n" * 9), "it is text"),
    "error page": (lambda folder, good: _bytes(folder / "a.pth", b"<!DOCTYPE html><html>404</html>"), "web page"),
    "LFS pointer": (
        lambda folder, good: _bytes(folder / "a.pth", b"version https://git-lfs.github.com/spec/v1\n"),
        "LFS",
    ),
    "noise": (lambda folder, good: _bytes(folder / "a.pth", bytes(range(144, 256)) * 9), "unknown kind"),
    "truncated": (lambda folder, good: _bytes(folder / "a.pth", good[: len(good) // 2]), "truncated"),
    "flipped": (
        lambda folder, good: _bytes(folder / "a.pth", good[:90_000] + bytes([good[90_000] ^ 4]) + good[90_001:]),
        "checksum",
    ),
    "number": (lambda folder, good: _bytes(folder / "a.pkl", pickle.dumps(7)), "no tensors"),
    "image": (lambda folder, good: _bytes(folder / "a.pth", b"\x89PNG\r\n\x1a\n" + b"\0" * 99), "unknown kind"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_give_one_line_and_no_output(name, run_file, tmp_path):
    make, words = BAD[name]
    source = tmp_path / "source"
    source.mkdir()
    out = tmp_path / "out" / "backbone.safetensors"
    with pytest.raises(InputError, match=words) as raised:
        convert(make(source, run_file.read_bytes()), "timm", out)
    assert "\n" not in str(raised.value)
    assert not out.parent.exists()


def test_the_command_exits_2_with_one_line(tmp_path):
    bad = _bytes(tmp_path / "a.pth", b"<html>")
    for command in ([sys.executable, "convert/convert_ckpt.py"], [sys.executable, "-m", "sslight", "convert"]):
        done = subprocess.run(
            [*command, str(bad), "--to", "timm", "-o", str(tmp_path / "o.safetensors")],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_an_existing_file_is_kept_unless_forced(run_file, tmp_path):
    out = tmp_path / "backbone.safetensors"
    out.write_text("mine")
    with pytest.raises(InputError, match="exists"):
        convert(run_file, "timm", out, verify=False)
    snippet = tmp_path / "other.py"
    snippet.write_text("mine")
    with pytest.raises(InputError, match="other.py exists"):
        convert(run_file, "timm", tmp_path / "other.safetensors", verify=False)
    assert out.read_text() == "mine" and sorted(tmp_path.iterdir()) == [out, snippet]
    convert(run_file, "timm", out, verify=False, force=True)
    assert read_checkpoint(out).arch == "mobilenetv2_035"
    broken = _bytes(tmp_path / "broken.pth", run_file.read_bytes()[:9000])
    with pytest.raises(InputError):
        convert(broken, "timm", out, force=True)
    assert read_checkpoint(out).arch == "mobilenetv2_035"  # what force would replace stays when the source is bad


def test_a_full_disk_is_said_and_nothing_is_left(run_file, tmp_path):
    """The limit on a file's size stands for the disk's: writing fails in the middle, in each format's own way."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))
    try:
        for to, suffix in (("timm", ".safetensors"), ("mmdet", ".pth"), ("detectron2", ".pkl")):
            with pytest.raises(InputError, match="is the disk full"):
                convert(run_file, to, tmp_path / "new" / f"out{suffix}", verify=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "new").iterdir())


def test_places_that_cannot_be_written_are_said_before_work(run_file, tmp_path):
    blocker = _bytes(tmp_path / "file", b"")
    for out, report in (
        (blocker / "out.pth", None),
        (tmp_path / "out.pth", blocker / "report.json"),
        (tmp_path / "out.pth", tmp_path / "out.pth"),
    ):
        with pytest.raises(InputError, match="cannot write|written twice"):
            convert(tmp_path / "not looked at", "torchvision", out, report=report)
    with pytest.raises(InputError, match="cannot write"):  # seen only when it is tried
        convert(run_file, "torchvision", tmp_path / "out.pth", report="/proc/report.json", verify=False)
    assert list(tmp_path.iterdir()) == [blocker]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--to", "timm", "-o", "x.pth"], "ends in .safetensors"),
        (["--to", "mmdet", "-o", "x.pkl"], "ends in .pth"),
        (["--to", "timm", "-o", "x.safetensors", "--model", "c4"], "detectron2 only"),
        (["--to", "timm", "-o", "x.safetensors", "--prefix", "backbone."], "mmdet only"),
        (["--to", "timm", "-o", "x.safetensors", "--stages"], "onnx only"),
        (["--to", "timm", "-o", "x.safetensors", "--arch", "resnet19"], "did you mean 'resnet1"),
        (["--to", "timm", "-o", "x.safetensors", "--arch", "resnet18"], "do not fit|no rule"),
        (["--to", "timm", "-o", "x.safetensors", "--network", "encoder_q"], "student, teacher"),
        (["--to", "timm", "-o", "x.safetensors", "--family", "moco"], "not of the family moco"),
        (["--to", "timm", "-o", "x.safetensors", "--family", "mocov2"], "did you mean 'moco"),
        (["--to", "tim", "-o", "x.safetensors"], "did you mean 'timm'"),
        (["--to", "detectron2", "-o", "x.pth", "--model", "fnp"], "did you mean 'fpn'"),
        (["--to", "timm", "-o", "x.safetensors", "--verify-with", "no.png"], "cannot read the image"),
        (["--to", "timm", "-o", "x.safetensors", "--verify-with", "no.png", "--no-verify"], "exclude each other"),
    ],
)
def test_wrong_options_are_said(arguments, words, run_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=words):
        main([str(run_file), *arguments])
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".pth"]


def test_settings_of_other_projects_are_read_past(tmp_path):
    """Namespace, CfgNode, OmegaConf, mmengine's history buffers and numpy scalars, as those projects pickle them."""
    fvcore = pytest.importorskip("fvcore.common.config")
    settings = {
        "args": argparse.Namespace(lr=0.1, path=Path("/data")),
        "numpy": np.float64(3),
        "array": np.arange(3),
        "config": fvcore.CfgNode({"MODEL": {"ARCH": "x"}}),
        "groups": defaultdict(dict, {"a": {"b": 1}}),
    }
    try:
        from omegaconf import OmegaConf

        settings["hyper_parameters"] = OmegaConf.create({"method": "byol", "lr": [1, 2.5, None], "x": {"y": True}})
    except ImportError:
        pass
    try:
        from mmengine.logging import HistoryBuffer

        settings["message_hub"] = {"log_scalars": {"loss": HistoryBuffer([1.0, 2.0], [1, 1])}}
    except ImportError:
        pass
    own = timm_own("mobilenetv2_035")
    path = tmp_path / "foreign.pth"
    torch.save({"state_dict": own.state, **settings}, path)
    checkpoint = read_checkpoint(path)
    assert all(torch.equal(checkpoint.state[key], value) for key, value in own.state.items())
    assert any("args" in key for key in checkpoint.dropped["not a tensor (settings and counters)"])


class _Call:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_a_call_is_read_as_data_and_not_made(suffix, tmp_path):
    canary, path = tmp_path / "canary", tmp_path / f"hostile{suffix}"
    content = {"model": {"x": _Call(os.system, f"touch {canary}")}, "__author__": "x"}
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with nothing_happens(path):
        read = read_file(path)[0]
    assert read["__author__"] == "x"
    assert (read["model"]["x"].name, read["model"]["x"].arguments) == ("posix.system", (f"touch {canary}",))
    with pytest.raises(InputError, match="holds no tensors"):
        read_checkpoint(path)
    assert not canary.exists()
    with pytest.raises(AssertionError, match="os.system"), nothing_happens(path), open(path, "rb") as file:
        pickle.load(file) if suffix == ".pkl" else torch.load(path, weights_only=False)  # it does harm where trusted
    assert canary.exists()


@pytest.mark.parametrize("number", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_hostile_files_do_nothing(number, tmp_path):
    """`python -m tests.convert.hostile 10000`, and a short form of it."""
    outcomes = try_hostile(number, 1, tmp_path)
    assert {outcome for _, outcome in outcomes} == {"clean error", "right tensors"}


class Flavour(enum.Enum):
    SWEET = "sweet"


@dataclasses.dataclass
class Settings:
    heads: int
    deep: dict


class Slotted:
    __slots__ = ("width",)


class Items(dict):
    pass


class Entries(list):
    pass


def _slotted(width):
    value = Slotted()
    value.width = width
    return value


OBJECTS = {  # value, where to look, what must be there
    "namespace": (lambda: argparse.Namespace(heads=6), ("heads",), 6),
    "dataclass": (lambda: Settings(6, {"a": [1]}), ("deep", "a"), [1]),
    "slots": (lambda: _slotted(6), ("width",), 6),
    "enum": (lambda: Flavour.SWEET, (), "sweet"),
    "dict": (lambda: Items(heads=6), ("heads",), 6),
    "ordered dict": (lambda: OrderedDict(heads=6), ("heads",), 6),
    "default dict": (lambda: defaultdict(Settings, heads=6), ("heads",), 6),
    "list": (lambda: Entries([1, 2]), (), [1, 2]),
    "deque": (lambda: deque([1, 2], maxlen=3), (), [1, 2]),
    "set": (lambda: {3}, (), [3]),
    "path": (lambda: Path("/data/x"), (), "/data/x"),
    "decimal": (lambda: Decimal("0.5"), (), "0.5"),
    "partial": (lambda: functools.partial(torch.nn.LayerNorm, eps=1e-6), ("eps",), 1e-6),
    "class": (lambda: torch.nn.GELU, (), "torch.nn.modules.activation.GELU"),
    "type": (lambda: torch.float16, (), "torch.float16"),
    "size": (lambda: torch.Size([2, 3]), (), (2, 3)),
    "number of numpy": (lambda: np.float64(0.5), (), 0.5),
    "nested": (lambda: argparse.Namespace(x=Items(y=Settings(6, {}))), ("x", "y", "heads"), 6),
}


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
@pytest.mark.parametrize("name", OBJECTS)
def test_objects_keep_what_is_data(name, protocol, tmp_path):
    """Whatever the class: constructor arguments, items, entries, attributes; as pickle and torch.save write them."""
    if name == "slots" and protocol < 2:
        pytest.skip("protocols 0 and 1 cannot write slots")
    make, place, expected = OBJECTS[name]
    torch.save({"x": make(), "t": torch.ones(1)}, tmp_path / "a.pth", pickle_protocol=max(protocol, 2))
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02" * (protocol < 2) + pickle.dumps({"x": make()}, protocol))
    with nothing_happens(tmp_path / "a.pth"):
        flat = flatten_content(read_file(tmp_path / "a.pth")[0], "a.pth")
    assert flat.setting("x", *place) == expected
    assert _under(read_file(tmp_path / "a.pkl")[0], ("x", *place)) == expected


def test_configs_of_other_projects_keep_their_settings(tmp_path):
    content = {"t": torch.ones(1)}
    for name, module, make in (
        ("omegaconf", "omegaconf", lambda lib: lib.OmegaConf.create({"a": {"b": [6, None]}})),
        ("yacs", "fvcore.common.config", lambda lib: lib.CfgNode({"a": {"b": [6, None]}})),
        ("mmengine", "mmengine.config", lambda lib: lib.ConfigDict(a=dict(b=[6, None]))),
        ("transformers", "transformers", lambda lib: lib.ViTConfig(num_attention_heads=6)),
    ):
        if importlib.util.find_spec(module.split(".")[0]):
            content[name] = make(importlib.import_module(module))
    torch.save(content, tmp_path / "a.pth")
    flat = flatten_content(read_file(tmp_path / "a.pth")[0], "a.pth")
    for name in content.keys() & {"yacs", "mmengine"}:
        assert flat.setting(name, "a", "b") == [6, None]
    if "omegaconf" in content:
        assert [plain(item) for item in flat.setting("omegaconf", "a", "b")] == [6, None]
    if "transformers" in content:
        assert flat.setting("transformers", "num_attention_heads") == 6


class Average(torch.nn.Module):
    """A moving average as other projects pickle it: a module that holds a copy and more."""

    def __init__(self, module):
        super().__init__()
        self.decay, self.average, self.owner = 0.9, module, {"self": self}


def test_whole_modules_are_their_state_dict(tmp_path):
    """Also several, in wrappers, in objects that are no modules, and in circles."""
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Sequential(torch.nn.PReLU()))
    net.register_buffer("scratch", torch.ones(3), persistent=False)
    net[0].bias = None
    optimizer = torch.optim.AdamW(net.parameters())
    holder = argparse.Namespace(net=net, optimizer=optimizer)
    holder.holder = holder
    content = {
        "ema": Average(net),
        "parallel": torch.nn.DataParallel(net),
        "holder": holder,
        "epoch": 3,
    }
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        torch.save(content, tmp_path / "a.pth", **options)
        with nothing_happens(tmp_path / "a.pth"):
            flat = flatten_content(read_file(tmp_path / "a.pth")[0], "a.pth")
        expected = net.state_dict()
        for prefix in ("ema.average.", "parallel.", "holder.net."):
            below = {key.removeprefix(prefix): value for key, value in flat.tensors.items() if key.startswith(prefix)}
            assert below.keys() == expected.keys()
            assert all(
                torch.equal(value, expected[key]) and type(value) is torch.Tensor for key, value in below.items()
            )
        assert flat.setting("ema", "decay") == 0.9 and flat.values["epoch"] == 3
        assert flat.raw["parallel.0.weight"] == "parallel.module.0.weight"


def test_tensors_of_every_kind_come_back(tmp_path):
    base = torch.arange(24.0)
    content = {
        "view": base[4:16].view(3, 4).t(),
        "expanded": torch.ones(1).expand(3, 5),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(base),
        **{
            str(dtype): base.to(dtype)
            for dtype in (torch.bfloat16, torch.half, torch.int8, torch.bool, torch.float8_e5m2)
        },
        "uint16": torch.ones(3, dtype=torch.uint16),
    }
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        torch.save(content, tmp_path / "a.pth", **options)
        for mapped in (False, True):
            read = read_file(tmp_path / "a.pth", mapped=mapped)[0]
            for key, value in content.items():
                assert read[key].dtype is value.dtype and read[key].shape == value.shape
                assert torch.equal(read[key].float(), value.detach().float()), key
    for dtype in ("<f4", ">f8", "<i2", "|b1", "<f2"):
        array = np.asfortranarray(np.arange(6).reshape(2, 3).astype(dtype))
        for protocol in (2, 4, 5):
            (tmp_path / "a.pkl").write_bytes(pickle.dumps({"a": array, "words": np.array(["x"])}, protocol))
            read = read_file(tmp_path / "a.pkl")[0]["a"]
            assert np.array_equal(read.numpy(), array) and read.is_contiguous()
    pickled = pickle.dumps({"t": base[4:16].view(3, 4)})  # by pickle, without torch.save
    (tmp_path / "a.pkl").write_bytes(pickled)
    assert torch.equal(read_file(tmp_path / "a.pkl")[0]["t"], base[4:16].view(3, 4))


def test_keys_that_differ_in_wrappers_alone_are_two_networks():
    one, other = torch.zeros(2), torch.ones(2)
    flat = flatten_content({"model": {"a": one, "b": one}, "module.a": other, "module.c": other, "lr": 1}, "here")
    assert flat.values.keys() == {"a", "b", "module.a", "module.c", "lr"}
    assert flat.raw == {"a": "model.a", "b": "model.b", "module.a": "module.a", "module.c": "module.c", "lr": "lr"}
    sharded = {"_fsdp_wrapped_module.a._checkpoint_wrapped_module.b": one}
    assert flatten_content(sharded, "here").values.keys() == {"a.b"}


def test_torchscript_is_named_and_never_run(tmp_path):
    torch.jit.script(torch.nn.Conv2d(1, 1, 1)).save(tmp_path / "a.pt")
    with pytest.raises(InputError, match="TorchScript.*torch.jit.load.'a.pt'..state_dict"):
        read_file(tmp_path / "a.pt")


def test_an_archive_that_holds_a_file_is_named(tmp_path):
    with tarfile.open(tmp_path / "a.pth.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("x"))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("net.pth", b"x")
    for name, words in (("a.pth.tar", "it is a tar archive; unpack it"), ("a.zip", "torch.save did not write; if")):
        with pytest.raises(InputError, match=words):
            read_file(tmp_path / name)


def test_an_exploding_pickle_is_refused(tmp_path):
    """Shared references that unfold to 10^24 entries."""
    content = {"x": torch.zeros(1)}
    for _ in range(24):
        content = {str(number): content for number in range(10)}
    path = tmp_path / "bomb.pth"
    torch.save(content, path)
    with pytest.raises(InputError, match="holds too many entries"):
        read_checkpoint(path)


@pytest.mark.parametrize("number", [250, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutated_files_give_clean_errors_or_right_tensors(number, tmp_path):
    """`python -m tests.convert.mutations 10000`, and a short form of it."""
    outcomes = try_mutations(number, 1, tmp_path)
    kinds = {kind for _, kind, _ in outcomes}
    assert {"flipped", "truncated", "swapped_records", "hostile"} <= kinds


def test_help_is_fast_because_it_imports_no_torch():
    code = (
        "import sys; sys.argv = ['x', '--help']\nfrom convert.convert_ckpt import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\nassert not {'torch', 'timm'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "ViTDet" in done.stdout and "sslight-original" in done.stdout
