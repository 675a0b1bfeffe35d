"""Fuzzers for the code that reads untrusted input: references, files, stores and more."""

from typing import Final

TARGETS: Final = (
    *("reference", "headers", "configs", "onnx_models", "plain_folders"),
    *("docker_stores", "ramalama_stores", "modelscope_caches", "kagglehub_caches"),
    *("imports", "filters"),
)
"""
The names of the target modules.

Each module has `INPUTS`, a Hypothesis strategy of bytes; `SEEDS`, inputs to start from; and
`open_check`, a context manager. It yields a function that takes one input, returns the outcome in a
word, and raises if the code under test misbehaves. `IS_RAW` is False if only bytes that the
strategy made are useful inputs.
"""
