"""Detection and instance segmentation: a checkpoint and a COCO data set in, a `result.json` out."""
