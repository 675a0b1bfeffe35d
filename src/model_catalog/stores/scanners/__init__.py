"""One scanner for each kind of model store."""
