"""Detection in mmdet."""
