"""Detection in detectron2."""
