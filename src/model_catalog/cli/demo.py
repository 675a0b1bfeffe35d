"""The life of a catalog, walked through on files made for it."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path
from typing import Final

from model_catalog.cli.output import counted, human_size, print_line
from model_catalog.lifecycle import open_catalog
from model_catalog.model import Model
from model_catalog.schema import schema_state

_STRING, _UINT32, _F32 = 8, 4, 0
_ALIGNMENT: Final = 32


async def walk() -> None:
    """Open, register, find, register again, list, total, remove, reopen; leave nothing behind."""
    with tempfile.TemporaryDirectory(prefix="model-catalog-demo-") as folder:
        await _walk(Path(folder))


async def _walk(folder: Path) -> None:
    tiny = folder / "tiny.gguf"
    tiny.write_bytes(gguf_of("llama", context_length=2048))
    notes = folder / "small.bin"
    notes.write_bytes(bytes(4096))
    database = folder / "catalog.db"

    _step("open_catalog('catalog.db')")
    async with open_catalog(database) as catalog:
        current, _ = await schema_state(database)
        _answer(f"made, with its tables at revision {current}; the file is yours alone")

        _step("register_model(Model(reference='tiny', provider='demo', ...))")
        model = await catalog.register_model(_model("tiny", tiny))
        _answer(_told(model))

        _step("find_model('tiny', 'demo')")
        found = await catalog.find_model("tiny", "demo")
        _answer(_told(found))
        _step("find_model('tiny', 'elsewhere')")
        _answer(_told(await catalog.find_model("tiny", "elsewhere")))

        moved = tiny.rename(folder / "moved.gguf")
        _step("register_model(...) again, after the file has moved")
        model = await catalog.register_model(_model("tiny", moved))
        _answer(f"{_told(model)}: the same row, number {model.id}")

        _step("register_models([...]): two versions of another one, all or nothing")
        count = await catalog.register_models(
            _model("small", notes, version=version) for version in ("v1", "v2")
        )
        _answer(counted(count, "model"))

        _step("list_models()")
        for each in await catalog.list_models():
            _answer(_told(each))
        _step("get_total_size()")
        _answer(f"{await catalog.get_total_size()} bytes")

        _step("remove_model('tiny', 'demo')")
        known = await catalog.remove_model("tiny", "demo")
        _answer(f"{known}; is the file still there? {moved.is_file()}")

    _step("the catalog is closed, and opened again")
    async with open_catalog(database) as catalog:
        models = await catalog.list_models()
        _answer(f"{counted(len(models), 'model')}, {await catalog.get_total_size()} bytes")


def _model(reference: str, path: Path, version: str = "") -> Model:
    return Model(
        reference=reference,
        provider="demo",
        version=version,
        local_path=str(path),
        size_bytes=path.stat().st_size,
    )


def _told(model: Model | None) -> str:
    if model is None:
        return "None"
    version = f"@{model.version}" if model.version else ""
    name = Path(model.local_path).name
    return f"{model.provider}:{model.reference}{version}, {human_size(model.size_bytes)}, in {name}"


def _step(call: str) -> None:
    print_line(f"> {call}")


def _answer(text: str) -> None:
    print_line(f"    {text}")


def gguf_of(architecture: str, context_length: int) -> bytes:
    """A GGUF file of version 3 with one tensor: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    pairs = (
        text("general.architecture") + struct.pack("<I", _STRING) + text(architecture),
        text("general.alignment") + struct.pack("<II", _UINT32, _ALIGNMENT),
        text(f"{architecture}.context_length") + struct.pack("<II", _UINT32, context_length),
    )
    tensor = text("token_embd.weight") + struct.pack("<IQIQ", 1, 8, _F32, 0)
    header = struct.pack("<4sIQQ", b"GGUF", 3, 1, len(pairs)) + b"".join(pairs) + tensor
    padding = bytes(-len(header) % _ALIGNMENT)
    return header + padding + struct.pack("<8f", *range(8))
