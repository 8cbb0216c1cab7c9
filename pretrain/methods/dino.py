"""DINO (Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", 2021) with weighted multi-crop."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.heads import init_linear, mlp, unit
from pretrain.methods.base import Method, Progress, new_backbone
from pretrain.methods.multicrop import Network, multicrop_cross_entropy, spread
from pretrain.optim import cosine, ema_update, linear
from sslight.core import distributed


class WeightNormLinear(nn.Module):
    """A linear layer without bias whose rows are `weight_g * weight_v / |weight_v|` (Salimans and Kingma, 2016)."""

    def __init__(self, in_dim: int, out_dim: int, learn_scale: bool):
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out_dim, 1), requires_grad=learn_scale)
        self.weight_v = nn.Parameter(nn.Linear(in_dim, out_dim, bias=False).weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight_v * (self.weight_g / self.weight_v.norm(dim=1, keepdim=True)))


class DINOHead(nn.Module):
    """DINO (Caron et al., 2021, appendix C): MLP with GELU, unit-length bottleneck, weight-normed prototypes."""

    def __init__(
        self, in_dim: int, hidden: int, bottleneck: int, out_dim: int, layers: int, *, norm: bool, learn_scale: bool
    ):
        super().__init__()
        self.mlp = mlp(in_dim, hidden, bottleneck, layers, norm=norm, activation=nn.GELU)
        init_linear(self, std=0.02)
        self.last_layer = WeightNormLinear(bottleneck, out_dim, learn_scale)

    def project(self, features: Tensor) -> Tensor:
        return unit(self.mlp(features))

    def forward(self, embedding: Tensor) -> Tensor:
        return self.last_layer(embedding)


class DINO(Method):
    """A student predicts, from every view, what its momentum teacher says of the other global views."""

    center: Tensor
    teacher_sum: Tensor
    networks = {"student": "student.backbone.", "teacher": "teacher.backbone."}

    def __init__(self, cfg):
        super().__init__()
        self.settings, self.weights = cfg.DINO, cfg.LOSS.WEIGHTS
        self.student = self._network(cfg, cfg.MODEL.DROP_PATH_RATE)
        self.teacher = self._network(cfg, drop_path_rate=0.0)
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)
        self.register_buffer("center", torch.zeros(1, cfg.DINO.OUTPUT_DIM))
        # of the forwards since the last step, so that accumulated gradients see the centre of the whole batch
        self.register_buffer("teacher_sum", torch.zeros(1, cfg.DINO.OUTPUT_DIM), persistent=False)
        self._rows = 0

    @staticmethod
    def _network(cfg, drop_path_rate: float) -> Network[DINOHead]:
        backbone, dino = new_backbone(cfg, drop_path_rate), cfg.DINO
        return Network(
            backbone,
            DINOHead(
                backbone.feature_dim,
                dino.HIDDEN_SIZE,
                dino.BOTTLENECK_DIM,
                dino.OUTPUT_DIM,
                dino.NUM_LAYERS,
                norm=dino.HEAD_BN,
                learn_scale=not dino.NORM_LAST_LAYER,
            ),
        )

    def forward(self, views: list[Tensor], progress: Progress) -> dict[str, Tensor]:
        with torch.no_grad():
            teacher = self.teacher.head(self.teacher.head.project(self.teacher.features(views[:2])))
        features = self.student.features(views)
        embedding = self.student.head.project(features)
        student = self.student.head(embedding)
        with torch.autocast(student.device.type, enabled=False):
            result = self.loss(student.float(), teacher.float(), len(views), progress.epoch)
        batch = len(views[0])
        return {**result, "feature": features[:batch].detach(), "feature_std": spread(embedding[:batch])}

    def loss(self, student: Tensor, teacher: Tensor, views: int, epoch: int) -> dict[str, Tensor]:
        """Loss of student logits [V * N, K] against teacher logits [2 * N, K]; the teacher's rows go into the centre.

        The centre in use is the one before this batch (`after_step` moves it on). The teacher's temperature rises
        linearly over the first epochs. Also returns the mean entropy of the teacher's targets, in nats.
        """
        settings, outputs = self.settings, student.shape[-1]
        temperature = linear(
            epoch, settings.WARMUP_TEACHER_TEMP_EPOCHS, settings.WARMUP_TEACHER_TEMP, settings.TEACHER_TEMP
        )
        scaled = (teacher - self.center) / temperature
        targets = scaled.softmax(-1)
        loss = multicrop_cross_entropy(
            targets.view(2, -1, outputs), student.view(views, -1, outputs), settings.STUDENT_TEMP, *self.weights
        )
        self.teacher_sum += teacher.sum(0, keepdim=True)
        self._rows += len(teacher)
        normaliser = scaled.amax(-1) - targets.amax(-1).log()  # logsumexp(scaled), from the largest entry
        entropy = (normaliser - torch.linalg.vecdot(targets, scaled)).mean()
        return {"loss": loss, "teacher_entropy": entropy}

    def after_backward(self, progress: Progress) -> None:
        if progress.epoch < self.settings.FREEZE_LAST_LAYER_EPOCHS:
            for parameter in self.student.head.last_layer.parameters():
                parameter.grad = None

    def after_step(self, progress: Progress) -> None:
        settings = self.settings
        momentum = cosine(progress.step, progress.total_steps, settings.MOMENTUM, settings.MOMENTUM_END)
        ema_update(self.teacher.parameters(), self.student.parameters(), momentum)
        self.update_center()

    @torch.no_grad()
    def update_center(self) -> None:
        """Move the centre towards the mean of the teacher's logits of this step, over all forwards and ranks."""
        mean = distributed.all_reduce_sum(self.teacher_sum) / (self._rows * distributed.world_size())
        self.center.mul_(self.settings.CENTER_MOMENTUM).add_(mean, alpha=1 - self.settings.CENTER_MOMENTUM)
        self.teacher_sum.zero_()
        self._rows = 0
