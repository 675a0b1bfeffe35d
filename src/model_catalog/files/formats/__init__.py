"""Readers of model file headers: GGUF, safetensors and pickled weights."""
