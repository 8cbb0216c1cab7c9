"""The stand-in for mmcv's compiled operators against slow references written from the operators' definitions."""

import importlib.util
import json
import math

import pytest
import torch

from convert.targets.mmcv_ops import install

STAND_IN = install()
pytest.importorskip("mmcv", reason="mmcv-lite comes with the mmdet extra")
from mmcv.ops import batched_nms, nms, roi_align, sigmoid_focal_loss  # noqa: E402


def slow_nms(boxes, scores, threshold, offset):
    def area(x1, y1, x2, y2):
        return max(x2 - x1 + offset, 0) * max(y2 - y1 + offset, 0)

    order = sorted(range(len(boxes)), key=lambda i: -scores[i])
    kept = []
    for i in order:
        a = boxes[i]
        for j in kept:
            b = boxes[j]
            shared = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
            if shared > threshold * (area(*a) + area(*b) - shared):
                break
        else:
            kept.append(i)
    return kept


def slow_roi_align(image, roi, size, scale, sampling, aligned):
    """One roi over image [C, H, W], by loops over bins and sampling points (Mask R-CNN section 3)."""
    channels, height, width = image.shape
    shift = 0.5 if aligned else 0.0
    x1, y1, x2, y2 = (float(v) * scale - shift for v in roi)
    roi_w, roi_h = x2 - x1, y2 - y1
    if not aligned:
        roi_w, roi_h = max(roi_w, 1.0), max(roi_h, 1.0)
    bin_w, bin_h = roi_w / size[1], roi_h / size[0]
    grid_w = sampling or math.ceil(roi_w / size[1])
    grid_h = sampling or math.ceil(roi_h / size[0])
    out = torch.zeros(channels, *size, dtype=image.dtype)
    for i in range(size[0]):
        for j in range(size[1]):
            for a in range(grid_h):
                for b in range(grid_w):
                    y = y1 + i * bin_h + (a + 0.5) * bin_h / grid_h
                    x = x1 + j * bin_w + (b + 0.5) * bin_w / grid_w
                    out[:, i, j] += bilinear(image, y, x)
            out[:, i, j] /= max(grid_h * grid_w, 1)
    return out


def bilinear(image, y, x):
    _, height, width = image.shape
    if y < -1 or y > height or x < -1 or x > width:
        return torch.zeros(image.shape[0], dtype=image.dtype)
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    v, u = y - top, x - left
    return (
        (1 - v) * (1 - u) * image[:, top, left]
        + (1 - v) * u * image[:, top, right]
        + v * (1 - u) * image[:, bottom, left]
        + v * u * image[:, bottom, right]
    )


def some_boxes(count, generator, extent=40.0):
    corner = torch.rand(count, 2, generator=generator) * extent
    return torch.cat([corner, corner + torch.rand(count, 2, generator=generator) * extent / 2], 1)


ROIS = torch.tensor(
    [
        [0, 1.3, 2.2, 11.9, 9.1],
        [1, 0.0, 0.0, 15.5, 12.0],
        [0, -4.0, -3.0, 5.0, 6.5],
        [1, 9.0, 7.0, 40.0, 30.0],
        [0, 5.0, 5.0, 5.0, 5.0],
        [1, 6.2, 3.3, 6.6, 3.4],
    ]
)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.8])
def test_nms_keeps_what_the_definition_keeps(offset, threshold):
    generator = torch.Generator().manual_seed(int(threshold * 10))
    boxes, scores = some_boxes(300, generator, extent=12.0), torch.rand(300, generator=generator)
    dets, kept = nms(boxes, scores, threshold, offset=offset)
    expected = slow_nms(boxes.tolist(), scores.tolist(), threshold, offset)
    assert kept.tolist() == expected and 0 < len(expected) < 300
    assert torch.equal(dets, torch.cat([boxes[kept], scores[kept, None]], 1))


def test_the_offset_of_nms_decides():
    boxes = torch.tensor([[0.0, 0, 1, 1], [1.0, 0, 2, 1]])  # they touch; with the offset they share a column of pixels
    scores = torch.tensor([0.9, 0.8])
    assert len(nms(boxes, scores, 0.3, offset=0)[1]) == 2
    assert len(nms(boxes, scores, 0.3, offset=1)[1]) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_nms_of_no_boxes_and_other_precisions(dtype):
    generator = torch.Generator().manual_seed(3)
    boxes, scores = some_boxes(40, generator).to(dtype), torch.rand(40, generator=generator).to(dtype)
    scores = scores + torch.arange(40).to(dtype) / 16  # no ties after rounding decides the order
    order = scores.double().argsort(descending=True, stable=True)
    expected = slow_nms(boxes[order].tolist(), scores[order].tolist(), 0.4, 0)
    assert nms(boxes, scores, 0.4)[1].tolist() == order[expected].tolist()
    assert nms(boxes[:0], scores[:0], 0.4)[1].tolist() == []


