"""k-NN, linear, semi-supervised: a checkpoint and labelled images in, a `result.json` out."""
