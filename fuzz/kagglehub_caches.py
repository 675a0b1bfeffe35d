"""
Target the reader of the cache of kagglehub: read or refused by name, and cheaply.

Nothing outside is opened, and each model that is found can be recorded.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from fuzz.store_inputs import GGUF, encode, open_store_check, strategy

IS_RAW: Final = False
_VARIATION: Final = "models/owner/model/framework/variation"
_STORE: Final = (
    (f"{_VARIATION}/1/m.safetensors", "file", "x"),
    (f"{_VARIATION}/1/config.json", "file", "{}"),
    (f"{_VARIATION}/1.complete", "file", ""),
    (f"{_VARIATION}/2/a.gguf", "file", GGUF),
    (f"{_VARIATION}/2/sub/b.gguf", "file", GGUF),
    (f"{_VARIATION}/.complete/2/a.gguf.complete", "file", ""),
    (f"{_VARIATION}/.complete/2/sub/b.gguf.complete", "file", ""),
    (f"{_VARIATION}/3/saved_model.pb", "file", "x"),
    (f"{_VARIATION}/3.archive", "file", "x"),
    ("datasets/owner/set/versions/1/x.gguf", "file", GGUF),
)
SEEDS: Final = (encode(_STORE),)
INPUTS: Final = strategy([_STORE])
open_check = partial(open_store_check, "kagglehub")
