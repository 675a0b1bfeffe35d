"""Where on this machine the programs keep their models, by each one's own rules."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from model_catalog.errors import CatalogError
from model_catalog.files.formats.json_stream import JsonStream
from model_catalog.files.safe_open import StrPath, open_regular_file
from model_catalog.stores.scan_result import StoreName

OLLAMA_SERVICE: Final = "/usr/share/ollama/.ollama/models"
"""Where the service keeps them that Ollama's installer for Linux sets up, as a user of its own."""

_POINTER_NAME: Final = ".lmstudio-home-pointer"
_MAX_POINTER_BYTES: Final = 4096
_MAX_SETTINGS_BYTES: Final = 1024 * 1024
_MAX_SETTINGS: Final = 10_000
_VARIABLE: Final = re.compile(r"\$(\w+|\{[^}]*\})")


@dataclass(frozen=True, slots=True)
class StoreRoot:
    """Where a store lies, or would; `source` is the variable or file that says so, or "default"."""

    store: StoreName
    path: str
    source: str


def default_roots(
    environment: Mapping[str, str] | None = None,
    home: StrPath | None = None,
    *,
    ollama_service: StrPath = OLLAMA_SERVICE,
) -> tuple[StoreRoot, ...]:
    """
    Where each program of this user keeps its models, whether there are any or not.

    In the order of `SCANNERS`; the paths are absolute, and none is there twice, by whatever links
    it is reached. `environment` is that of this process if it is not given, as is `home`. Nothing
    is opened but the two files in which LM Studio says where it has moved; what is wrong with
    those is passed over, as LM Studio does.
    """
    variables = os.environ if environment is None else environment
    place = _Environment(variables, os.path.expanduser("~") if home is None else os.fspath(home))
    seen: set[str] = set()
    found = []
    for root in (
        _huggingface(place),
        *_ollama(place, os.fspath(ollama_service)),
        *_lmstudio(place),
        *_llamacpp(place),
    ):
        real = os.path.realpath(root.path)
        if real not in seen:
            seen.add(real)
            found.append(root)
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Environment:
    variables: Mapping[str, str]
    home: str

    def path(self, variable: str, *below: str) -> str | None:
        """The path in a variable, made absolute; None where it is empty or not set."""
        text = self.variables.get(variable)
        if not text or "\0" in text:
            return None
        return os.path.abspath(os.path.join(self.expanded(text), *below))

    def expanded(self, text: str) -> str:
        """A path of which `~` and variables are written out, as each program does it."""
        text = _VARIABLE.sub(self._value, text)
        if text == "~" or text.startswith("~/"):
            return self.home + text[1:]
        return text

    def _value(self, match: re.Match[str]) -> str:
        return self.variables.get(match[1].strip("{}"), match[0])

    def below_home(self, *parts: str) -> str:
        return os.path.abspath(os.path.join(self.home, *parts))

    def first(self, store: StoreName, *places: tuple[str, tuple[str, ...]]) -> StoreRoot | None:
        """The first of some variables that is set, each with what follows it."""
        for variable, below in places:
            if (path := self.path(variable, *below)) is not None:
                return StoreRoot(store, path, variable)
        return None


def _huggingface(place: _Environment) -> StoreRoot:
    return place.first(
        "huggingface",
        ("HF_HUB_CACHE", ()),
        ("HUGGINGFACE_HUB_CACHE", ()),
        ("HF_HOME", ("hub",)),
        ("XDG_CACHE_HOME", ("huggingface", "hub")),
    ) or StoreRoot("huggingface", place.below_home(".cache", "huggingface", "hub"), "default")


def _ollama(place: _Environment, service: str) -> Iterator[StoreRoot]:
    own = place.first("ollama", ("OLLAMA_MODELS", ()))
    yield own or StoreRoot("ollama", place.below_home(".ollama", "models"), "default")
    if sys.platform == "linux":
        yield StoreRoot("ollama", service, "default")


def _lmstudio(place: _Environment) -> Iterator[StoreRoot]:
    pointer = place.below_home(_POINTER_NAME)
    pointed = place.expanded(_read_first_line(pointer))
    if os.path.isabs(pointed) and os.path.isdir(pointed):
        homes = [(os.path.abspath(pointed), pointer)]
    else:
        homes = [
            (place.below_home(".lmstudio"), "default"),
            (place.below_home(".cache", "lm-studio"), "default"),
        ]
    for home, source in homes:
        settings = f"{home}/settings.json"
        moved = place.expanded(_read_downloads_folder(settings))
        if os.path.isabs(moved):
            yield StoreRoot("lmstudio", os.path.abspath(moved), settings)
        else:
            yield StoreRoot("lmstudio", f"{home}/models", source)


def _llamacpp(place: _Environment) -> Iterator[StoreRoot]:
    if (root := place.first("llamacpp", ("LLAMA_CACHE", ()))) is not None:
        yield root
    elif sys.platform == "darwin":
        yield StoreRoot("llamacpp", place.below_home("Library", "Caches", "llama.cpp"), "default")
    else:
        yield place.first("llamacpp", ("XDG_CACHE_HOME", ("llama.cpp",))) or StoreRoot(
            "llamacpp", place.below_home(".cache", "llama.cpp"), "default"
        )


def _read_first_line(path: str) -> str:
    """The first line of a short file, or nothing."""
    try:
        with open_regular_file(path) as file:
            text = file.read_at(0, _MAX_POINTER_BYTES).decode()
    except (CatalogError, OSError, ValueError):
        return ""
    return text.strip().partition("\n")[0].strip()


def _read_downloads_folder(path: str) -> str:
    """The folder for downloads in LM Studio's settings, or nothing."""
    found: object = None
    try:
        with open_regular_file(path) as file:
            if file.size_bytes > _MAX_SETTINGS_BYTES:
                return ""
            stream = JsonStream(file, 0, file.size_bytes)
            for name in stream.members(_MAX_SETTINGS):
                value = stream.value()
                if name == "downloadsFolder":
                    found = value
    except (CatalogError, OSError):
        return ""
    return found if isinstance(found, str) and "\0" not in found else ""
