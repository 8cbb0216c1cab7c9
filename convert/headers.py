"""What this project's own files say of themselves, checked: the words of a file are as little trusted as its bytes."""

from __future__ import annotations

import json
import math
from pathlib import Path

from pretrain.backbones import POS_RESIZE, check_options
from pretrain.errors import InputError


def brief(found: object) -> str:
    """Whatever a file holds, short and on one line."""
    return " ".join(str(found).split())[:120]


def checked_preprocess(found: object, path: Path | str) -> dict:
    """How images are fed: mean, std (of the channels in color_order, of images in [0, 1]), color_order, size; of some
    ViTs pos_resize, too (see pretrain/backbones.py).

    Raises InputError unless it is all there and makes sense.
    """
    given = found if isinstance(found, dict) else {}
    mean, std, size, order = (given.get(key) for key in ("mean", "std", "size", "color_order"))
    positions = {"pos_resize": given["pos_resize"]} if "pos_resize" in given else {}
    if (_three(mean) and _three(std) and min(std) > 0 and isinstance(size, int) and size > 0
            and order in ("RGB", "BGR") and all(value in tuple(POS_RESIZE) for value in positions.values())):
        return {"mean": list(mean), "std": list(std), "color_order": order, "size": size, **positions}
    raise InputError(f"{path}: its 'preprocess' is damaged: {brief(found)}")


def _three(values: object) -> bool:
    return isinstance(values, list | tuple) and len(values) == 3 and all(
        isinstance(value, int | float) and math.isfinite(value) for value in values)


def read_header(header: dict[str, str], arch: str, path: Path | str) -> tuple[dict, dict, dict]:
    """`preprocess`, the build options, and what was assumed, by topic, in a backbone file's header.

    Raises InputError for options that timm's network `arch` does not have.
    """
    try:
        preprocess, options, assumed = (json.loads(header.get(key, "{}"))
                                        for key in ("preprocess", "options", "assumed"))
    except ValueError as error:
        raise InputError(f"{path}: its header is damaged ({error})") from None
    if not isinstance(options, dict):
        raise InputError(f"{path}: its header has options that no conversion writes: {brief(options)}")
    try:
        check_options(arch, options)
    except InputError as error:
        raise InputError(f"{path}: its header has options that no conversion writes: {error}") from None
    if not isinstance(assumed, dict) or not all(isinstance(text, str) and text.isprintable() and len(text) < 500
                                                for text in assumed.values()):
        raise InputError(f"{path}: its header is damaged (assumed: {brief(assumed)})")
    return checked_preprocess(preprocess, path), options, assumed
