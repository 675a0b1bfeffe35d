"""
Target the reader of the cache of ModelScope: read or refused by name, and cheaply.

Nothing outside is opened, and each model that is found can be recorded.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from fuzz.store_inputs import GGUF, encode, open_store_check, strategy

IS_RAW: Final = False
_NEW: Final = "models/org--name/snapshots/master"
_OLD: Final = "hub/models/org/name___1"
_OLDER: Final = "hub/org/older"
_STORE: Final = (
    (f"{_NEW}/m.safetensors", "file", "x"),
    (f"{_NEW}/config.json", "file", "{}"),
    (f"{_NEW}/sub/a.gguf", "file", GGUF),
    (f"{_NEW}/sub/b.gguf.incomplete", "file", "x"),
    (f"{_NEW}/m.bin_0_9", "file", "x"),
    (f"{_OLD}/.mv", "file", "Revision:v1,CreatedAt:1"),
    (f"{_OLD}/.msc", "file", "x"),
    (f"{_OLD}/m.gguf", "file", GGUF),
    ("hub/models/org/name.1", "link", "name___1"),
    (f"{_OLDER}/.mdl", "file", "x"),
    (f"{_OLDER}/m.gguf", "file", GGUF),
    ("hub/models/._____temp/org/name.1/b.gguf_0_9", "file", "x"),
    ("hub/._____temp/org/older/c.gguf", "file", "x"),
)
SEEDS: Final = (encode(_STORE),)
INPUTS: Final = strategy([_STORE])
open_check = partial(open_store_check, "modelscope")
