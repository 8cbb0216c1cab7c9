"""What forked commands find imported already (see processes.py)."""

import importlib.util

import pretrain.train  # noqa: F401

if importlib.util.find_spec("mmdet"):
    from benchmarks.detection.in_mmdet import run  # noqa: F401
