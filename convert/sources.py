"""What a user may name as a checkpoint, the same words in every command, and where its weights lie on this machine.

| word | what it names |
|---|---|
| `FILE` | a checkpoint file |
| `DIRECTORY` | a run of this project; what Hugging Face's or timm's savers wrote; a folder with one weights file |
| `timm:NAME` | timm's pretrained weights, e.g. timm:resnet18.a1_in1k; without a tag its default ones |
| `hf:ORG/NAME` | a repository of the Hugging Face hub, also hf:ORG/NAME@REVISION |
| `SUPERVISED` | ImageNet weights of the architecture named beside: torchvision's first, timm's where it has none |

Downloads go into the caches of huggingface_hub and torch, and come from there without a network. A command that takes
`random`, too, makes that network itself. Imports nothing heavy.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from convert.families import IMAGENET
from sslight.core.errors import InputError, listed, nearest

RANDOM, SUPERVISED, TIMM, HUB = "random", "SUPERVISED", "timm:", "hf:"
SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".pkl", ".bin", ".tar")
BESIDE = ("config.json", "preprocessor_config.json", "model_args.yaml", "args.json")
_LARGEST_CONFIG = 10_000_000  # bytes
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_USUAL = ("model.safetensors", "pytorch_model.bin")  # the names that Hugging Face's and timm's savers write
_NO_WEIGHTS = r"(optimizer|scheduler|scaler|training_args|rng_state.*)\.\w+"  # what trainers put beside weights


@dataclass(frozen=True)
class Source:
    """What a word names.

    files: the weights, more than one where they are sharded. `beside`: what the settings files beside them say, by
    their names. `revision`: the commit of a hub's repository, "" of all else.
    """

    word: str
    files: tuple[Path, ...]
    beside: Mapping[str, Any] = field(default_factory=dict)
    revision: str = ""

    def read(self, *, mapped: bool = False) -> tuple[Any, dict]:
        """The content and header as of `convert.safe_files.read_file`; shards are one dict. Raises InputError."""
        from convert.safe_files import read_file

        if len(self.files) == 1:
            return read_file(self.files[0], mapped=mapped)
        whole: dict[str, Any] = {}
        for file in self.files:
            content, _ = read_file(file, mapped=mapped)
            if not isinstance(content, dict) or whole.keys() & content.keys():
                raise InputError(f"{self.word}: {file.name} repeats another shard's tensors, or is no shard")
            whole |= content
        return whole, {}

    def sha256(self) -> str:
        """The file's SHA-256; of shards that of the lines `SHA256  NAME`, in the order of their names."""
        from sslight.core.checkpoint import sha256

        if len(self.files) == 1:
            return sha256(self.files[0])
        lines = [f"{sha256(file)}  {file.name}\n" for file in sorted(self.files)]
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def names_checkpoint(word: str) -> bool:
    """Whether a word that may also be an architecture's name is meant as a checkpoint."""
    marks = word.startswith((TIMM, HUB)) or "/" in word or Path(word).suffix in SUFFIXES
    return marks or word == SUPERVISED or Path(word).is_file()


def short_name(word: str) -> str:
    """A checkpoint's name for people and folders: its file's, in a run directory with the run's before it."""
    for prefix in (TIMM, HUB):
        if word.startswith(prefix):
            return word.removeprefix(prefix).split("@")[0].rpartition("/")[2]
    path = Path(word).resolve()
    if path.is_dir():
        return path.name
    if path.parent.name == "checkpoints":
        return f"{path.parents[1].name}-{path.stem}"
    return f"{path.parent.name}-{path.stem}" if (path.parent / "config.yaml").is_file() else path.stem


def locate(word: Path | str, arch: str | None = None) -> Source:
    """The weights that a word names, downloaded where they have to be. `arch`: of SUPERVISED.

    Raises InputError where there are none, several, or where they cannot be reached.
    """
    text = str(word)
    if text == SUPERVISED:
        return _supervised(arch)
    if text.startswith(TIMM):
        return _of_timm(text)
    if text.startswith(HUB):
        return _of_hub(text)
    if hub := re.match(r"https?:/+(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)", text):
        raise InputError(f"{text} is an address: name the repository, {HUB}{hub[1]}")
    path = Path(word)
    if path.is_dir():
        return _of_folder(path, text)
    if not path.exists() and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", text) and path.suffix not in SUFFIXES:
        where = f"{HUB}{text} on the Hugging Face hub" if "/" in text else f"{TIMM}{text} with timm's weights"
        if not path.parent.is_dir() or "/" not in text:
            raise InputError(f"checkpoint not found: {text}; if you mean {where}, write so")
    alone = path.name in _USUAL or (path.is_file() and _weights_in(path.parent) == [path])
    return Source(text, (path,), _settings(path.parent, strict=False) if alone else {})


