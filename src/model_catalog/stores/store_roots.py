"""Find the folders in which other programs keep their models."""

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
"""The models of the service that Ollama's Linux installer sets up under a separate user."""

DOCKER_VOLUME: Final = "/var/lib/docker/volumes/docker-model-runner-models/_data"
"""The volume in which Docker Engine keeps the models of Docker Model Runner on Linux."""
RAMALAMA_OF_ROOT: Final = "/var/lib/ramalama/store"
"""The store of RamaLama for the user root."""

_POINTER_NAME: Final = ".lmstudio-home-pointer"
_MAX_POINTER_BYTES: Final = 4096
_MAX_SETTINGS_BYTES: Final = 1024 * 1024
_MAX_SETTINGS: Final = 10_000
_VARIABLE: Final = re.compile(r"\$(\w+|\{[^}]*\})")


@dataclass(frozen=True, slots=True)
class StoreRoot:
    """
    The folder of a store, which need not exist.

    `source` is the environment variable or the file that names the folder, or "default".
    """

    store: StoreName
    path: str
    source: str


def default_roots(
    environment: Mapping[str, str] | None = None,
    home_folder: StrPath | None = None,
    *,
    ollama_service: StrPath = OLLAMA_SERVICE,
    docker_volume: StrPath = DOCKER_VOLUME,
) -> tuple[StoreRoot, ...]:
    """
    Return the folders in which each program of this user keeps its models.

    The folders need not exist. They are in the order of `SCANNERS`. The paths are absolute, and no
    two lead to the same folder, even through links. `environment` and `home_folder` default to
    those of this process. Only the two files in which LM Studio records a moved folder are opened.
    Errors in these files are ignored, as LM Studio does.
    """
    variables = os.environ if environment is None else environment
    user = _UserEnvironment(
        variables, os.path.expanduser("~") if home_folder is None else os.fspath(home_folder)
    )
    seen: set[str] = set()
    roots = []
    for root in (
        _huggingface(user),
        *_ollama(user, os.fspath(ollama_service)),
        *_lmstudio(user),
        *_llamacpp(user),
        *_docker(user, os.fspath(docker_volume)),
        _ramalama(user),
        _modelscope(user),
        _kagglehub(user),
    ):
        real = os.path.realpath(root.path)
        if real not in seen:
            seen.add(real)
            roots.append(root)
    return tuple(roots)


@dataclass(frozen=True, slots=True)
class _UserEnvironment:
    """The environment variables and the home folder of a user."""

    variables: Mapping[str, str]
    home_folder: str

    def path(self, variable: str, *below: str) -> str | None:
        """Return the path in a variable as an absolute path. None if it is empty or not set."""
        text = self.variables.get(variable)
        if not text or "\0" in text:
            return None
        return os.path.abspath(os.path.join(self.expand(text), *below))

    def expand(self, text: str) -> str:
        """Expand variables and a leading `~` in a path, as each of the programs does."""
        return self.expand_home(_VARIABLE.sub(self._variable_value, text))

    def expand_home(self, text: str) -> str:
        """Expand a leading `~` in a path, and nothing else."""
        if text == "~" or text.startswith("~/"):
            return self.home_folder + text[1:]
        return text

    def _variable_value(self, match: re.Match[str]) -> str:
        return self.variables.get(match[1].strip("{}"), match[0])

    def below_home(self, *parts: str) -> str:
        """Return an absolute path below the home folder."""
        return os.path.abspath(os.path.join(self.home_folder, *parts))

    def first_root(
        self, store: StoreName, *candidates: tuple[str, tuple[str, ...]]
    ) -> StoreRoot | None:
        """Return the root named by the first variable that is set; each has a path below it."""
        for variable, below in candidates:
            if (path := self.path(variable, *below)) is not None:
                return StoreRoot(store, path, variable)
        return None


def _huggingface(user: _UserEnvironment) -> StoreRoot:
    return user.first_root(
        "huggingface",
        ("HF_HUB_CACHE", ()),
        ("HUGGINGFACE_HUB_CACHE", ()),
        ("HF_HOME", ("hub",)),
        ("XDG_CACHE_HOME", ("huggingface", "hub")),
    ) or StoreRoot("huggingface", user.below_home(".cache", "huggingface", "hub"), "default")


def _ollama(user: _UserEnvironment, service: str) -> Iterator[StoreRoot]:
    yield from _unquoted_root(user, "ollama", "OLLAMA_MODELS", (".ollama", "models"))
    if sys.platform == "linux":
        yield StoreRoot("ollama", service, "default")


def _docker(user: _UserEnvironment, volume: str) -> Iterator[StoreRoot]:
    yield from _unquoted_root(user, "docker", "MODELS_PATH", (".docker", "models"))
    if sys.platform == "linux":
        yield StoreRoot("docker", volume, "default")


