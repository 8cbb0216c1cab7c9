"""One page over many results."""