def _of_folder(folder: Path, word: str, revision: str = "") -> Source:
    """The one set of weights in a folder."""
    for own in ("backbone.safetensors", "checkpoints/last.pth", "last.pth"):  # of this project's runs
        if (folder / own).is_file() and not (folder / "config.json").exists():
            return Source(word, (folder / own,))
    beside = _settings(folder, strict=True)
    for name in _INDEXES:
        if (folder / name).is_file():
            return Source(word, _shards(folder / name, word), beside, revision)
    for name in _USUAL:
        if (folder / name).is_file():
            return Source(word, (folder / name,), beside, revision)
    files = _weights_in(folder) or [file for below in sorted(folder.glob("*/")) for file in _weights_in(below)]
    if len(files) == 1:
        return Source(word, (files[0],), beside, revision)
    if not files:
        raise InputError(f"not a checkpoint: {word} is a directory without a weights file ({' '.join(SUFFIXES)})")
    names = listed((str(file.relative_to(folder)) for file in files), between=", ")
    raise InputError(f"not a checkpoint: {word} is a directory with {len(files)} weights files; name one of {names}")


def _weights_in(folder: Path) -> list[Path]:
    """The files of a folder that may hold weights."""
    try:
        files = sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES and file.is_file())
    except OSError:
        return []
    return [file for file in files if not re.fullmatch(_NO_WEIGHTS, file.name)]


def _shards(index: Path, word: str) -> tuple[Path, ...]:
    """The files that an index lists, all beside it."""
    content = _parsed(index, strict=True)
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise InputError(f"{word}: {index.name} is damaged: it has no 'weight_map'")
    files = sorted({index.with_name(Path(name).name) for name in names.values()})
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise InputError(f"{word}: {index.name} names shards that are missing: {listed(missing, between=', ')}")
    return tuple(files)


def _settings(folder: Path, *, strict: bool) -> dict[str, Any]:
    """What the settings files in a folder say. A damaged one is an error only where it is meant: `strict`."""
    read = {name: _parsed(folder / name, strict=strict) for name in BESIDE if (folder / name).is_file()}
    return {name: value for name, value in read.items() if isinstance(value, dict)}


def _parsed(file: Path, *, strict: bool) -> object:
    """A settings file as plain data."""
    import yaml

    try:
        if file.stat().st_size > _LARGEST_CONFIG:
            raise ValueError("it is far too large")
        text = file.read_text(encoding="utf-8")
        return json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        if not strict:
            return None
        raise InputError(f"{file} cannot be read as settings ({' '.join(str(error).split())[:100]})") from None


def _of_hub(word: str, file: str = "") -> Source:
    """Weights and settings of a hub's repository, by way of the cache. `file`: the weights' name, where it is known."""
    found = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", word)
    if not found:
        raise InputError(f"'{word}' names no repository: write hf:ORG/NAME, or hf:ORG/NAME@REVISION")
    repository, revision = found.groups()
    import huggingface_hub
    from huggingface_hub import constants, errors

    def fetch(*patterns: str) -> Path:
        folder = huggingface_hub.snapshot_download(
            repository, revision=revision, allow_patterns=[*BESIDE, *patterns], ignore_patterns=["*/*", "*.fp16.*"]
        )
        return Path(folder)

    try:
        folder = fetch(file) if file else fetch("*.safetensors", "*.safetensors.index.json")
        if not file and not any(folder.glob("*.safetensors")):
            folder = fetch(*(f"*{suffix}" for suffix in SUFFIXES[1:]), "*.bin.index.json")
    except errors.RevisionNotFoundError:
        raise InputError(f"{word}: the repository has no revision '{revision}'") from None
    except errors.GatedRepoError:
        raise InputError(
            f"{word}: its owner asks to be asked: accept the terms on its page, then `hf auth login`"
        ) from None
    except errors.RepositoryNotFoundError:
        raise InputError(f"{word}: no such repository, or a private one: `hf auth login` for those") from None
    except (errors.HFValidationError, OSError, errors.HfHubHTTPError, RuntimeError, ValueError) as error:
        pinned = f" --revision {revision}" if revision else ""
        raise InputError(
            f"{word} is not in the cache ({constants.HF_HUB_CACHE}) and cannot be fetched "
            f"({type(error).__name__}): run, where there is a network, `hf download {repository}{pinned}`, then copy "
            f"models--{repository.replace('/', '--')} into that cache"
        ) from None
    if file and not (folder / file).is_file():
        raise InputError(f"{word}: the cache ({folder}) lacks its {file}: `hf download {repository} {file}`")
    if file:
        return Source(word, (folder / file,), _settings(folder, strict=True), folder.name)
    return _of_folder(folder, word, folder.name)


