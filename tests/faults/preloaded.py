"""What forked commands find imported already (see processes.py)."""

import importlib.util

import benchmarks.knn
import benchmarks.linear
import benchmarks.semisup
import pretrain.train  # noqa: F401
import sslight  # noqa: F401

if importlib.util.find_spec("mmdet"):
    import benchmarks.coco
    import benchmarks.coco_mmdet  # noqa: F401
