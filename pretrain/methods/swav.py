"""SwAV (Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", 2020)."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from pretrain.heads import Projection, init_linear, unit
from pretrain.methods.base import Method, Progress, new_backbone
from pretrain.methods.multicrop import Network, multicrop_cross_entropy, spread
from pretrain.optim import global_batch
from sslight.core import distributed


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Soft assignments of samples to prototypes that use all prototypes equally (section 3.1, equation 5).

    `scores` are this rank's [N, K]; the marginals are those of all ranks' samples together. Returns [N, K], rows
    summing to 1. Each iteration normalises prototypes, then samples.
    """
    assignment = (scores.float() / epsilon).exp()
    for _ in range(iterations):
        assignment /= distributed.all_reduce_sum(assignment.sum(0, keepdim=True))
        assignment /= assignment.sum(1, keepdim=True)
    return assignment


class SwAVHead(nn.Module):
    """SwAV (Caron et al., 2020): projection and bias-free prototypes; every linear layer starts as N(0, 0.01)."""

    def __init__(self, in_dim: int, hidden: int, out_dim: int, prototypes: int, layers: int, *, norm: bool):
        super().__init__()
        self.projection = Projection(in_dim, hidden, out_dim, layers, norm=norm)
        self.prototypes = nn.Linear(out_dim, prototypes, bias=False)
        init_linear(self, std=0.01)

    def project(self, features: Tensor) -> Tensor:
        return self.projection.project(features)

    def forward(self, embedding: Tensor) -> Tensor:
        return self.prototypes(embedding)


class SwAV(Method):
    """Every view predicts the cluster assignments of the other global views.

    The queue of embeddings of both global crops, [2, length, width], is held whole by every rank, newest first, so
    any rank's state restores all; each rank balances its own share of it.
    """

    queue: Tensor
    queue_filled: Tensor
    networks = {"network": "network.backbone."}

    def __init__(self, cfg):
        super().__init__()
        self.settings, self.weights = cfg.SWAV, cfg.LOSS.WEIGHTS
        backbone, swav = new_backbone(cfg, cfg.MODEL.DROP_PATH_RATE), cfg.SWAV
        self.network = Network(
            backbone,
            SwAVHead(
                backbone.feature_dim,
                swav.HIDDEN_SIZE,
                swav.OUTPUT_DIM,
                swav.PROTOTYPES,
                swav.NUM_LAYERS,
                norm=swav.HEAD_BN,
            ),
        )
        batch = global_batch(cfg)
        length = swav.QUEUE_LENGTH // batch * batch
        if swav.QUEUE_LENGTH and not length:
            logging.getLogger(__name__).warning(
                "SWAV.QUEUE_LENGTH %d is below one global batch of %d images: training without a queue",
                swav.QUEUE_LENGTH,
                batch,
            )
        self.register_buffer("queue", torch.zeros(2, length, swav.OUTPUT_DIM))
        self.register_buffer("queue_filled", torch.zeros((), dtype=torch.long))
        self._filled: int | None = 0  # the buffer's value, known without asking the device; None after loading
        self.register_load_state_dict_post_hook(lambda module, _: setattr(module, "_filled", None))

    def forward(self, views: list[Tensor], progress: Progress) -> dict[str, Tensor]:
        head = self.network.head
        if progress.micro == 0:
            with torch.no_grad():
                head.prototypes.weight.copy_(unit(head.prototypes.weight))
        features = self.network.features(views)
        embedding = head.project(features)
        with torch.autocast(embedding.device.type, enabled=False):
            use_queue = self.queue.shape[1] > 0 and progress.epoch >= self.settings.EPOCH_QUEUE_STARTS
            result = self.loss(embedding, head(embedding), len(views), use_queue)
        batch = len(views[0])
        return {**result, "feature": features[:batch].detach(), "feature_std": spread(embedding[:batch])}

    def loss(self, embedding: Tensor, logits: Tensor, views: int, use_queue: bool) -> dict[str, Tensor]:
        """Loss of embeddings [V * N, D] with prototype logits [V * N, K]; the global ones enter the queue afterwards.

        Also returns the perplexity of the mean assignment: how many prototypes this rank's batch uses.
        """
        settings, prototypes = self.settings, logits.shape[-1]
        logits = logits.view(views, -1, prototypes)
        targets = self.assign(logits[:2].detach(), use_queue)
        loss = multicrop_cross_entropy(targets, logits, settings.TEMPERATURE, *self.weights)
        if use_queue:
            self._enqueue(embedding.detach().view(views, -1, embedding.shape[-1])[:2])
        used = targets.mean((0, 1))
        return {"loss": loss, "used_prototypes": torch.special.entr(used).sum().exp()}

    def init_probe(self, classifier: nn.Linear) -> None:
        init_linear(classifier, std=0.01)

    def after_backward(self, progress: Progress) -> None:
        if progress.epoch < self.settings.FREEZE_PROTOTYPES_EPOCHS:
            self.network.head.prototypes.weight.grad = None

    @torch.no_grad()
    def assign(self, logits: Tensor, use_queue: bool) -> Tensor:
        """Assignments of the global crops, [2, N, K]; each crop is balanced on its own, with its queue once full."""
        batch, length = logits.shape[1], self.queue.shape[1]
        if use_queue and self._queue_filled() >= length:
            share = length // distributed.world_size()
            rows = self.queue.narrow(1, distributed.rank() * share, share)
            logits = torch.cat([rows @ self.network.head.prototypes.weight.T, logits], 1)
        settings = self.settings
        return torch.stack([sinkhorn(crop, settings.EPSILON, settings.SINKHORN_ITERATIONS)[-batch:] for crop in logits])

    @torch.no_grad()
    def _enqueue(self, embedding: Tensor) -> None:
        """Shift the queue and put this batch of all ranks, [2, N, D] each, in front."""
        newest = distributed.all_gather(embedding.transpose(0, 1)).transpose(0, 1)
        rows = newest.shape[1]
        self.queue.copy_(torch.cat([newest, self.queue[:, :-rows]], 1))
        self._filled = min(self._queue_filled() + rows, self.queue.shape[1])
        self.queue_filled.fill_(self._filled)

    def _queue_filled(self) -> int:
        if self._filled is None:
            self._filled = int(self.queue_filled)
        return self._filled
