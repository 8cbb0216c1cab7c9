"""One module per framework that a backbone can go to."""