def _of_timm(word: str) -> Source:
    """timm's weights from the hub, or from where timm took them before, in torch's cache."""
    import timm

    name = word.removeprefix(TIMM)
    base = name.split(".")[0]
    if not timm.is_model(base):
        raise InputError(f"{word}: timm has no network '{base}'{nearest(base, timm.list_models())}")
    try:
        cfg: Any = timm.models.get_pretrained_cfg(name)
    except RuntimeError:  # a wrong tag
        cfg = None
    if cfg is None or not cfg.has_weights:
        known = listed(
            (f"{TIMM}{one}" for one in timm.list_pretrained(f"{base}*") if one.split(".")[0] == base), most=12
        )
        raise InputError(f"{word}: timm has no weights of this name; it has {known or 'none of this network'}")
    config = {
        "architecture": base,
        "pretrained_cfg": {key: list(getattr(cfg, key)) for key in ("mean", "std", "input_size")},
    }
    if cfg.url and (cached := _in_torchs_cache(str(cfg.url))).is_file():
        return Source(word, (cached,), {"config.json": config})
    if not cfg.hf_hub_id:
        return Source(word, (_download(word, str(cfg.url)),), {"config.json": config})
    repository, _, revision = cfg.hf_hub_id.partition("@")
    at = f"@{revision}" if revision else ""
    try:
        source = _of_hub(f"{HUB}{repository}{at}", cfg.hf_hub_filename or "model.safetensors")
    except InputError as error:
        raise InputError(f"{word} is {error}") from None
    return Source(word, source.files, {**source.beside, "config.json": config}, source.revision)


def _supervised(arch: str | None) -> Source:
    """ImageNet weights: torchvision's first, from which the detection frameworks' recipes start, else timm's."""
    import torchvision

    from pretrain.backbones import canonical_arch

    if not arch:
        raise InputError(f"{SUPERVISED} needs an architecture: add --arch, e.g. --arch resnet18")
    arch = canonical_arch(arch)
    name = arch.replace("mobilenetv2_100", "mobilenet_v2")
    if name not in torchvision.models.list_models(torchvision.models):
        return replace(_of_timm(f"{TIMM}{arch}"), word=SUPERVISED)
    url = torchvision.models.get_model_weights(name).IMAGENET1K_V1.url
    cached = _in_torchs_cache(url)
    file = cached if cached.is_file() else _download(f"{SUPERVISED} ({arch})", url)
    usual = {"mean": IMAGENET["mean"], "std": IMAGENET["std"], "input_size": [3, 224, 224]}
    return Source(SUPERVISED, (file,), {"config.json": {"architecture": arch, "pretrained_cfg": usual}})


def _in_torchs_cache(url: str) -> Path:
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]


def _download(word: str, url: str) -> Path:
    """Fetch a file into torch's cache. Its name carries the beginning of its hash, which is checked."""
    import torch

    target = _in_torchs_cache(url)
    digest = re.search(r"-([a-f0-9]{8,})\.", target.name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(target), digest[1] if digest else None, progress=False)
    except Exception as error:  # noqa: BLE001  (network libraries raise many kinds)
        raise InputError(
            f"{word} cannot be fetched ({' '.join(str(error).split())[:100]}): where there is a network, fetch {url}, "
            f"then put it into {target.parent}"
        ) from None
    return target
