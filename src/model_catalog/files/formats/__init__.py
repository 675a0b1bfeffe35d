"""Readers of model file headers: GGUF, safetensors, pickle."""
