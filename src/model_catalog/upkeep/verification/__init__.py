"""Compare model files with their recorded digests."""
