"""The commands of `model-catalog`, by topic."""
