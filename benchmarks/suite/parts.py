"""The parts of a suite: every evaluation of every network, each one command and one folder."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.deployment.cost import label
from benchmarks.detection.weights import find_source
from benchmarks.evaluation import EVALUATIONS
from benchmarks.suite.settings import SuiteEntry, resolve_settings
from convert.reader import read_checkpoint
from convert.sources import RANDOM, SUPERVISED, short_name
from pretrain.backbones import canonical_arch, check_options, read_options, write_options
from sslight.core.errors import InputError

ROOT = Path(__file__).resolve().parents[2]  # where the packages lie


@dataclass(frozen=True)
class Candidate:
    """A checkpoint under test, or a baseline. `name` is its folder, `arch` timm's name, `recorded`: its file names it;
    `named`: the user chose the name, so it is the report's, too."""

    name: str
    weights: str
    arch: str
    recorded: bool = True
    named: bool = False
    options: str = ""  # build options that change its cost, as `num_heads=12`


@dataclass(frozen=True)
class Part:
    """One evaluation of one network: `words` follow `sslight bench`, its results lie in `folder`."""

    network: Candidate
    entry: SuiteEntry
    words: tuple[str, ...]
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.network.name}/{self.entry.name}"

    def command(self, processes: int) -> list[str]:
        """The part as a process of its own, or as several in one group."""
        spread = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        alone = processes == 1 or EVALUATIONS[self.entry.benchmark].spreads
        return [sys.executable, *([] if alone else spread), "-m", "sslight", "bench", *self.words]


def find_networks(words: Sequence[str], arch: str | None, out_dir: Path, options: str = "") -> list[Candidate]:
    """The networks that --weights names: `random`, or what `convert.sources` names, also as `NAME=CHECKPOINT`.

    The baselines come once for every architecture among the checkpoints, or for `arch`. Supervised weights are written
    to `out_dir/weights`. `options`: MODEL.OPTIONS of them all. Raises InputError for an unreadable file, or one name
    for two networks.
    """
    networks, given = [], read_options(options.split())
    for word in words:
        if word not in (RANDOM, SUPERVISED):
            name, _, file = ("", "", word) if Path(word).exists() else word.rpartition("=")
            read = read_checkpoint(file, arch=arch, options=given)
            of_cost = write_options({key: value for key, value in read.options.items() if key != "img_size"})
            networks.append(Candidate(name or short_name(file), file, read.arch, not arch, bool(name), of_cost))
    archs = dict.fromkeys(network.arch for network in networks) or ([canonical_arch(arch)] if arch else [])
    for word in (RANDOM, SUPERVISED):
        if word in words and not archs:
            raise InputError(f"--weights {word} without a checkpoint needs --arch, e.g. --arch resnet18")
        for one in archs if word in words else ():
            weights = word
            if word == SUPERVISED:
                find_source(word, one, 0, out_dir)
                weights = str(out_dir / "weights" / f"supervised_{one}_seed0.safetensors")
            check_options(one, given)
            networks.append(Candidate(f"{word.lower()}-{one}", weights, one, word == SUPERVISED, options=options))
    names = [network.name for network in networks]
    for network in networks:
        if not re.fullmatch(r"[\w.+-]+", network.name):
            raise InputError(f"'{network.name}' is to name a folder: use letters, digits, and . _ + -")
        if names.count(network.name) > 1:
            raise InputError(
                f"two checkpoints would be called '{network.name}': name them, as in --weights NAME={network.weights}"
            )
    return networks


def make_parts(
    networks: Sequence[Candidate],
    entries: Sequence[SuiteEntry],
    given: Mapping[str, str],
    out_dir: Path,
    processes: int,
) -> list[Part]:
    """Every evaluation of every network, one network after the other. `given`: the command line's {key: value}."""
    pairs = list(zip(entries, resolve_settings(entries, given), strict=True))
    shared = [entry for entry in entries if EVALUATIONS[entry.benchmark].per_architecture]
    parts = [
        _part(network, entry, settings, out_dir / network.name, processes)
        for network in networks
        for entry, settings in pairs
        if entry not in shared
    ]
    archs = dict.fromkeys((network.arch, network.options) for network in networks)
    return parts + [_architecture(*arch, entry, out_dir / entry.benchmark) for entry in shared for arch in archs]


def _architecture(arch: str, options: str, entry: SuiteEntry, place: Path) -> Part:
    """What is measured once for an architecture with its build options, in a folder of `place`."""
    given = [word for option in options.split() for word in ("--set", option)]
    words = (entry.benchmark, arch, *given, "--out", str(place), *entry.options)
    name = label(arch, read_options(options.split()))
    return Part(Candidate(entry.benchmark, arch, arch, options=options), replace(entry, name=name), words, place / name)


def _part(network: Candidate, entry: SuiteEntry, settings: dict, place: Path, processes: int) -> Part:
    evaluation, folder, config = EVALUATIONS[entry.benchmark], place / entry.name, entry.config(network.arch)
    words = [entry.benchmark, "--weights", network.weights]
    words += ["--cfg", os.path.relpath(config)] if config else []
    words += [] if network.recorded else ["--arch", network.arch]
    words += ["--framework", entry.framework] if entry.framework else []
    words += ["--num-gpus", str(processes)] if evaluation.spreads else []
    if "FEATURES" in evaluation.settings:
        settings = {"FEATURES.CACHE_DIR": place / "features", **settings}  # extracted once for all of a network
    pairs = {**settings, **({"NAME": network.name} if network.named else {}), "OUTPUT_DIR": folder}
    return Part(network, entry, (*words, *entry.options, *(str(w) for pair in pairs.items() for w in pair)), folder)
