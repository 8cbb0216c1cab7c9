"""The parts of a suite: every evaluation of every network, each one command and one folder."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.deployment.cost import label
from benchmarks.detection.weights import RANDOM, SUPERVISED, find_source
from benchmarks.suite.settings import Evaluation, lay_over
from convert.reader import read_checkpoint
from pretrain.backbones import canonical_arch, check_options, read_options, write_options
from sslight.core.errors import InputError

ROOT = Path(__file__).resolve().parents[2]  # where the packages lie


@dataclass(frozen=True)
class Network:
    """A checkpoint under test, or a baseline. `name` is its folder, `arch` timm's name, `told`: the file says so;
    `named`: the user chose the name, so it is the report's, too."""

    name: str
    weights: str
    arch: str
    told: bool = True
    named: bool = False
    options: str = ""  # build options that change its cost, as `num_heads=12`


@dataclass(frozen=True)
class Part:
    """One evaluation of one network: `words` follow `sslight bench`, its results lie in `folder`."""

    network: Network
    evaluation: Evaluation
    words: tuple[str, ...]
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.network.name}/{self.evaluation.name}"

    def command(self, processes: int) -> list[str]:
        """The part as a process of its own, or as several in one group."""
        spread = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        alone = processes == 1 or self.evaluation.benchmark in ("coco", "cost")  # coco spreads its processes itself
        return [sys.executable, *([] if alone else spread), "-m", "sslight", "bench", *self.words]


def find_networks(words: Sequence[str], arch: str | None, out_dir: Path, options: str = "") -> list[Network]:
    """The networks that --weights names: `FILE`, `NAME=FILE`, `random` or `SUPERVISED`.

    The baselines come once for every architecture among the checkpoints, or for `arch`. Supervised weights are written
    to `out_dir/weights`. `options`: MODEL.OPTIONS of them all. Raises InputError for an unreadable file, or one name
    for two networks.
    """
    found, given = [], read_options(options.split())
    for word in words:
        if word not in (RANDOM, SUPERVISED):
            name, _, file = ("", "", word) if Path(word).is_file() else word.rpartition("=")
            read = read_checkpoint(file, arch=arch, options=given)
            of_cost = write_options({key: value for key, value in read.options.items() if key != "img_size"})
            found.append(Network(name or name_of(Path(file)), file, read.arch, not arch, bool(name), of_cost))
    archs = dict.fromkeys(network.arch for network in found) or ([canonical_arch(arch)] if arch else [])
    for word in (RANDOM, SUPERVISED):
        if word in words and not archs:
            raise InputError(f"--weights {word} without a checkpoint needs --arch, e.g. --arch resnet18")
        for one in archs if word in words else ():
            weights = word
            if word == SUPERVISED:
                find_source(word, one, 0, out_dir)
                weights = str(out_dir / "weights" / f"supervised_{one}_seed0.safetensors")
            check_options(one, given)
            found.append(Network(f"{word.lower()}-{one}", weights, one, word == SUPERVISED, options=options))
    names = [network.name for network in found]
    for network in found:
        if not re.fullmatch(r"[\w.+-]+", network.name):
            raise InputError(f"'{network.name}' is to name a folder: use letters, digits, and . _ + -")
        if names.count(network.name) > 1:
            raise InputError(
                f"two checkpoints would be called '{network.name}': name them, as in --weights NAME={network.weights}"
            )
    return found


def name_of(file: Path) -> str:
    """A checkpoint's name: its file's, and in a run directory the run's before it, as in `r18-last`."""
    file = file.resolve()
    if file.parent.name == "checkpoints":
        return f"{file.parents[1].name}-{file.stem}"
    return f"{file.parent.name}-{file.stem}" if (file.parent / "config.yaml").is_file() else file.stem


def make_parts(
    networks: Sequence[Network],
    evaluations: Sequence[Evaluation],
    given: Mapping[str, str],
    out_dir: Path,
    processes: int,
) -> list[Part]:
    """Every evaluation of every network, one network after the other. `given`: the command line's {key: value}."""
    pairs = list(zip(evaluations, lay_over(evaluations, given), strict=True))
    parts = [
        _part(network, evaluation, settings, out_dir / network.name, processes)
        for network in networks
        for evaluation, settings in pairs
        if evaluation.benchmark != "cost"
    ]
    archs = dict.fromkeys((network.arch, network.options) for network in networks)
    return parts + [
        _cost_part(*arch, evaluation, out_dir / "cost")
        for evaluation in evaluations
        if evaluation.benchmark == "cost"
        for arch in archs
    ]


def _cost_part(arch: str, options: str, evaluation: Evaluation, place: Path) -> Part:
    """Parameters, FLOPs and speed of an architecture with its build options, in a folder of `place`."""
    given = [word for option in options.split() for word in ("--set", option)]
    words = ("cost", arch, *given, "--out", str(place), *evaluation.options)
    name = label(arch, read_options(options.split()))
    return Part(Network("cost", arch, arch, options=options), replace(evaluation, name=name), words, place / name)


def _part(network: Network, evaluation: Evaluation, settings: dict, place: Path, processes: int) -> Part:
    folder, config = place / evaluation.name, evaluation.config(network.arch)
    words = [evaluation.benchmark]
    arch = "" if network.told else network.arch
    if evaluation.benchmark == "coco":
        words += ["--framework", evaluation.framework, "--weights", network.weights, "--num-gpus", str(processes)]
        words += (["--config", os.path.relpath(config)] if config else []) + (["--arch", arch] if arch else [])
        fixed = {}
    else:
        words += ["--cfg", os.path.relpath(config)] if config else []
        fixed = {"WEIGHTS": network.weights} | ({"MODEL.BACKBONE_ARCH": arch} if arch else {})
        settings = {"FEATURES.CACHE_DIR": place / "features", **settings}  # extracted once for all of a network
    pairs = {**settings, **fixed, **({"NAME": network.name} if network.named else {}), "OUTPUT_DIR": folder}
    return Part(
        network,
        evaluation,
        (*words, *evaluation.options, *(str(word) for pair in pairs.items() for word in pair)),
        folder,
    )
