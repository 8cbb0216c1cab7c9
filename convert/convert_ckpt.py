"""A checkpoint of any family in, a verified file for a framework out.

Every tensor is accounted for by a named rule; the file is read back, compared with the framework's full list of
tensors, loaded by the framework where it is installed, and its features compared with the source network's.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

if __name__ == "__main__":  # as a script, the project's root takes the place of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from convert.families import FAMILIES, recognise, spelled
from convert.targets import TARGETS, Target, chosen, matrix_text, rename
from sslight.core.arguments import CHECKPOINT, Parser
from sslight.core.errors import InputError, listed
from sslight.core.files import write_json
from sslight.core.processes import run_command


def convert(
    src: Path | str,
    to: str,
    out: Path | str,
    *,
    family: str | None = None,
    arch: str | None = None,
    network: str | None = None,
    model: str | None = None,
    prefix: str = "",
    from_detector: bool = False,
    stages: bool = False,
    results: Path | str = "",
    verify: bool = True,
    verify_with: Path | str | None = None,
    force: bool = False,
    report: Path | str | None = None,
    options: Sequence[str] = (),
) -> dict:
    """Convert a checkpoint and verify the result; returns the report.

    Parameters
    ----------
    src: a checkpoint, as `convert.sources` names it. `family`, `arch`, `network` override what is recognised.
    to, out: the target framework and the file to write (huggingface: the folder). A config snippet is written beside.
    model: detectron2 only: "fpn", "c4" or "vitdet". `prefix`: mmdet only, e.g. "backbone." for `load_from`.
    from_detector: `src` is a trained detector, whose backbone is taken.
    stages: ONNX only: output the stage features, too.
    results: huggingface only: a folder whose results of this network go into the model card.
    verify: load the file in the framework and compare features (reading back and the full list are always checked).
    verify_with: compare on this picture instead of the built-in image.
    report: write the report here as JSON.
    options: of the timm network, what shapes do not show, as `num_heads=12`.

    Raises InputError for anything wrong; then nothing was written (a file that `force` would have replaced stays).
    """
    from convert.reader import read_checkpoint
    from convert.verify import verify as verify_written
    from pretrain.backbones import read_options

    started = time.monotonic()
    out, picture = Path(out), verify_with and Path(verify_with)
    asked = {"model": model, "prefix": prefix, "stages": stages, "results": results and str(results)}
    target, _ = chosen(to, asked)
    build_options = read_options(options)
    if family:
        recognise((), family)
    reports = [Path(report)] if report else []
    _check_output(out, target, reports, force)

    checkpoint = read_checkpoint(
        src,
        family=family,
        arch=arch,
        network=network,
        from_detector=from_detector,
        options=build_options,
        mapped=True,
    )
    outgoing = rename(checkpoint, to, **asked)
    snippet, suffix = target.snippet(out, checkpoint, **outgoing.options)
    beside = out / suffix if target.files else out.with_suffix(suffix)
    _check_output(out, target, reports if target.files else [beside, *reports], force)

    with _staged(out) as path:
        verified = target.save(path, outgoing, checkpoint, picture)
        with ThreadPoolExecutor(1) as pool:
            sealing = pool.submit(_seal, path / target.weights)  # beside the verification, which takes as long
            verified = verified or verify_written(target, path, outgoing, checkpoint, picture, verify)
            digest = sealing.result()
        (path.parent / beside.relative_to(out.parent)).write_text(snippet, encoding="utf-8")
        done = {
            "source": {
                "path": str(src),
                "sha256": checkpoint.sha256,
                **({"revision": checkpoint.revision} if checkpoint.revision else {}),
                "family": checkpoint.family,
                "rule": checkpoint.rule,
                "naming": checkpoint.layout,
                "network": checkpoint.network,
                "method": checkpoint.method,
            },
            "arch": checkpoint.arch,
            "options": checkpoint.options,
            "preprocess": checkpoint.preprocess,
            "target": {
                "framework": to,
                "path": str(out),
                "model": outgoing.options.get("model"),
                "sha256": digest,
                "bytes": (path / target.weights).stat().st_size,
                "snippet": str(beside),
            },
            "rules": {"reading": checkpoint.counts, "writing": outgoing.counts},
            "dropped": {**checkpoint.dropped, **outgoing.dropped},
            "batch_norm": _batch_norms(checkpoint.state),
            "parameters": _parameters(checkpoint.state),
            "verified": verified.steps,
            "differences": verified.differences,
            "notes": checkpoint.notes + outgoing.notes,
            "assumed": checkpoint.assumed,
            **verified.facts,
            "seconds": round(time.monotonic() - started, 3),
        }
        for file in reports:
            _write_report(file, done)
    return done


def _check_output(out: Path, target: Target, beside: list[Path], force: bool) -> None:
    """Raise InputError unless `out` and what lies beside it are new files, of the right kind, in writable folders."""
    if not target.files and out.suffix not in target.suffixes:
        raise InputError(f"-o {out}: a file for {target.name} ends in {' or '.join(target.suffixes)}")
    paths = [out, *beside]
    for path in paths:
        if path.is_dir() and not (target.files and path == out):
            raise InputError(f"-o {out}: {path} is a directory; name a file")
        if path.exists() and not force:
            raise InputError(f"{path} exists; give another -o, or --force to replace it")
        others = {file.name for file in path.iterdir()} - set(target.files) if path.is_dir() else ()
        if others or (target.files and path == out and path.is_file()):
            what = f"holds {listed(sorted(others), between=', ')}, too" if others else "is a file"
            raise InputError(f"-o {out}: {path} {what}; only a folder of an earlier conversion is replaced")
        if paths.count(path) > 1:
            raise InputError(f"{path} would be written twice; give --report another name")
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise InputError(f"cannot write {path}: {folder} is not a folder that you can write to")


@contextmanager
def _staged(out: Path) -> Iterator[Path]:
    """A path of `out`'s name in a temporary folder beside it. On success all that is there moves beside `out`."""
    folder = out.parent / f".{out.name}.{os.getpid()}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror}") from None
    try:
        yield folder / out.name
        for path in sorted(folder.iterdir(), key=lambda path: path.name == out.name):
            place = out.parent / path.name
            if place.is_dir():  # replaced as a whole, and removed with the temporary folder
                os.replace(place, folder / f"{path.name}.replaced")
            os.replace(path, place)  # `out` itself comes last
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _seal(path: Path) -> str:
    """Flush a written file to the disk; returns its SHA-256."""
    from sslight.core.checkpoint import sha256

    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return sha256(path)


