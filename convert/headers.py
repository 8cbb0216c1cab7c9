"""What this project's own files say of themselves, checked: the words of a file are as little trusted as its bytes."""

from __future__ import annotations

import json
from pathlib import Path

from pretrain.errors import InputError

OPTIONS = {"patch_size", "img_size", "reg_tokens", "init_values", "no_embed_class", "num_heads"}


def brief(found: object) -> str:
    """Whatever a file holds, short and on one line."""
    return " ".join(str(found).split())[:120]


def checked_preprocess(found: object, path: Path | str) -> dict:
    """How images are fed: mean, std, color_order, size. Raises InputError unless it is all there and makes sense."""
    given = found if isinstance(found, dict) else {}
    mean, std, size, order = (given.get(key) for key in ("mean", "std", "size", "color_order"))
    if _three(mean) and _three(std) and min(std) > 0 and isinstance(size, int) and size > 0 and order in ("RGB", "BGR"):
        return {"mean": list(mean), "std": list(std), "color_order": order, "size": size}
    raise InputError(f"{path}: its 'preprocess' is damaged: {brief(found)}")


def _three(values: object) -> bool:
    return isinstance(values, list | tuple) and len(values) == 3 and all(
        isinstance(value, int | float) for value in values)


def read_header(header: dict[str, str], path: Path | str) -> tuple[dict, dict]:
    """`preprocess` and the build options in a backbone file's header. Raises InputError for any option but ours."""
    try:
        preprocess, options = json.loads(header["preprocess"]), json.loads(header.get("options", "{}"))
    except ValueError as error:
        raise InputError(f"{path}: its header is damaged ({error})") from None
    if not isinstance(options, dict) or not options.keys() <= OPTIONS or not all(
            isinstance(value, int | float) for value in options.values()):
        raise InputError(f"{path}: its header has options that no conversion writes: {brief(options)}")
    return checked_preprocess(preprocess, path), options
