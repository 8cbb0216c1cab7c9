"""MoCo-v2 (He et al., 2020; Chen et al., 2020) with weighted multi-crop."""

from __future__ import annotations

import torch
from torch import Tensor

from pretrain.heads import Projection
from pretrain.methods.base import Method, Progress, new_backbone
from pretrain.methods.multicrop import Network, spread
from pretrain.optim import ema_update, global_batch
from sslight.core import distributed
from sslight.core.errors import InputError


def contrastive_loss(positive: Tensor, negative: Tensor, views: int, alpha: float, beta: float) -> Tensor:
    """Weighted InfoNCE: `alpha * mean(first view's terms) + beta * mean(the other views' terms)`.

    Parameters
    ----------
    positive: logits of each query with its own key, [V * N], already divided by the temperature, stacked by view.
    negative: logits with the queue's keys, [V * N, L].
    """
    terms = torch.logaddexp(positive, negative.logsumexp(1)) - positive
    terms = terms.view(views, -1).mean(1)
    loss = alpha * terms[0]
    return loss + beta * terms[1:].mean() if views > 1 else loss


class MoCo(Method):
    """Queries (global view 2 and the local ones) find the key (global view 1) among a queue of earlier keys."""

    queue: Tensor
    queue_ptr: Tensor
    networks = {"encoder_q": "encoder_q.backbone.", "encoder_k": "encoder_k.backbone."}

    def __init__(self, cfg):
        super().__init__()
        moco = cfg.MOCO
        self.settings, self.weights, self.seed = moco, cfg.LOSS.WEIGHTS, cfg.SEED
        self.encoder_q = self._network(cfg, cfg.MODEL.DROP_PATH_RATE)
        self.encoder_k = self._network(cfg, drop_path_rate=0.0)
        self.encoder_k.load_state_dict(self.encoder_q.state_dict())
        self.encoder_k.requires_grad_(False)
        if moco.QUEUE_LENGTH < global_batch(cfg):
            raise InputError(
                f"MOCO.QUEUE_LENGTH {moco.QUEUE_LENGTH} is shorter than one global batch of "
                f"{global_batch(cfg)} images: lengthen it"
            )
        # drawn apart from the weights' random numbers: equal on every rank
        noise = torch.randn(moco.OUTPUT_DIM, moco.QUEUE_LENGTH, generator=torch.Generator().manual_seed(cfg.SEED))
        self.register_buffer("queue", noise / noise.norm(dim=0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))
        self._new_keys: list[Tensor] = []  # of the forwards since the last step

    @staticmethod
    def _network(cfg, drop_path_rate: float) -> Network[Projection]:
        backbone, moco = new_backbone(cfg, drop_path_rate), cfg.MOCO
        return Network(
            backbone,
            Projection(backbone.feature_dim, moco.HIDDEN_SIZE, moco.OUTPUT_DIM, moco.NUM_LAYERS, norm=moco.HEAD_BN),
        )

    def forward(self, views: list[Tensor], progress: Progress) -> dict[str, Tensor]:
        if progress.micro == 0:
            ema_update(self.encoder_k.parameters(), self.encoder_q.parameters(), self.settings.MOMENTUM)
        keys, batch = self._keys(views[0], progress), len(views[0])
        features = self.encoder_q.features(views[1:])
        queries = self.encoder_q.head.project(features)
        with torch.autocast(queries.device.type, enabled=False):
            key = keys[distributed.rank() * batch :][:batch]
            positive, negative = self.logits(queries, key, len(views) - 1)
            loss = contrastive_loss(positive, negative, len(views) - 1, *self.weights)
        self._new_keys.append(keys)
        return {
            "loss": loss,
            "feature": features[:batch].detach(),
            "feature_std": spread(queries[:batch]),
            "positive_similarity": positive.detach().mean() * self.settings.TEMPERATURE,
        }

    def logits(self, queries: Tensor, keys: Tensor, views: int) -> tuple[Tensor, Tensor]:
        """Similarities, divided by the temperature, to the own key [V * N] and to the queue [V * N, L]."""
        queries = queries / self.settings.TEMPERATURE
        positive = torch.linalg.vecdot(queries.view(views, -1, queries.shape[1]), keys).flatten()
        return positive, queries @ self.queue

    @torch.no_grad()
    def _keys(self, images: Tensor, progress: Progress) -> Tensor:
        """Keys of all ranks' images, in rank order, [N * world, D].

        Each rank encodes a random share of all images, so that batch norm's statistics do not tell a query which keys
        came with it (MoCo, section 3.3). All ranks draw the same permutation from the step, without communication.
        """
        world, batch = distributed.world_size(), len(images)
        if world == 1:
            return self._encode(images)
        draw = torch.Generator().manual_seed((self.seed * 1_000_003 + progress.step) * 1_009 + progress.micro)
        order = torch.randperm(world * batch, generator=draw).to(images.device, non_blocking=True)
        mine = order[distributed.rank() * batch :][:batch]
        keys = distributed.all_gather(self._encode(distributed.all_gather(images)[mine]))
        return keys[order.argsort()]

    def _encode(self, images: Tensor) -> Tensor:
        return self.encoder_k.head.project(self.encoder_k.features([images]))

    def after_step(self, progress: Progress) -> None:
        self.enqueue(torch.cat(self._new_keys))
        self._new_keys.clear()

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Overwrite the oldest keys with these, [N, D]; the queue is a ring, its pointer stays on the device."""
        places = (self.queue_ptr + torch.arange(len(keys), device=keys.device)) % self.queue.shape[1]
        self.queue.index_copy_(1, places, keys.T)
        self.queue_ptr.add_(len(keys)).remainder_(self.queue.shape[1])
