"""Files that survive: checked reads, the run's checkpoint and the exported backbone.

A checkpoint is a plain dict that `torch.load(weights_only=True)` reads. Required keys:
`format` ("sslight-1"), `method`, `arch` (timm's name), `epoch`, `step`, `model` (state dict), `optimizer`, `rng`,
`config` (plain dict), `preprocess` (mean, std, color_order, size) and `networks`: a dict of a network's name to the
prefix of its backbone in `model`, the one to evaluate first, e.g. {"student": "student.backbone.", "teacher": ...}.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sslight.core.errors import InputError, nearest_file
from sslight.core.files import write_atomically, write_json  # noqa: F401  (the second is for convert, which sees only this)

FORMAT = "sslight-1"
REQUIRED = (
    "format",
    "method",
    "arch",
    "epoch",
    "step",
    "model",
    "optimizer",
    "rng",
    "config",
    "preprocess",
    "networks",
)


def sha256(path: Path | str) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_archive(path: Path | str) -> None:
    """Raise InputError unless `path` is a readable file whose zip records, if it is a zip, all match their CRCs.

    torch does not check them: a flipped bit would load as a silently wrong weight.
    """
    path = Path(path)
    if re.match(r"\w+:/", str(path)):
        raise InputError(f"{path} is an address: download the file and name the copy")
    if not path.exists():
        raise InputError(f"checkpoint not found: {path}{nearest_file(path)}")
    if not path.is_file():
        inside = next((file for file in (path / "checkpoints" / "last.pth", path / "last.pth") if file.exists()), None)
        raise InputError(
            f"not a checkpoint file: {path} is a directory; name the file{f', e.g. {inside}' if inside else ' in it'}"
        )
    if path.stat().st_size == 0:
        raise InputError(f"checkpoint is empty (0 bytes): {path}; fetch or train it again")
    with open(path, "rb") as file:
        starts_as_zip = file.read(2) == b"PK"
    if not starts_as_zip and not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            fault = _archive_fault(archive)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, ValueError) as error:
        fault = str(error)
    if fault:
        raise InputError(f"checkpoint is corrupt or truncated: {path} ({fault}); fetch or train it again")


def _archive_fault(archive: zipfile.ZipFile) -> str:
    """What is wrong with a zip that torch should have written; an empty string when nothing is.

    torch could read repeated or compressed records otherwise than the checksums saw, and never writes them.
    """
    records = archive.infolist()
    if len({record.filename for record in records}) != len(records):
        return "records of its archive repeat"
    packed = [record.filename for record in records if record.compress_type != zipfile.ZIP_STORED]
    if packed:
        return f"record '{packed[0]}' is compressed, which torch never does"
    broken = archive.testzip()
    return f"record '{broken}' fails its checksum" if broken else ""


def save_checkpoint(path: Path | str, checkpoint: dict) -> None:
    """Write a run's checkpoint atomically. Raises KeyError if a required key is missing."""
    for key in REQUIRED:
        checkpoint[key]
    write_atomically(path, lambda temporary: torch.save(checkpoint, temporary))


def load_checkpoint(path: Path | str) -> dict:
    """Read a run's checkpoint onto the CPU, never executing anything. Raises InputError naming what is wrong."""
    check_archive(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError, AttributeError) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise InputError(f"not a readable checkpoint: {path} ({reason})") from None
    missing = [key for key in REQUIRED if not isinstance(checkpoint, dict) or key not in checkpoint]
    if missing or checkpoint["format"] != FORMAT:
        raise InputError(f"not a checkpoint of this project: {path} (lacks {', '.join(missing) or FORMAT})")
    return checkpoint


def backbone_state(checkpoint: dict, network: str | None = None) -> dict[str, Tensor]:
    """The state dict of one network's backbone in a run's checkpoint, in timm's names.

    `network` is a key of `checkpoint["networks"]`; by default the one the method evaluates.
    """
    networks = checkpoint["networks"]
    network = network or next(iter(networks))
    if network not in networks:
        raise InputError(f"no network '{network}' in the checkpoint; it has {', '.join(networks)}")
    prefix = networks[network]
    return {key[len(prefix) :]: value for key, value in checkpoint["model"].items() if key.startswith(prefix)}


def save_backbone(
    path: Path | str,
    state: dict[str, Tensor],
    *,
    arch: str,
    method: str,
    preprocess: dict,
    source_sha256: str = "",
    converted: str = "",
    options: dict | None = None,
    assumed: dict[str, str] | None = None,
    revision: str = "",
) -> None:
    """Write a backbone file: timm's key names, and a header that says what it is and how to feed it.

    `preprocess` holds mean and std (in the order of color_order), color_order and size; `converted` says how the file
    came about; `options` are `build_backbone` arguments that the tensors need beside `arch`; `assumed` says by topic
    what the source did not tell; `revision` is the commit of the hub's repository that it came from. `safetensors`
    metadata is text, so these dicts are stored as JSON.
    """
    header = {
        "format": "pt",
        "arch": arch,
        "method": method,
        "preprocess": json.dumps(preprocess),
        "source_sha256": source_sha256,
        "converted": converted,
    }
    if options:
        header["options"] = json.dumps(options)
    if revision:
        header["source_revision"] = revision
    if assumed is not None:
        header["assumed"] = json.dumps(assumed)
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}

    def write(temporary: Path) -> None:
        save_file(tensors, temporary, metadata=header)
        _sort_metadata(temporary)

    write_atomically(path, write)


def _sort_metadata(path: Path) -> None:
    """Put the header's metadata in order: safetensors shuffles it, and equal backbones should have equal hashes."""
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
        if len(text) == length:  # only the order changed
            file.seek(8)
            file.write(text)


def read_backbone_file(path: Path | str) -> tuple[dict[str, Tensor], dict]:
    """Tensors and header of a backbone file, `preprocess` as a dict. Raises InputError if it is not one."""
    check_archive(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}
        header["preprocess"] = json.loads(header.get("preprocess", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"not a readable safetensors file: {path} ({error})") from None
    return tensors, header
