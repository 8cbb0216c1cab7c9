"""A checkpoint in, a `result.json` out; and the report over many."""
