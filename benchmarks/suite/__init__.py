"""Many evaluations of many checkpoints, here or on a cluster."""
