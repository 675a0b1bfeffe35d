"""Restore a backup, and repair a corrupt database."""
