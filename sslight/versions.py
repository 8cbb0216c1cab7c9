"""The versions that a number depends on: this project's, Python's, torch's and the frameworks'. Imports no library."""

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
        of_another = name in metadata.packages_distributions()  # as the module mmcv is mmcv-lite's
        return "source tree" if not of_another and importlib.util.find_spec(name.replace("-", "_")) else None


def versions() -> str:
    """One line for each library that is installed."""
    installed = {"sslight": sslight.__version__, "Python": platform.python_version()}
    installed |= {name: version for name in LIBRARIES if (version := version_of(name))}
    return "\n".join(f"{name:<12}{version}" for name, version in installed.items())
