"""
Target scans of plain folders: each file belongs to a model, is a leftover, or is counted.

A scan raises nothing, opens nothing outside, and gives the same models the second time. No two
models have the same name, and all files of a model exist.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from hypothesis import strategies as st

from fuzz.resource_limits import limited_resources
from model_catalog.files.file_names import is_system_file
from model_catalog.stores import Scan
from model_catalog.stores.scanners import directory

IS_RAW: Final = True
_MAX_FILES: Final = 40
_FOLDERS: Final = (
    *("", "", "a", "b", "Q4", "models", "llamacpp/models", "user_data/models", "user_data/loras"),
    *("models/loras", "models/checkpoints", "llama-cpp/mmproj", "x.mlpackage", "unet", "scheduler"),
    *(".cache/huggingface/download", ".cache/huggingface/trees", ".hidden", "variables"),
)
_STEMS: Final = (
    *("m", "model", "mmproj", "mmproj-m", "mtp-m", "imatrix", "config", "model_index", "modules"),
    *("adapter_config", "saved_model", "tokenizer", "m-00001-of-00002", "m-00002-of-00002", "ä"),
    *("m-00000-of-99999", "optimizer", "training_args", "m.data-00000-of-00001", "lora-m"),
    *("m.safetensors", "incomplete-m", "README", "\udcff", "\x1b"),
    f"Dr_lZJDwE1cnGAQMwA77jJEQIk8=.{'a' * 64}",
)
_ENDINGS: Final = (
    *(".gguf", ".safetensors", ".ckpt", ".pt", ".pth", ".sft", ".bin", ".onnx", ".onnx_data"),
    *(".onnx.data", ".xml", ".json", ".index", ".pb", ".pdmodel", ".pdiparams", ".yml", ".part"),
    *(".incomplete", ".lock", ".metadata", ".GGUF", ".txt", "", ".gguf.aria2", ".tflite", ".tmp"),
    ".index.json",
)
SEEDS: Final = (
    b"x/m.onnx\nx/weights\nx/other",
    b"llamacpp/models/a/model.gguf\nllamacpp/models/a/mmproj.gguf\nmmproj.gguf",
    b"@link.gguf\n+hard.ckpt\nm.gguf",
)


def _mutate(choice: random.Random) -> bytes:
    """Return the paths of a tree, one a line. `@` and `+` make links to the first one."""
    lines = []
    for _ in range(choice.randint(1, choice.choice([3, 10, _MAX_FILES]))):
        folders = [choice.choice(_FOLDERS) for _ in range(choice.choice([1, 1, 2]))]
        name = choice.choice(_STEMS) + choice.choice(_ENDINGS)
        path = "/".join([*(folder for folder in folders if folder), name])
        lines.append(choice.choice(["", "", "", "", "", "", "@", "+"]) + path)
    return "\n".join(lines).encode("utf-8", "surrogateescape")


INPUTS: Final = st.integers(0, 2**64 - 1).map(random.Random).map(_mutate)


@contextmanager
def open_check() -> Iterator[Callable[[bytes], str]]:
    # In memory, because a disk is slow.
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        root = Path(folder).resolve() / "root"

        def check(raw: bytes) -> str:
            shutil.rmtree(root, ignore_errors=True)
            root.mkdir()
            has_links = _make_tree(root, raw)
            return _check(root, has_links=has_links)

        yield check


def _make_tree(root: Path, raw: bytes) -> bool:
    """Make the files that lines name; return whether one of them has another name."""
    first: Path | None = None
    has_links = False
    for line in raw.decode("utf-8", "surrogateescape").split("\n")[:_MAX_FILES]:
        flag, name = (line[:1], line[1:]) if line.startswith(("@", "+")) else ("", line)
        parts = [part for part in name.split("/") if part not in {"", ".", ".."}]
        if not parts or "\0" in name:
            continue
        path = root.joinpath(*parts)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if flag == "@" and first is not None:
                path.symlink_to(first)
                has_links = True
            elif flag == "+" and first is not None:
                path.hardlink_to(first)
                has_links = True
            else:
                path.write_bytes(b"GGUF" + bytes(len(parts)))
                first = first or path
        except OSError:
            # The name is taken, too long, or that of a file above it.
            continue
    return has_links


def _check(root: Path, *, has_links: bool) -> str:
    with limited_resources():
        scanned = directory.scan(root)
    assert directory.scan(root) == scanned
    assert len({model.reference for model in scanned.found}) == len(scanned.found)
    for model in scanned.found:
        assert f"{model.local_path}/".startswith(f"{root}/")
        assert len({file.path for file in model.files}) == len(model.files)
        assert all(Path(model.folder, file.path).is_file() for file in model.files)
    if scanned.problems:
        return "problems"
    if not has_links:
        _require_all_files(root, scanned)
    return "models" if scanned.found else "no models"


def _require_all_files(root: Path, scanned: Scan) -> None:
    """Require that each file is one of a model, a leftover, or counted."""
    known = {f"{model.folder}/{file.path}" for model in scanned.found for file in model.files}
    known |= {leftover.path for leftover in scanned.leftovers}
    others = {
        str(path)
        for path in root.rglob("*")
        if path.is_file()
        and not path.is_symlink()
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
        and not is_system_file(path.name)
    } - known
    assert scanned.passed_over.file_count == len(others), sorted(others)
