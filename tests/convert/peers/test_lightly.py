"""lightly: its documented examples in Lightning and in plain PyTorch, saved by a trainer or by torch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.convert.peers.case import Case, Made, check, every, fill, image

Build = Callable[[], dict[str, nn.Module]]


def resnet18() -> nn.Module:
    """The backbone of nearly all examples: a ResNet's children without the classifier, in a Sequential."""
    import torchvision

    return nn.Sequential(*list(torchvision.models.resnet18().children())[:-1])


def whole_resnet18() -> nn.Module:
    """The backbone of the benchmarks: torchvision's network, its classifier replaced."""
    import torchvision

    network = torchvision.models.resnet18()
    network.fc = nn.Identity()
    return network


def timm_vit(size: str = "tiny", **options) -> nn.Module:
    """A ViT as the masked methods wrap it."""
    import timm
    from lightly.models.modules import MaskedVisionTransformerTIMM

    vit = timm.create_model(f"vit_{size}_patch16_224", img_size=64, num_classes=0, **options)
    return MaskedVisionTransformerTIMM(vit=vit, antialias=False, pos_embed_initialization="skip")


def torchvision_vit() -> nn.Module:
    """ViT-S/16 as the examples of MSN, PMSN and SimMIM build it."""
    import torchvision

    return torchvision.models.VisionTransformer(
        image_size=32, patch_size=16, num_layers=12, num_heads=6, hidden_dim=384, mlp_dim=384 * 4
    )


def masked_torchvision_vit() -> nn.Module:
    """The same as these methods wrap it."""
    from lightly.models.modules import MaskedVisionTransformerTorchvision

    return MaskedVisionTransformerTorchvision(vit=torchvision_vit())


def twice(network: nn.Module, *names: str) -> dict[str, nn.Module]:
    """The network and its copies under other names."""
    return dict(zip(names, [network, *(copy.deepcopy(network) for _ in names[1:])], strict=True))


def head(name: str, *arguments: Any) -> nn.Module:
    """A head of lightly's."""
    from lightly.models.modules import heads

    return getattr(heads, name)(*arguments)


def lightly(
    build: Build,
    evaluated: str,
    size: int = 64,
    lightning: bool = True,
    feature: Callable[[nn.Module, Tensor], Tensor] = lambda network, images: network(images).flatten(1),
    settings: dict | None = None,
) -> Callable[[Path], Made]:
    """`Case.make`: the modules of an example in a module of Lightning's or of torch's; `evaluated` is one of them."""

    def make(folder: Path) -> Made:
        import pytorch_lightning as pl

        module: Any = pl.LightningModule() if lightning else nn.Module()
        for name, part in build().items():
            setattr(module, name, part)
        fill(module)
        path = folder / ("last.ckpt" if lightning else "model.pth")
        if lightning:
            if settings:
                module.save_hyperparameters(settings)
            trainer = pl.Trainer(accelerator="cpu", logger=False, barebones=False, enable_checkpointing=False)
            trainer.strategy.connect(module)
            trainer.save_checkpoint(path)
        else:
            torch.save(module.state_dict(), path)
        images = image(size)
        with torch.no_grad():
            return Made(path, images, feature(getattr(module, evaluated).eval(), images))

    return make


def trained(folder: Path) -> Made:
    """SimCLR, trained for a step by Lightning, saved by its ModelCheckpoint as last.ckpt."""
    import pytorch_lightning as pl
    from lightly.loss import NTXentLoss
    from pytorch_lightning.callbacks import ModelCheckpoint

    class SimCLR(pl.LightningModule):
        def __init__(self, lr: float = 0.001) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.backbone = resnet18()
            self.projection_head = head("SimCLRProjectionHead", 512, 64, 32)
            self.criterion = NTXentLoss()

        def training_step(self, batch, batch_idx):
            first, second = (self.projection_head(self.backbone(view).flatten(1)) for view in batch)
            return self.criterion(first, second)

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams.lr, momentum=0.9)
            return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)]

    pl.seed_everything(0, verbose=False)
    module = SimCLR()
    keep = ModelCheckpoint(dirpath=folder, save_last=True)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        callbacks=[keep],
        enable_progress_bar=False,
        enable_model_summary=0,
    )
    views = image(64, 8).unflatten(0, (4, 2))
    trainer.fit(module, torch.utils.data.DataLoader([tuple(pair) for pair in views], batch_size=4))
    images = image(64)
    with torch.no_grad():
        return Made(folder / "last.ckpt", images, module.backbone.eval()(images).flatten(1))


