"""The executor for a SQLite file of our own: one writer thread, several reader threads."""
