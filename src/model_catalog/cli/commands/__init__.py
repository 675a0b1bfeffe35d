"""The commands of `model-catalog`, one module for each topic."""
