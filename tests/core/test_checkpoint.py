"""Checkpoints: atomic writes, checked reads, the backbone file."""

from __future__ import annotations

import os
import stat
import zipfile

import pytest
import timm
import torch

from pretrain.backbones import build_backbone
from sslight.core.checkpoint import (
    FORMAT,
    backbone_state,
    load_checkpoint,
    read_backbone_file,
    save_backbone,
    save_checkpoint,
    sha256,
)
from sslight.core.errors import InputError
from sslight.core.files import write_atomically

PREPROCESS = {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2], "color_order": "RGB", "size": 32}


def checkpoint(**changes) -> dict:
    state = {f"student.backbone.{key}": value for key, value in build_backbone("resnet18").state_dict().items()}
    return {
        "format": FORMAT,
        "method": "dino",
        "arch": "resnet18",
        "epoch": 1,
        "step": 2,
        "model": state,
        "optimizer": {},
        "rng": [],
        "config": {},
        "preprocess": PREPROCESS,
        "networks": {"student": "student.backbone."},
        **changes,
    }


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")

    def fail(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(target, fail)
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_checkpoint_round_trip_is_exact_and_readable_by_others(tmp_path):
    path = tmp_path / "last.pth"
    saved = checkpoint()
    save_checkpoint(path, saved)
    loaded = load_checkpoint(path)
    assert all(torch.equal(loaded["model"][key], value) for key, value in saved["model"].items())
    assert stat.S_IMODE(path.stat().st_mode) & 0o044 == 0o666 & ~os.umask(os.umask(0)) & 0o044
    with pytest.raises(InputError, match="no network 'teacher' in the checkpoint; it has student"):
        backbone_state(loaded, "teacher")


def test_backbone_file_loads_strictly_in_timm_and_carries_its_header(tmp_path):
    path = tmp_path / "backbone.safetensors"
    state = backbone_state(checkpoint())
    save_backbone(path, state, arch="resnet18", method="dino", preprocess=PREPROCESS, source_sha256="ab", converted="x")
    model = timm.create_model("resnet18", num_classes=0, checkpoint_path=str(path))
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    assert len(model.state_dict()) == len(state)
    tensors, header = read_backbone_file(path)
    assert header["preprocess"] == PREPROCESS and header["arch"] == "resnet18" and tensors.keys() == state.keys()
    save_backbone(path, state, arch="resnet18", method="dino", preprocess=PREPROCESS)
    first = sha256(path)
    save_backbone(path, state, arch="resnet18", method="dino", preprocess=PREPROCESS)
    assert sha256(path) == first


def test_a_flipped_bit_is_found(tmp_path):
    path = tmp_path / "last.pth"
    save_checkpoint(path, checkpoint())
    with zipfile.ZipFile(path) as archive:
        record = max(archive.infolist(), key=lambda info: info.file_size)
    data = bytearray(path.read_bytes())
    data[record.header_offset + 2000] ^= 1  # inside the largest tensor's bytes
    path.write_bytes(data)
    torch.load(path, weights_only=True)  # torch itself says nothing
    with pytest.raises(InputError, match="corrupt"):
        load_checkpoint(path)


def test_a_record_that_claims_to_be_compressed_is_refused_before_it_is_inflated(tmp_path):
    path = tmp_path / "last.pth"
    save_checkpoint(path, checkpoint())
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\x01\x02")  # the last one of the central directory; its method stands at offset 10
    data[entry + 10] = zipfile.ZIP_DEFLATED
    path.write_bytes(data)
    with pytest.raises(InputError, match="is compressed"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "empty"),
        (b"<html><body>404 Not Found</body></html>", "not a readable checkpoint"),
        (b"PK\x03\x04 and then nothing", "corrupt or truncated"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path, content, message):
    path = tmp_path / "last.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_checkpoint(path)


def test_truncated_missing_directory_and_foreign(tmp_path):
    path = tmp_path / "last.pth"
    save_checkpoint(path, checkpoint())
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError):
        load_checkpoint(path)
    with pytest.raises(InputError, match="not found"):
        load_checkpoint(tmp_path / "absent.pth")
    with pytest.raises(InputError, match="is a directory"):
        load_checkpoint(tmp_path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(InputError, match="not a checkpoint of this project.*lacks format"):
        load_checkpoint(path)


def test_no_code_is_executed(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'executed'}",)

    path = tmp_path / "last.pth"
    torch.save(checkpoint(config=Hostile()), path)
    with pytest.raises(InputError, match="not a readable checkpoint"):
        load_checkpoint(path)
    assert not (tmp_path / "executed").exists()
