"""The commands about downloads."""