def test_batched_nms_separates_classes():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0.5, 0, 10, 10], [0.0, 0, 10, 10]])
    scores, classes = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 0, 1])
    assert batched_nms(boxes, scores, classes, {"type": "nms", "iou_threshold": 0.5})[1].tolist() == [0, 2]


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling", [0, 2])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_roi_align_equals_the_slow_reference(aligned, sampling, scale):
    images = torch.randn(2, 3, 13, 17, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rois = ROIS.double() / torch.tensor([1, scale, scale, scale, scale])
    out = roi_align(images, rois, (3, 4), scale, sampling, "avg", aligned)
    expected = torch.stack(
        [slow_roi_align(images[int(roi[0])], roi[1:], (3, 4), scale, sampling, aligned) for roi in rois]
    )
    assert out.shape == (6, 3, 3, 4) and expected.abs().max() > 0.5
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_roi_align_in_half_precision(dtype, tolerance):
    images = torch.randn(2, 3, 13, 17, generator=torch.Generator().manual_seed(0)).to(dtype)
    rois = ROIS.to(dtype)
    out = roi_align(images, rois, (3, 4), 1.0, 2, "avg", True)
    expected = torch.stack(
        [slow_roi_align(images[int(roi[0])].double(), roi[1:], (3, 4), 1.0, 2, True) for roi in rois]
    )
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling", [0, 2])
def test_roi_align_gradient(aligned, sampling):
    images = torch.randn(2, 2, 6, 7, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
    rois = torch.tensor([[0, 0.7, 1.1, 5.9, 4.3], [1, -2.0, 2.0, 3.0, 9.0], [1, 2.0, 2.0, 2.0, 2.0]]).double()
    assert torch.autograd.gradcheck(lambda x: roi_align(x, rois, (2, 3), 0.9, sampling, "avg", aligned), (images,))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_roi_align_gradient_in_half_precision(dtype, tolerance):
    generator = torch.Generator().manual_seed(2)
    images, grad = torch.randn(2, 3, 9, 9, generator=generator), torch.randn(6, 3, 2, 2, generator=generator)

    def gradient(dtype):
        leaf = images.to(dtype).requires_grad_()
        roi_align(leaf, ROIS.to(dtype), (2, 2), 1.0, 2, "avg", True).backward(grad.to(dtype))
        return leaf.grad

    assert gradient(dtype).dtype == dtype
    error = (gradient(dtype).double() - gradient(torch.float64)).abs().max() / gradient(torch.float64).abs().max()
    assert error < 4 * tolerance


def test_roi_align_of_no_boxes():
    images = torch.randn(1, 3, 8, 8, requires_grad=True)
    out = roi_align(images, torch.zeros(0, 5), (7, 7), 0.5, 0, "avg", True)
    assert out.shape == (0, 3, 7, 7)
    out.sum().backward()
    assert torch.count_nonzero(images.grad) == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_cuda_equals_cpu(dtype):
    images = torch.randn(2, 3, 13, 17, generator=torch.Generator().manual_seed(0)).to(dtype)
    grads, outs = [], []
    for device in ("cpu", "cuda"):
        leaf = images.to(device).requires_grad_()
        outs.append(roi_align(leaf, ROIS.to(device, dtype), (3, 4), 1.0, 2, "avg", True))
        outs[-1].sum().backward()
        grads.append(leaf.grad.cpu())
    tolerance = 1e-5 if dtype == torch.float32 else 2e-3
    torch.testing.assert_close(outs[0], outs[1].cpu(), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(grads[0], grads[1], rtol=tolerance, atol=tolerance)


TRAINING = """
import json, sys
from convert.targets.mmcv_ops import install
assert install(replace=sys.argv[2] == "stand-in") == (sys.argv[2] == "stand-in")
import numpy as np, torch
import benchmarks.detection.in_mmdet.parts, convert.targets.mmdet_backbones
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
cfg = Config.fromfile(sys.argv[1])
init_default_scope("mmdet")
torch.manual_seed(0)
np.random.seed(0)
model = MODELS.build(cfg.model)
model.init_weights()
optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
model.train()
losses = []
for step in range(20):
    sample = DetDataSample(metainfo=dict(img_shape=(96, 96), ori_shape=(96, 96), pad_shape=(96, 96),
                                         scale_factor=(1, 1), batch_input_shape=(96, 96)))
    mask = np.zeros((1, 96, 96), np.uint8)
    x, y = 4 * (step % 5), 3 * (step % 7)
    mask[0, y:y + 48, x:x + 56] = 1
    sample.gt_instances = InstanceData(bboxes=torch.tensor([[x, y, x + 56.0, y + 48.0]]),
                                       labels=torch.tensor([step % 3]), masks=BitmapMasks(mask, 96, 96))
    image = torch.randint(0, 60, (3, 96, 96), dtype=torch.uint8)
    image[step % 3, y:y + 48, x:x + 56] = 255
    found = model.train_step({"inputs": [image], "data_samples": [sample]}, optimizer)
    losses.append([float(found[name]) for name in ("loss", "loss_rpn_cls", "loss_cls", "loss_bbox", "loss_mask")])
print("LOSSES", json.dumps(losses))
"""


@pytest.mark.skipif(STAND_IN, reason="mmcv's compiled operators are not installed")
def test_a_training_has_the_losses_of_the_compiled_operators(run, tmp_path):
    from tests.benchmarks.detection.coco_tiny import tiny_mmdet

    config = tiny_mmdet("mask_rcnn_r18_fpn_1x", tmp_path)
    printed = {which: run("-c", TRAINING, config, which).stdout for which in ("compiled", "stand-in")}
    compiled, stand_in = (torch.tensor(json.loads(text.split("LOSSES ")[1])) for text in printed.values())
    assert compiled.shape == (20, 5) and compiled[-1, 0] < compiled[0, 0]
    torch.testing.assert_close(stand_in, compiled, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not STAND_IN, reason="mmcv's compiled operators are installed and used")
def test_other_operators_raise_by_name_and_mmcv_finds_the_module():
    with pytest.raises(NotImplementedError, match="sigmoid_focal_loss_forward.*mmcv==2.1.0"):
        sigmoid_focal_loss(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), 2.0, 0.25, None, "none")
    with pytest.raises(NotImplementedError, match="max pooling"):
        roi_align(torch.zeros(1, 1, 4, 4), torch.zeros(1, 5), (2, 2), 1.0, 0, "max", True)
    assert importlib.util.find_spec("mmcv._ext").loader is not None
    from mmcv.ops import get_compiler_version

    assert "torchvision" in get_compiler_version()
    assert install()  # a second call keeps it