def mobilenet() -> nn.Module:
    """MobileNetV2's children without the classifier, as the documentation shows for any network of torchvision's."""
    import torchvision

    return nn.Sequential(*list(torchvision.models.mobilenet_v2().children())[:-1], nn.AdaptiveAvgPool2d(1))


def generated_resnet() -> nn.Module:
    """lightly's own ResNet for 32 px images: a 3 x 3 stem, no pooling."""
    from lightly.models import ResNetGenerator

    return nn.Sequential(*list(ResNetGenerator("resnet-18").children())[:-1], nn.AdaptiveAvgPool2d(1))


def _timm(name: str) -> nn.Module:
    import timm

    return timm.create_model(name, num_classes=0)


def _dino(names: tuple[str, str], network: Callable[[], nn.Module]) -> Build:
    student_head = {"backbone": "projection_head"}.get(names[0], "teacher_head")
    return lambda: {
        **twice(network(), *names),
        student_head: head("DINOProjectionHead", 512, 64, 16, 128),
        "student_head": head("DINOProjectionHead", 512, 64, 16, 128),
    }


def _vit_dino(**options) -> Build:
    return lambda: {
        **twice(timm_vit("small" if options else "tiny", **options), "teacher_backbone", "student_backbone"),
        "teacher_head": head("DINOProjectionHead", 192, 64, 16, 128),
        "student_head": head("DINOProjectionHead", 192, 64, 16, 128),
    }


def _moco(network: Callable[[], nn.Module], second: str = "backbone_momentum") -> Build:
    return lambda: {
        **twice(network(), "backbone", second),
        "projection_head": head("MoCoProjectionHead", 512, 64, 32),
        "projection_head_momentum": head("MoCoProjectionHead", 512, 64, 32),
    }


def _byol() -> dict[str, nn.Module]:
    return {
        **twice(resnet18(), "backbone", "backbone_momentum"),
        **twice(head("BYOLProjectionHead", 512, 64, 32), "projection_head", "projection_head_momentum"),
        "prediction_head": head("BYOLPredictionHead", 32, 64, 32),
    }


def _byol_benchmark() -> dict[str, nn.Module]:
    return {
        **twice(whole_resnet18(), "backbone", "teacher_backbone"),
        **twice(head("BYOLProjectionHead", 512, 64, 32), "projection_head", "teacher_projection_head"),
        "online_classifier": nn.Linear(512, 10),
    }


def _simple(projection: str, network: Callable[[], nn.Module] = resnet18, **more: Callable[[], nn.Module]) -> Build:
    return lambda: {
        "backbone": network(),
        "projection_head": head(projection, 512, 64, 32),
        **{name: part() for name, part in more.items()},
    }


def _prototypes() -> nn.Module:
    from lightly.models.modules.heads import SwaVPrototypes

    return SwaVPrototypes(32, 24, 1)


def _memory_bank() -> nn.Module:
    from lightly.models.modules import NNMemoryBankModule

    return NNMemoryBankModule(size=(64, 32))


def _mae() -> dict[str, nn.Module]:
    from lightly.models.modules import MaskedVisionTransformerDecoderTIMM

    decoder = MaskedVisionTransformerDecoderTIMM(num_patches=16, embed_dim=64, depth=1, num_heads=4)
    return {"backbone": timm_vit(), "decoder_embed": nn.Linear(192, 64), "decoder": decoder}


