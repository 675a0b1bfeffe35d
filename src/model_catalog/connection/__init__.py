"""From a target to a configured engine: URL, file, PRAGMAs, timeouts, error mapping."""
