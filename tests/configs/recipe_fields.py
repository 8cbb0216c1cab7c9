"""The resolved detection recipes of both frameworks as flat dicts of the same fields, in the same units."""

from __future__ import annotations

import math


def of_mmdet(cfg) -> dict:
    """Fields of a resolved mmdet config."""
    model, head = cfg.model, cfg.model.roi_head
    rpn, boxes, mask = model.rpn_head, head.bbox_head, head.get("mask_head")
    mask_roi = head.mask_roi_extractor.roi_layer if mask else None
    train, test, loaders = model.train_cfg, model.test_cfg, cfg.train_dataloader
    anchors, extractor = rpn.anchor_generator, head.bbox_roi_extractor
    pipeline = {step["type"]: step for step in loaders.dataset.pipeline}
    scales = pipeline["RandomChoiceResize"]["scales"]
    test_scale = {step["type"]: step for step in cfg.test_dataloader.dataset.pipeline}["Resize"]["scale"]
    ramp, steps = cfg.param_scheduler
    norm = model.backbone.norm_cfg.type
    fields = {
        "arch": (model.backbone.type.lower(), model.backbone.get("depth")),
        "frozen stages": max(model.backbone.get("frozen_stages", -1) + 1, 0),
        "backbone norm": norm,
        "norm uses running statistics in training": model.backbone.get("norm_eval", False),
        "stride in the 3x3 convolution": model.backbone.get("style", "pytorch") == "pytorch",
        "mean": list(model.data_preprocessor.mean),
        "std": list(model.data_preprocessor.std),
        "color order": "RGB" if model.data_preprocessor.bgr_to_rgb else "BGR",
        "size divisor": model.data_preprocessor.pad_size_divisor,
        "fpn channels": model.neck.out_channels,
        "fpn norm": bool(model.neck.get("norm_cfg")),
        "fpn levels": model.neck.num_outs,
        "anchor strides": list(anchors.strides),
        "anchor sizes": [[stride * scale for scale in anchors.scales] for stride in anchors.strides],
        "anchor ratios": list(anchors.ratios),
        "anchor offset": anchors.get("center_offset", 0.0),
        "anchor box weights": [1 / std for std in rpn.bbox_coder.target_stds],
        "rpn loss": (rpn.loss_cls.type, rpn.loss_bbox.type, rpn.loss_bbox.loss_weight),
        "rpn positive iou": train.rpn.assigner.pos_iou_thr,
        "rpn negative iou": train.rpn.assigner.neg_iou_thr,
        "rpn low quality matches": train.rpn.assigner.match_low_quality,
        "rpn samples": (train.rpn.sampler.num, train.rpn.sampler.pos_fraction),
        "rpn outside border": train.rpn.allowed_border,
        "proposals before nms": (train.rpn_proposal.nms_pre, test.rpn.nms_pre),
        "proposals after nms": (train.rpn_proposal.max_per_img, test.rpn.max_per_img),
        "proposal nms": (train.rpn_proposal.nms.iou_threshold, test.rpn.nms.iou_threshold),
        "smallest proposal": train.rpn_proposal.min_bbox_size,
        "roi strides": list(extractor.featmap_strides),
        "roi level of 224 px": _level(extractor),
        "box roi": (
            extractor.roi_layer.output_size,
            extractor.roi_layer.sampling_ratio,
            extractor.roi_layer.get("aligned", True),
        ),
        "box head": (boxes.type.removeprefix("Shared").removesuffix("FCBBoxHead"), boxes.fc_out_channels),
        "box weights": [1 / std for std in boxes.bbox_coder.target_stds],
        "class-agnostic boxes": boxes.reg_class_agnostic,
        "box loss": (boxes.loss_cls.type, boxes.loss_bbox.type, boxes.loss_bbox.loss_weight),
        "roi positive iou": train.rcnn.assigner.pos_iou_thr,
        "roi negative iou": train.rcnn.assigner.neg_iou_thr,
        "roi low quality matches": train.rcnn.assigner.match_low_quality,
        "roi samples": (train.rcnn.sampler.num, train.rcnn.sampler.pos_fraction),
        "ground truth among rois": train.rcnn.sampler.add_gt_as_proposals,
        "test": (test.rcnn.score_thr, test.rcnn.nms.iou_threshold, test.rcnn.max_per_img),
        "mask head": None if mask is None else (mask.num_convs, mask.conv_out_channels),
        "mask roi": None
        if mask is None
        else (mask_roi.output_size, mask_roi.sampling_ratio, mask_roi.get("aligned", True)),
        "mask target size": None if mask is None else train.rcnn.mask_size,
        "train sides": sorted({side for _, side in scales}),
        "train longer side": max(longer for longer, _ in scales),
        "test size": (min(test_scale), max(test_scale)),
        "flip": pipeline["RandomFlip"]["prob"],
        "images without objects": not loaders.dataset.filter_cfg.filter_empty_gt,
        "smallest image": loaders.dataset.filter_cfg.min_size,
        "like aspect ratios in a batch": loaders.batch_sampler.type == "ResumableBatchSampler",
        "batch": cfg.auto_scale_lr.base_batch_size,
        "optimizer": (
            cfg.optim_wrapper.optimizer.type,
            cfg.optim_wrapper.optimizer.momentum,
            cfg.optim_wrapper.optimizer.get("nesterov", False),
        ),
        "learning rate": cfg.optim_wrapper.optimizer.lr,
        "weight decay": cfg.optim_wrapper.optimizer.weight_decay,
        "weight decay of norms": (
            cfg.optim_wrapper.optimizer.weight_decay * cfg.optim_wrapper.paramwise_cfg.norm_decay_mult
        ),
        "gradient clipping": bool(cfg.optim_wrapper.get("clip_grad")),
        "iterations": cfg.train_cfg.max_iters,
        "steps": list(steps.milestones),
        "step factor": steps.gamma,
        "warm-up": (ramp.end, ramp.start_factor),
    }
    return fields