def _msn() -> dict[str, nn.Module]:
    return {
        **twice(masked_torchvision_vit(), "backbone", "anchor_backbone"),
        **twice(head("MSNProjectionHead", 384, 64, 32), "projection_head", "anchor_projection_head"),
        "prototypes": nn.Linear(32, 48, bias=False),
    }


def _simmim() -> dict[str, nn.Module]:
    return {"backbone": masked_torchvision_vit(), "decoder": nn.Linear(384, 16 * 16 * 3)}


def _ijepa() -> dict[str, nn.Module]:
    from lightly.models.modules.ijepa import IJEPABackbone, IJEPAPredictor

    encoder = IJEPABackbone.from_vit(torchvision_vit())
    predictor = IJEPAPredictor.from_vit_encoder(torchvision_vit().encoder, 4)
    return {**twice(encoder, "encoder", "target_encoder"), "predictor": predictor}


LIGHTLY: dict[str, Any] = {"project": "lightly 1.6", "package": "lightly"}
RESNET: dict[str, Any] = {**LIGHTLY, "arch": "resnet18"}
VIT: dict[str, Any] = {**LIGHTLY, "arch": "vit_tiny_patch16_224", "options": {"img_size": 64}}
VIT_S: dict[str, Any] = {**LIGHTLY, "arch": "vit_small_patch16_224", "options": {"img_size": 32}}

