"""What decides the result of a classification benchmark: its configuration, the weights, the data, the global batch."""

from __future__ import annotations

from fvcore.common.config import CfgNode

from benchmarks.weights import Subject
from pretrain.config import to_dict


def identity(cfg: CfgNode, subject: Subject, fingerprint: str, processes: int) -> CfgNode:
    """The configuration with a section RUN, as `open_run` keeps it: a directory belongs to one such combination.

    Paths may change from start to start, what they hold may not: RUN has the weights' hash and the data's fingerprint.
    """
    run = {"WEIGHTS": subject.about["sha256"], "DATA": fingerprint}
    if "TRAIN" in cfg:
        run["GLOBAL_BATCH"] = cfg.TRAIN.BATCH_SIZE * processes
    return CfgNode({**to_dict(cfg), "RUN": run})