def _level(extractor) -> int:
    """log2 of the stride of the level that a 224 px roi is pooled from."""
    strides, finest = extractor.featmap_strides, extractor.get("finest_scale", 56)
    level = min(max(math.floor(math.log2(224 / finest + 1e-6)), 0), len(strides) - 1)
    return int(math.log2(strides[level]))


def of_detectron2(cfg) -> dict:
    """Fields of a resolved detectron2 config."""
    model, solver = cfg.MODEL, cfg.SOLVER
    rpn, heads, boxes, masks = model.RPN, model.ROI_HEADS, model.ROI_BOX_HEAD, model.ROI_MASK_HEAD
    resnet = "resnet" in model.BACKBONE.NAME
    levels = {f"p{n}": 2**n for n in range(2, 7)}
    rpn_losses = {"smooth_l1": "L1Loss"} if rpn.SMOOTH_L1_BETA == 0 else {}
    box_losses = {"smooth_l1": "L1Loss"} if boxes.SMOOTH_L1_BETA == 0 else {}
    return {
        "arch": ("resnet", model.RESNETS.DEPTH) if resnet else (model.TIMM.ARCH.split("_")[0], None),
        "frozen stages": model.BACKBONE.FREEZE_AT,
        "backbone norm": model.RESNETS.NORM if resnet else model.TIMM.NORM,
        "norm uses running statistics in training": model.RESNETS.NORM == "FrozenBN",
        "stride in the 3x3 convolution": not model.RESNETS.STRIDE_IN_1X1,
        "mean": list(model.PIXEL_MEAN),
        "std": list(model.PIXEL_STD),
        "color order": cfg.INPUT.FORMAT,
        "size divisor": 32,
        "fpn channels": model.FPN.OUT_CHANNELS,
        "fpn norm": bool(model.FPN.NORM),
        "fpn levels": len(rpn.IN_FEATURES),
        "anchor strides": [levels[name] for name in rpn.IN_FEATURES],
        "anchor sizes": [list(sizes) for sizes in model.ANCHOR_GENERATOR.SIZES],
        "anchor ratios": list(model.ANCHOR_GENERATOR.ASPECT_RATIOS[0]),
        "anchor offset": model.ANCHOR_GENERATOR.OFFSET,
        "anchor box weights": list(rpn.BBOX_REG_WEIGHTS),
        "rpn loss": ("CrossEntropyLoss", rpn_losses.get(rpn.BBOX_REG_LOSS_TYPE), rpn.BBOX_REG_LOSS_WEIGHT),
        "rpn positive iou": rpn.IOU_THRESHOLDS[1],
        "rpn negative iou": rpn.IOU_THRESHOLDS[0],
        "rpn low quality matches": True,
        "rpn samples": (rpn.BATCH_SIZE_PER_IMAGE, rpn.POSITIVE_FRACTION),
        "rpn outside border": rpn.BOUNDARY_THRESH,
        "proposals before nms": (rpn.PRE_NMS_TOPK_TRAIN, rpn.PRE_NMS_TOPK_TEST),
        "proposals after nms": (rpn.POST_NMS_TOPK_TRAIN, rpn.POST_NMS_TOPK_TEST),
        "proposal nms": (rpn.NMS_THRESH, rpn.NMS_THRESH),
        "smallest proposal": model.PROPOSAL_GENERATOR.MIN_SIZE,
        "roi strides": [levels[name] for name in heads.IN_FEATURES],
        "roi level of 224 px": 4,
        "box roi": (boxes.POOLER_RESOLUTION, boxes.POOLER_SAMPLING_RATIO, boxes.POOLER_TYPE == "ROIAlignV2"),
        "box head": (str(boxes.NUM_FC), boxes.FC_DIM),
        "box weights": list(boxes.BBOX_REG_WEIGHTS),
        "class-agnostic boxes": boxes.CLS_AGNOSTIC_BBOX_REG,
        "box loss": ("CrossEntropyLoss", box_losses.get(boxes.BBOX_REG_LOSS_TYPE), boxes.BBOX_REG_LOSS_WEIGHT),
        "roi positive iou": heads.IOU_THRESHOLDS[0],
        "roi negative iou": heads.IOU_THRESHOLDS[0],
        "roi low quality matches": False,
        "roi samples": (heads.BATCH_SIZE_PER_IMAGE, heads.POSITIVE_FRACTION),
        "ground truth among rois": heads.PROPOSAL_APPEND_GT,
        "test": (heads.SCORE_THRESH_TEST, heads.NMS_THRESH_TEST, cfg.TEST.DETECTIONS_PER_IMAGE),
        "mask head": (masks.NUM_CONV, masks.CONV_DIM) if model.MASK_ON else None,
        "mask roi": (masks.POOLER_RESOLUTION, masks.POOLER_SAMPLING_RATIO, masks.POOLER_TYPE == "ROIAlignV2")
        if model.MASK_ON
        else None,
        "mask target size": 2 * masks.POOLER_RESOLUTION if model.MASK_ON else None,
        "train sides": list(cfg.INPUT.MIN_SIZE_TRAIN),
        "train longer side": cfg.INPUT.MAX_SIZE_TRAIN,
        "test size": (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST),
        "flip": 0.5 if cfg.INPUT.RANDOM_FLIP == "horizontal" else 0.0,
        "images without objects": not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        "smallest image": 0,
        "like aspect ratios in a batch": cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        "batch": solver.IMS_PER_BATCH,
        "optimizer": (solver.OPTIMIZER, solver.MOMENTUM, solver.NESTEROV),
        "learning rate": solver.BASE_LR,
        "weight decay": solver.WEIGHT_DECAY,
        "weight decay of norms": solver.WEIGHT_DECAY_NORM,
        "gradient clipping": solver.CLIP_GRADIENTS.ENABLED,
        "iterations": solver.MAX_ITER,
        "steps": list(solver.STEPS),
        "step factor": solver.GAMMA,
        "warm-up": (solver.WARMUP_ITERS, solver.WARMUP_FACTOR),
    }
