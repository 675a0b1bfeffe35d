"""Verify model files against their recorded digests."""
