"""Executors: each runs an operation in a transaction."""
