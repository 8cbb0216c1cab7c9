"""Where a run's weights start: at random numbers, or at a checkpoint of any project (MODEL.INIT_WEIGHTS).

What the checkpoint says of its network and its images goes into the configuration, where the user has set nothing else.
Whatever comes later reads the configuration; only `Method.start_from` sees the tensors.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from fvcore.common.config import CfgNode
from torch import Tensor

from pretrain.backbones import canonical_arch, meta_backbone, read_options, write_options
from pretrain.state import describe, last_checkpoint
from sslight.core.config import flatten, read_yaml, to_dict
from sslight.core.errors import InputError
from sslight.core.registry import load

READER = "convert.reader:read_checkpoint"  # by its name, when it is needed: `convert` stands on `pretrain.backbones`


@dataclass(frozen=True)
class Start:
    """Weights to start from, and what is known of them.

    state: the backbone's tensors in timm's names; none where a run starts at random, or goes on.
    about: `path`, `sha256`, `revision` (of a hub's repository), `arch`, `options`, `method`, `family`, `network` and
        `assumed`, as in a result's `checkpoint`.
    notes: what the user should know, a line each.
    """

    state: dict[str, Tensor] = field(default_factory=dict)
    about: dict = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def lines(self) -> list[str]:
        """What a log says of the start."""
        if not self.about:
            return []
        return [f"starting from {describe(self.about)}", *(f"note: {note}" for note in self.notes)]


AT_RANDOM = Start()

# What the checkpoint says, as configuration. The user's word counts more than its in OVERRULED; in the others they must
# agree, where the user has said anything.
OVERRULED = ("MODEL.POS_RESIZE", "DATA.MEAN", "DATA.STD")
SAID = ("MODEL.BACKBONE_ARCH", "MODEL.OPTIONS", "MODEL.INIT_SHA256", *OVERRULED)


def begin(cfg: CfgNode, given: Collection[str]) -> tuple[CfgNode, Start]:
    """The configuration completed by what MODEL.INIT_WEIGHTS says, and where the weights start.

    `given` are the keys that the user has set: those win over the checkpoint's mean, std and resizing of positions. A
    run that goes on from its own checkpoint does not read the file again.
    Raises InputError for a file that cannot be read, of another network than MODEL.BACKBONE_ARCH, or with another hash
    than MODEL.INIT_SHA256.
    """
    weights, arch = cfg.MODEL.INIT_WEIGHTS, cfg.MODEL.BACKBONE_ARCH if "MODEL.BACKBONE_ARCH" in given else ""
    if weights in ("", "random"):
        if cfg.MODEL.INIT_SHA256 or cfg.MODEL.NETWORK:
            raise InputError("MODEL.INIT_SHA256 and MODEL.NETWORK are of MODEL.INIT_WEIGHTS, which is not set")
        return cfg, AT_RANDOM
    asked = read_options(cfg.MODEL.OPTIONS.split())
    said, start = _of_run(cfg, asked), Start()
    if said is None:
        said, start = _read(weights, arch, cfg.MODEL.NETWORK, asked)
    if arch and canonical_arch(arch) != said["MODEL.BACKBONE_ARCH"]:
        raise InputError(_other_network(weights, said["MODEL.BACKBONE_ARCH"], arch))
    sha256 = said["MODEL.INIT_SHA256"]
    if cfg.MODEL.INIT_SHA256 not in ("", sha256):
        raise InputError(
            f"MODEL.INIT_WEIGHTS {weights} is another file than MODEL.INIT_SHA256 says (its SHA-256 is {sha256})"
        )
    full = CfgNode(to_dict(cfg))
    for key, value in said.items():
        section, name = key.split(".")
        own = full[section][name]
        if key not in OVERRULED or key not in given:
            full[section][name] = value
        elif section == "DATA" and own != value:
            start.notes.append(f"{key} {own} is used, as it is set; {weights} was trained with {value}")
    full.freeze()
    return full, start


def _of_run(cfg: CfgNode, asked: dict) -> dict | None:
    """What the run in OUTPUT_DIR that goes on was told by a file of this name; None where there is no such run."""
    folder = Path(cfg.OUTPUT_DIR)
    if not (cfg.OUTPUT_DIR and cfg.TRAIN.AUTO_RESUME and last_checkpoint(folder).exists()):
        return None
    try:
        old = dict(flatten(read_yaml(folder / "config.yaml")))  # type: ignore[arg-type]  # what else it may be is caught
        if old["MODEL.INIT_WEIGHTS"] != cfg.MODEL.INIT_WEIGHTS:
            return None
        said = {key: old[key] for key in SAID}
        return {**said, "MODEL.OPTIONS": write_options({**read_options(str(said["MODEL.OPTIONS"]).split()), **asked})}
    except (InputError, KeyError, AttributeError):  # `open_run` says what is wrong with it
        return None


def _read(weights: str, arch: str, network: str, options: dict) -> tuple[dict, Start]:
    """What the checkpoint says, as of SAID, and the start that it is."""
    reader = load(READER)
    try:
        read = reader(weights, arch=arch or None, network=network or None, options=options)
    except InputError:
        holds = _arch_of(weights, network) if arch else ""
        if holds and holds != canonical_arch(arch):
            raise InputError(_other_network(weights, holds, arch)) from None
        raise
    preprocess, state, notes = read.preprocess, dict(read.state), list(read.assumed.values())
    mean, std = list(preprocess["mean"]), list(preprocess["std"])
    if preprocess["color_order"] == "BGR":
        for key in _first_layers(read.arch, read.options):
            state[key] = state[key].flip(1)
        mean, std = mean[::-1], std[::-1]
        notes.append(f"{weights} expects BGR: its first layer's channels are turned, so that the run sees RGB")
    about = {
        "path": weights,
        "sha256": read.sha256,
        "revision": read.revision,
        "arch": read.arch,
        "options": dict(read.options),
        "method": read.method,
        "family": read.family,
        "network": read.network,
        "assumed": dict(read.assumed),
    }
    positions = preprocess.get("pos_resize", "timm")
    said = (read.arch, write_options(read.options), read.sha256, positions, mean, std)
    return dict(zip(SAID, said, strict=True)), Start(state, about, notes)


def _arch_of(weights: str, network: str) -> str:
    """Which network the checkpoint holds by itself, "" if that is not to be told."""
    try:
        return load(READER)(weights, network=network or None).arch
    except InputError:
        return ""


def _first_layers(arch: str, options: dict) -> list[str]:
    """Names of the weights that take the image's channels. Raises InputError where timm does not tell them."""
    model = meta_backbone(arch, **options)
    layers = model.default_cfg.get("first_conv") or ()
    keys = [f"{layer}.weight" for layer in ([layers] if isinstance(layers, str) else layers)]
    if not keys or not set(keys) <= model.state_dict().keys():
        raise InputError(
            f"MODEL.INIT_WEIGHTS holds a {arch} that expects BGR images, of whose first layer timm tells no name"
        )
    return keys


def _other_network(weights: str, holds: str, arch: str) -> str:
    return (
        f"MODEL.INIT_WEIGHTS {weights} holds a {holds}, but MODEL.BACKBONE_ARCH is {arch}: "
        "set MODEL.BACKBONE_ARCH '' to train the file's network"
    )