CASES = [
    Case(file="SimCLR, Lightning, trained, `last.ckpt`", make=trained, **RESNET),
    Case(
        file="SimCLR, plain PyTorch",
        make=lightly(_simple("SimCLRProjectionHead"), "backbone", lightning=False),
        **RESNET,
    ),
    Case(file="MoCo, Lightning", make=lightly(_moco(resnet18), "backbone"), **RESNET),
    Case(file="MoCo, plain PyTorch", make=lightly(_moco(resnet18), "backbone", lightning=False), **RESNET),
    Case(
        file="MoCo v2, benchmark, Lightning",
        make=lightly(_moco(whole_resnet18, "key_backbone"), "backbone", settings={"batch_size_per_device": 8}),
        **RESNET,
    ),
    Case(file="BYOL, Lightning", make=lightly(_byol, "backbone"), **RESNET),
    Case(file="BYOL, plain PyTorch", make=lightly(_byol, "backbone", lightning=False), **RESNET),
    Case(file="BYOL, benchmark, Lightning", make=lightly(_byol_benchmark, "backbone"), **RESNET),
    Case(
        file="SimSiam, Lightning",
        make=lightly(
            _simple("SimSiamProjectionHead", prediction_head=lambda: head("SimSiamPredictionHead", 32, 16, 32)),
            "backbone",
        ),
        **RESNET,
    ),
    Case(
        file="SwAV, Lightning",
        make=lightly(_simple("SwaVProjectionHead", prototypes=_prototypes), "backbone"),
        **RESNET,
    ),
    Case(
        file="SwAV, plain PyTorch",
        make=lightly(_simple("SwaVProjectionHead", prototypes=_prototypes), "backbone", lightning=False),
        **RESNET,
    ),
    Case(
        file="DINO, Lightning: the teacher",
        make=lightly(_dino(("teacher_backbone", "student_backbone"), resnet18), "teacher_backbone"),
        **RESNET,
    ),
    Case(
        file="DINO, Lightning, the student asked for",
        make=lightly(_dino(("teacher_backbone", "student_backbone"), resnet18), "student_backbone"),
        ask={"network": "student_backbone"},
        **RESNET,
    ),
    Case(
        file="DINO, plain PyTorch: the teacher",
        make=lightly(_dino(("teacher_backbone", "student_backbone"), resnet18), "teacher_backbone", lightning=False),
        **RESNET,
    ),
    Case(
        file="DINO, benchmark, Lightning: `backbone`, the teacher",
        make=lightly(_dino(("backbone", "student_backbone"), whole_resnet18), "backbone"),
        **RESNET,
    ),
    Case(
        file="DINO with a ViT, Lightning: the teacher",
        make=lightly(_vit_dino(), "teacher_backbone"),
        **VIT,
    ),
    Case(
        file="DINOv2, ViT-S with layer scale, Lightning: the teacher",
        make=lightly(_vit_dino(init_values=1e-5, dynamic_img_size=True), "teacher_backbone", settings={"ibot": True}),
        arch="vit_small_patch14_dinov2",
        options={"img_size": 64, "patch_size": 16},
        **LIGHTLY,
    ),
    Case(
        file="iBOT, plain PyTorch: the teacher",
        make=lightly(_vit_dino(), "teacher_backbone", lightning=False),
        **VIT,
    ),
    Case(file="MAE, Lightning", make=lightly(_mae, "backbone"), **VIT),
    Case(file="MAE, plain PyTorch", make=lightly(_mae, "backbone", lightning=False), **VIT),
    Case(file="MSN and PMSN, Lightning", make=lightly(_msn, "backbone", 32), **VIT_S),
    Case(file="MSN and PMSN, plain PyTorch", make=lightly(_msn, "backbone", 32, lightning=False), **VIT_S),
    Case(file="SimMIM, Lightning", make=lightly(_simmim, "backbone", 32), **VIT_S),
    Case(
        file="I-JEPA, Lightning: the target encoder",
        make=lightly(_ijepa, "target_encoder", 32, feature=lambda network, images: network(images)[:, 0]),
        **VIT_S,
    ),
    Case(
        file="I-JEPA, plain PyTorch: the target encoder",
        make=lightly(_ijepa, "target_encoder", 32, False, feature=lambda network, images: network(images)[:, 0]),
        **VIT_S,
    ),
    Case(file="Barlow Twins, Lightning", make=lightly(_simple("BarlowTwinsProjectionHead"), "backbone"), **RESNET),
    Case(file="VICReg, Lightning", make=lightly(_simple("VICRegProjectionHead"), "backbone"), **RESNET),
    Case(
        file="TiCo, Lightning",
        make=lightly(
            lambda: {
                **twice(resnet18(), "backbone", "backbone_momentum"),
                **twice(head("TiCoProjectionHead", 512, 64, 32), "projection_head", "projection_head_momentum"),
            },
            "backbone",
        ),
        **RESNET,
    ),
    Case(
        file="NNCLR, Lightning",
        make=lightly(
            _simple(
                "NNCLRProjectionHead",
                prediction_head=lambda: head("NNCLRPredictionHead", 32, 64, 32),
                memory_bank=_memory_bank,
            ),
            "backbone",
        ),
        **RESNET,
    ),
    Case(
        file="DCL, plain PyTorch", make=lightly(_simple("SimCLRProjectionHead"), "backbone", lightning=False), **RESNET
    ),
    Case(
        file="MobileNetV2's children in a Sequential, Lightning",
        make=lightly(_simple("SimCLRProjectionHead", mobilenet), "backbone"),
        arch="mobilenetv2_100",
        **LIGHTLY,
    ),
    Case(
        file="a whole timm EfficientNet-Lite, Lightning",
        make=lightly(_simple("SimCLRProjectionHead", lambda: _timm("efficientnet_lite0")), "backbone"),
        ask={"arch": "efficientnet_lite0"},
        arch="efficientnet_lite0",
        **LIGHTLY,
    ),
    Case(
        file="LeJEPA, a whole timm ViT, Lightning",
        make=lightly(_simple("SimCLRProjectionHead", lambda: _timm("vit_tiny_patch16_224")), "backbone", 224),
        arch="vit_tiny_patch16_224",
        **LIGHTLY,
    ),
    Case(
        file="its own ResNet-18 for 32 px images, Lightning",
        make=lightly(_simple("SimCLRProjectionHead", generated_resnet), "backbone", 32),
        refused="in no naming that is known",
        **LIGHTLY,
    ),
]


@every(CASES)
def test_reads_what_the_project_computes(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)
