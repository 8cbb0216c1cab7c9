"""Pre-train small vision backbones without labels, and measure what any checkpoint is worth downstream."""

from importlib import metadata

try:
    __version__ = metadata.version("sslight")
except metadata.PackageNotFoundError:  # a source tree on the path, never installed
    __version__ = "source tree"
