"""What is measured while a network trains: k-NN accuracy on validation features, the joint linear probe."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from pretrain.backbones import Backbone
from pretrain.data.index import Source
from pretrain.data.loading import center_crop, eval_batches, normalize
from pretrain.methods.base import Method, Progress
from pretrain.neighbours import nearest, vote
from sslight.core import distributed


class Objective(nn.Module):
    """The method's loss, and the joint linear probe's when there are labels: what one process (or DDP) steps on.

    The probe is a linear classifier on the detached backbone feature; its cross-entropy is added to the loss, so it
    trains beside the network, under the same optimizer, without touching it.
    """

    def __init__(self, method: Method, classes: int = 0):
        super().__init__()
        self.method = method
        self.classifier = nn.Linear(method.backbone.feature_dim, classes) if classes else None
        if self.classifier is not None:
            method.init_probe(self.classifier)

    def forward(self, views: list[Tensor], labels: Tensor | None, progress: Progress) -> dict[str, Tensor]:
        """Returns the method's dict, with `probe_loss` and `probe_top1` (fraction) if there is a probe."""
        result = self.method(views, progress)
        if self.classifier is not None:
            assert labels is not None  # a probe comes with labelled images
            logits = self.classifier(result["feature"].float())
            probe_loss = F.cross_entropy(logits, labels)
            result["loss"] = result["loss"] + probe_loss
            result["probe_loss"] = probe_loss.detach()
            result["probe_top1"] = (logits.argmax(1) == labels).float().mean()
        return result


@torch.no_grad()
def extract(backbone: Backbone, source: Source, cfg: CfgNode, device: torch.device) -> tuple[Tensor, Tensor]:
    """L2-normalised features [N, D] and labels [N] of a whole source, shared over the ranks, every image once.

    The network is put into eval mode for it and back. The centre crop keeps the published ratio 224 of 256.
    """
    rank, world = distributed.rank(), distributed.world_size()
    count = -(-len(source) // world)
    mine = np.arange(rank * count, min((rank + 1) * count, len(source)))
    size = cfg.VIEWS.GLOBAL_SIZE
    features = torch.zeros(count, backbone.feature_dim, device=device)
    was_training = backbone.training
    backbone.eval()
    done = 0
    for images, _ in eval_batches(
        source,
        mine,
        center_crop(round(size * 256 / 224), size),
        batch_size=cfg.TRAIN.BATCH_SIZE,
        workers=cfg.DATA.WORKERS,
    ):
        out = backbone(normalize(images, cfg.DATA.MEAN, cfg.DATA.STD, device))
        features[done : done + len(out)] = F.normalize(out.float(), dim=1)
        done += len(out)
    backbone.train(was_training)
    return distributed.all_gather(features)[: len(source)], torch.as_tensor(source.labels, device=device)


def knn_top1(backbone: Backbone, val: Source, train: Source | None, cfg: CfgNode, device: torch.device) -> float:
    """Weighted k-NN accuracy of the validation images, as a fraction.

    Without `train` each image is judged by the other validation images (leave-one-out, the published in-training
    measure); with it by the training images.
    """
    features, labels = extract(backbone, val, cfg, device)
    bank, bank_labels = extract(backbone, train, cfg, device) if train else (features, labels)
    exclude = None if train else torch.arange(len(features), device=device)
    k = min(cfg.KNN.K, len(bank) - (train is None))
    similarity, index = nearest(features, bank, k, exclude=exclude, normalise=False)
    ranked = vote(similarity, bank_labels[index], int(bank_labels.max()) + 1, [k], cfg.KNN.TEMPERATURE, r=1)
    return float((ranked[k][:, 0] == labels).double().mean())