def _ramalama(user: _UserEnvironment) -> StoreRoot:
    # `get_default_store` in ramalama/config.py. An empty RAMALAMA_STORE is the working directory of
    # each command, and no folder that can be known here.
    text = user.variables.get("RAMALAMA_STORE")
    if text and "\0" not in text:
        return StoreRoot("ramalama", os.path.abspath(os.path.join(text, "store")), "RAMALAMA_STORE")
    if os.geteuid() == 0:
        return StoreRoot("ramalama", RAMALAMA_OF_ROOT, "default")
    return user.first_root("ramalama", ("XDG_DATA_HOME", ("ramalama", "store"))) or StoreRoot(
        "ramalama", user.below_home(".local", "share", "ramalama", "store"), "default"
    )


def _modelscope(user: _UserEnvironment) -> StoreRoot:
    # `HubConfig` in modelscope_hub/config.py, and `_sync_config` in modelscope/hub/__init__.py
    for variable in ("MODELSCOPE_CACHE", "MS_CACHE_HOME"):
        text = user.variables.get(variable)
        if text and "\0" not in text:
            return StoreRoot("modelscope", os.path.abspath(user.expand_home(text)), variable)
    return StoreRoot("modelscope", user.below_home(".cache", "modelscope"), "default")


def _kagglehub(user: _UserEnvironment) -> StoreRoot:
    # `get_cache_folder` in kagglehub/config.py. An empty variable is the working directory of each
    # process, and no folder that can be known here.
    text = user.variables.get("KAGGLEHUB_CACHE")
    if text and "\0" not in text:
        return StoreRoot("kagglehub", os.path.abspath(text), "KAGGLEHUB_CACHE")
    return StoreRoot("kagglehub", user.below_home(".cache", "kagglehub"), "default")


def _unquoted_root(
    user: _UserEnvironment, store: StoreName, variable: str, default: tuple[str, ...]
) -> Iterator[StoreRoot]:
    """
    Yield the root in a variable, or else the default below the home folder.

    Ollama and Docker Model Runner (`Var` in `envconfig`) remove white space and quotes around the
    path, because `docker run --env-file` passes quotes on. They expand neither `~` nor variables.
    """
    text = user.variables.get(variable, "").strip().strip("\"'")
    if text and "\0" not in text:
        yield StoreRoot(store, os.path.abspath(text), variable)
    else:
        yield StoreRoot(store, user.below_home(*default), "default")


def _lmstudio(user: _UserEnvironment) -> Iterator[StoreRoot]:
    pointer = user.below_home(_POINTER_NAME)
    pointed = user.expand(_read_first_line(pointer))
    if os.path.isabs(pointed) and os.path.isdir(pointed):
        folders = [(os.path.abspath(pointed), pointer)]
    else:
        folders = [
            (user.below_home(".lmstudio"), "default"),
            (user.below_home(".cache", "lm-studio"), "default"),
        ]
    for folder, source in folders:
        settings = f"{folder}/settings.json"
        downloads = user.expand(_read_downloads_folder(settings))
        if os.path.isabs(downloads):
            yield StoreRoot("lmstudio", os.path.abspath(downloads), settings)
        else:
            yield StoreRoot("lmstudio", f"{folder}/models", source)


def _llamacpp(user: _UserEnvironment) -> Iterator[StoreRoot]:
    if (root := user.first_root("llamacpp", ("LLAMA_CACHE", ()))) is not None:
        yield root
    elif sys.platform == "darwin":
        yield StoreRoot("llamacpp", user.below_home("Library", "Caches", "llama.cpp"), "default")
    else:
        yield user.first_root("llamacpp", ("XDG_CACHE_HOME", ("llama.cpp",))) or StoreRoot(
            "llamacpp", user.below_home(".cache", "llama.cpp"), "default"
        )


def _read_first_line(path: str) -> str:
    """Return the first line of a short file, or "" if it cannot be read."""
    try:
        with open_regular_file(path) as file:
            text = file.read_at(0, _MAX_POINTER_BYTES).decode()
    except (CatalogError, OSError, ValueError):
        return ""
    return text.strip().partition("\n")[0].strip()


def _read_downloads_folder(path: str) -> str:
    """Return the downloads folder in LM Studio's settings, or "" if there is none."""
    folder: object = None
    try:
        with open_regular_file(path) as file:
            if file.size_bytes > _MAX_SETTINGS_BYTES:
                return ""
            stream = JsonStream(file, 0, file.size_bytes)
            for name in stream.members(_MAX_SETTINGS):
                value = stream.value()
                if name == "downloadsFolder":
                    folder = value
    except (CatalogError, OSError):
        return ""
    return folder if isinstance(folder, str) and "\0" not in folder else ""
