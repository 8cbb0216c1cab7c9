"""SimSiam (Chen and He, "Exploring Simple Siamese Representation Learning", 2021), with weighted multi-crop."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pretrain.heads import mlp, unit
from pretrain.methods.base import Method, Progress, new_backbone
from pretrain.methods.multicrop import Network, pair_weights, spread


class SimSiamHead(nn.Module):
    """Projection and prediction MLP (section 3); their linear layers start as torch's, which the paper asks for."""

    def __init__(self, in_dim: int, hidden: int, out_dim: int, bottleneck: int, layers: int):
        super().__init__()
        projector = mlp(in_dim, hidden, out_dim, layers, norm=True, activation=nn.ReLU)
        self.projector = projector.append(nn.BatchNorm1d(out_dim, affine=False))
        self.predictor = mlp(out_dim, bottleneck, out_dim, 2, norm=True, activation=nn.ReLU)


class SimSiam(Method):
    """Every view predicts the other global views' projections, through which no gradient flows.

    Each view passes through the network by itself, as in the paper's algorithm 1: batch norm sees one view at a time.
    """

    networks = {"network": "network.backbone."}

    def __init__(self, cfg):
        super().__init__()
        self.weights, simsiam = cfg.LOSS.WEIGHTS, cfg.SIMSIAM
        backbone = new_backbone(cfg, cfg.MODEL.DROP_PATH_RATE)
        for block in backbone.modules():
            if hasattr(block, "zero_init_last"):  # timm's residual blocks: the last norm's scale (appendix A)
                block.zero_init_last()  # type: ignore[operator]  # a method of these blocks
        self.network = Network(
            backbone,
            SimSiamHead(
                backbone.feature_dim,
                simsiam.HIDDEN_SIZE,
                simsiam.OUTPUT_DIM,
                simsiam.BOTTLENECK_DIM,
                simsiam.NUM_LAYERS,
            ),
        )

    def constant_rate(self) -> Iterable[nn.Parameter]:
        """The predictor follows the projections the better for a rate that is not decayed (section 4.2)."""
        return self.network.head.predictor.parameters()

    def forward(self, views: list[Tensor], progress: Progress) -> dict[str, Tensor]:
        features = [self.network.backbone(view) for view in views]
        projections = [self.network.head.projector(feature) for feature in features]
        predictions = torch.stack([self.network.head.predictor(projection) for projection in projections])
        targets = torch.stack(projections[:2])
        with torch.autocast(targets.device.type, enabled=False):
            loss = self.loss(predictions, targets)
        return {"loss": loss, "feature": features[0].detach(), "feature_std": spread(unit(targets[0].detach()))}

    def loss(self, predictions: Tensor, projections: Tensor) -> Tensor:
        """Weighted negative cosine similarity of predictions [V, N, D] and the global views' projections [2, N, D].

        With two views and LOSS.WEIGHTS [1, 0] the symmetrised loss of equation 2.
        """
        alpha, beta = self.weights
        cosines = torch.einsum("tnd,vnd->tv", unit(projections.detach()), unit(predictions)) / predictions.shape[1]
        return -(pair_weights(len(predictions), alpha, beta, cosines) * cosines).sum()
