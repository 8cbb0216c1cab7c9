"""Bad files: one clear line, exit 2, no output; settings of other projects are read past; nothing is executed."""

from __future__ import annotations

import argparse
import os
import pickle
import resource
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from convert.convert_ckpt import convert, main
from convert.reader import read_checkpoint
from convert.safe_files import read_file
from sslight.core.errors import InputError
from tests.convert.family_files import sslight
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
def test_hostile_pickles_do_nothing(suffix, tmp_path):
    canary, path = tmp_path / "canary", tmp_path / f"hostile{suffix}"
    content = {"model": {"x": _Call(os.system, f"touch {canary}")}, "__author__": "x"}
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(InputError, match=r"object of (posix|os|nt)\.?system"):
        read_file(path)
    assert not canary.exists()
    with open(path, "rb") as file:  # the very same file does harm where it is trusted
        pickle.load(file) if suffix == ".pkl" else torch.load(path, weights_only=False)
    assert canary.exists()


def test_an_exploding_pickle_is_refused(tmp_path):
    """Shared references that unfold to 10^24 entries."""
    content = {"x": torch.zeros(1)}
    for _ in range(24):
        content = {str(number): content for number in range(10)}
    path = tmp_path / "bomb.pth"
    torch.save(content, path)
    with pytest.raises(InputError, match="too deeply or holds too many"):
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
