"""One scanner for each kind of store; each returns a `Scan`."""
