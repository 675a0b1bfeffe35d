"""The executor for a SQLite file of our own: one writer thread, up to four reader threads."""
