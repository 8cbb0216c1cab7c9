"""The self-supervised methods: a file each, behind the contract and the registry of `base.py`."""

from pretrain.methods.base import METHODS, Method, Progress, build_method

__all__ = ["METHODS", "Method", "Progress", "build_method"]
