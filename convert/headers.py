"""What this project's own files say of themselves, checked: the words of a file are as little trusted as its bytes."""

from __future__ import annotations

import json
from pathlib import Path

from pretrain.errors import InputError

OPTIONS = {"patch_size", "img_size", "reg_tokens", "init_values", "no_embed_class", "num_heads"}


def checked_preprocess(found: object, path: Path | str) -> dict:
    """How images are fed: mean, std, color_order, size. Raises InputError unless it is all there and makes sense."""
    try:
        mean, std, size, order = (found[key] for key in ("mean", "std", "size", "color_order"))
        if len(mean) == len(std) == 3 and min(std) > 0 and size == int(size) > 0 and order in ("RGB", "BGR"):
            return {"mean": [float(x) for x in mean], "std": [float(x) for x in std], "color_order": order,
                    "size": int(size)}
    except (TypeError, KeyError, ValueError, OverflowError):
        pass
    raise InputError(f"{path}: its 'preprocess' is damaged: {str(found)[:120]}")


def read_header(header: dict[str, str], path: Path | str) -> tuple[dict, dict]:
    """`preprocess` and the build options in a backbone file's header. Raises InputError for any option but ours."""
    try:
        preprocess, options = json.loads(header["preprocess"]), json.loads(header.get("options", "{}"))
    except ValueError as error:
        raise InputError(f"{path}: its header is damaged ({error})") from None
    if not isinstance(options, dict) or not options.keys() <= OPTIONS or not all(
            isinstance(value, int | float) for value in options.values()):
        raise InputError(f"{path}: its header has options that no conversion writes: {str(options)[:120]}")
    return checked_preprocess(preprocess, path), options