def _write_report(path: Path, report: dict) -> None:
    """Write the report as JSON. Raises InputError if it cannot."""
    try:
        write_json(path, report)
    except OSError as error:
        raise InputError(f"cannot write --report {path}: {error.strerror}") from None


_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def _parameters(state: dict) -> int:
    """Trainable numbers in a state dict: all but the batch norms' statistics."""
    return sum(value.numel() for key, value in state.items() if not key.endswith(_BUFFERS))


def _batch_norms(state: dict) -> dict:
    """How many batch norms carry running statistics, and whether these were ever updated."""
    means = [key for key in state if key.endswith("running_mean")]
    fresh = [
        key
        for key in means
        if not bool(state[key].any()) and bool((state[key.replace("running_mean", "running_var")] == 1).all())
    ]
    return {"layers": len(means), "with_statistics": len(means), "never_updated": len(fresh)}


def summary(report: dict) -> Iterator[str]:
    """The report as lines for a terminal."""
    source, target = report["source"], report["target"]
    revision = f" at {source['revision']}" if "revision" in source else ""
    yield f"read      {source['path']}{revision}"
    yield f"family    {source['family']}: {source['rule']}"
    options = f" with {report['options']}" if report["options"] else ""
    yield f"network   {source['network']} ({source['method']}): {report['arch']}{options}, named as {source['naming']}"
    dropped = ", ".join(f"{len(keys)} {reason}" for reason, keys in report["dropped"].items())
    yield f"tensors   {sum(report['rules']['reading'].values())} renamed; dropped: {dropped or 'none'}"
    norms = report["batch_norm"]
    never = f", {norms['never_updated']} never updated" if norms["never_updated"] else ""
    yield f"contents  {report['parameters']:,} parameters, {norms['layers']} batch norms with statistics{never}"
    for note in report["notes"]:
        yield f"note      {note}"
    for line in spelled(report["assumed"], "--set"):
        yield f"assumed   {line}"
    for step in report["verified"]:
        yield f"checked   {step}"
    if "form" in report:
        form = {"single": "", "deployed": ", deployed form", "training": ", training form"}[report["form"]]
        yield f"exported  {report['exported_parameters']:,} parameters{form}"
    for name in ("gflops", "inputs", "outputs"):
        if name in report:
            yield f"{name:<9} {report[name]}"
    yield f"wrote     {target['path']} ({target['bytes'] / 1e6:.1f} MB) and {target['snippet']}"


def parser() -> Parser:
    """The command line."""
    words = Parser(
        "sslight convert",
        __doc__,
        "sslight convert my_checkpoint.pth --to mmdet -o net.pth",
        epilog=f"\n{matrix_text()}",
    )
    words.add_place("src", "--weights", metavar="SRC", help=CHECKPOINT)
    words.add_argument("--to", required=True, choices=tuple(TARGETS))
    words.add_option("--out", required=True, metavar="OUT", help="the file to write, or huggingface's folder")
    words.add_argument(
        "--family", choices=tuple(FAMILIES), metavar="NAME", help="instead of recognising it from the keys"
    )
    words.add_argument("--arch", metavar="NAME", help="timm's name of the network, instead of inferring it from shapes")
    words.add_build_options()
    words.add_argument("--network", metavar="NAME", help="student, teacher, ...; default: the one to evaluate")
    words.add_argument(
        "--model", choices=("fpn", "c4", "vitdet"), help="detectron2: the detector (default: fpn, ViT: vitdet)"
    )
    words.add_argument(
        "--prefix", default="", metavar="TEXT", help="mmdet: put before every key, e.g. backbone. for load_from"
    )
    words.add_argument("--from-detector", action="store_true", help="take the backbone out of a trained detector")
    words.add_argument("--stages", action="store_true", help="ONNX: output the stage features, too")
    words.add_argument(
        "--results", default="", metavar="DIR", help="huggingface: results of this network for the model card"
    )
    words.add_argument(
        "--no-verify",
        dest="verify",
        action="store_false",
        help="do not load the file in the framework (it is read back and compared by name in any case)",
    )
    words.add_argument("--verify-with", metavar="IMAGE", help="compare features on this picture")
    words.add_argument("--report", metavar="JSON", help="write what was done and checked here")
    words.add_argument("--force", action="store_true", help="replace OUT")
    return words


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0 or InputError."""
    options = vars(parser().parse_args(argv))
    if options["verify_with"] and not options["verify"]:
        raise InputError("--verify-with and --no-verify exclude each other")
    for line in summary(convert(options.pop("src"), options.pop("to"), options.pop("out"), **options)):
        print(line)
    return 0


if __name__ == "__main__":
    run_command(main)
