"""Renaming as data: the engine (`rules`), and for each kind of network the namings that its tensors are found under."""

from __future__ import annotations

from convert.naming import convnext, efficientnet, huggingface, mobilenet, resnet, swin, torchvision_features, vit
from convert.naming.rules import Layout

LAYOUTS: tuple[Layout, ...] = (
    *resnet.LAYOUTS,
    *mobilenet.LAYOUTS,
    *convnext.LAYOUTS,
    *vit.LAYOUTS,
    *swin.LAYOUTS,
    *efficientnet.LAYOUTS,
    *torchvision_features.LAYOUTS,
    *huggingface.LAYOUTS,
)
