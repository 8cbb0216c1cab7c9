"""Images in, batches of views out: sources, decoding, views, loading, packing."""
