"""The versions behind a number: this project's, Python's, torch's and the frameworks'. Imports none of them."""

from __future__ import annotations

import importlib.util
import platform
from importlib import metadata

import sslight

LIBRARIES = ("torch", "torchvision", "timm", "mmdet", "mmengine", "mmcv", "mmcv-lite", "detectron2")


def version_of(name: str) -> str | None:
    """The version of an installed distribution; "source tree" for a module that has none; None if it is absent."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        # mmcv is the module of mmcv-lite, too, which is listed by its own name
        by_other = name in metadata.packages_distributions()
        return "source tree" if not by_other and importlib.util.find_spec(name.replace("-", "_")) else None


def versions() -> str:
    """One line each, of what is installed."""
    found = {"sslight": sslight.__version__, "Python": platform.python_version()}
    found |= {name: version for name in LIBRARIES if (version := version_of(name))}
    return "\n".join(f"{name:<12}{version}" for name, version in found.items())
