"""Find the folders in which other programs keep their models."""

from __future__ import annotations

import os
import re
import stat
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


def is_own_folder(path: str) -> bool:
    """Return whether a path is a folder, or a link of this user or root to one."""
    try:
        status = os.lstat(path)
    except (OSError, ValueError):
        return False
    return stat.S_ISDIR(status.st_mode) or (_is_own(status) and os.path.isdir(path))


def is_lmstudio_home(path: str) -> bool:
    """Return whether a folder is the one that LM Studio keeps its settings and models in."""
    has_internal = os.path.isdir(os.path.join(path, ".internal"))
    return is_own_folder(lmstudio_models(path)) and (
        has_internal or _read_downloads_folder(os.path.join(path, "settings.json")) != ""
    )


def lmstudio_models(folder: str) -> str:
    """Return the models folder of LM Studio, which its settings can move."""
    downloads = _read_downloads_folder(os.path.join(folder, "settings.json"))
    return os.path.abspath(downloads or os.path.join(folder, "models"))


def _is_own(status: os.stat_result) -> bool:
    return status.st_uid in {0, os.geteuid()}


@dataclass(frozen=True, slots=True)
class _UserEnvironment:
    """The environment variables and the home folder of a user."""

    variables: Mapping[str, str]
    home_folder: str

    def get(self, variable: str, default: str) -> tuple[str, str]:
        """Return the value of a variable and its name; for one that is not set, the default."""
        text = self.variables.get(variable)
        return (default, "default") if text is None or "\0" in text else (text, variable)

    def expand(self, text: str) -> str:
        """Expand a leading `~` and then variables, as huggingface_hub does."""
        if text.startswith("~") and not text.startswith("~/"):
            text = os.path.expanduser(text) if text != "~" else self.home_folder
        return _VARIABLE.sub(self._variable_value, self.expand_home(text))

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
        """
        Return the root named by the first variable that is not empty; each has a path below it.

        Nothing in the value is expanded.
        """
        for variable, below in candidates:
            text = self.variables.get(variable)
            if text and "\0" not in text:
                return StoreRoot(store, os.path.abspath(os.path.join(text, *below)), variable)
        return None


def _huggingface(user: _UserEnvironment) -> StoreRoot:
    """
    Return the cache of huggingface_hub 2.4 (`constants.py`).

    A variable that is set to nothing counts as set. Its path is relative to the working directory.
    """
    cache_home, cache_source = user.get("XDG_CACHE_HOME", user.below_home(".cache"))
    hf_home, home_source = user.get("HF_HOME", os.path.join(cache_home, "huggingface"))
    old, old_source = user.get("HUGGINGFACE_HUB_CACHE", os.path.join(user.expand(hf_home), "hub"))
    path, source = user.get("HF_HUB_CACHE", old)
    sources = (source, old_source, home_source, cache_source)
    named = next((each for each in sources if each != "default"), "default")
    return StoreRoot("huggingface", os.path.abspath(user.expand(path)), named)


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
    text = user.variables.get("XDG_DATA_HOME")
    if text and "\0" not in text:
        path = os.path.join(user.expand_home(text), "ramalama", "store")
        return StoreRoot("ramalama", os.path.abspath(path), "XDG_DATA_HOME")
    return StoreRoot("ramalama", user.below_home(".local", "share", "ramalama", "store"), "default")


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
    """
    Yield the models folders of LM Studio (`findLMStudioHome` of lmstudio.js a88421d).

    The pointer file names its folder. Without one, LM Studio uses an existing ~/.cache/lm-studio,
    and otherwise ~/.lmstudio. A `~` in these files is not expanded (`importCmd.ts` of lms 07b7252).
    A relative path is ignored, because the working directory of LM Studio is not known.
    """
    pointer = user.below_home(_POINTER_NAME)
    pointed = _read_first_line(pointer)
    if os.path.isabs(pointed):
        folders = [(os.path.abspath(pointed), pointer)]
    else:
        folders = [
            (user.below_home(".lmstudio"), "default"),
            (user.below_home(".cache", "lm-studio"), "default"),
        ]
    for folder, source in folders:
        models = lmstudio_models(folder)
        settings = os.path.join(folder, "settings.json")
        is_moved = _read_downloads_folder(settings) != ""
        yield StoreRoot("lmstudio", models, settings if is_moved else source)


def _llamacpp(user: _UserEnvironment) -> Iterator[StoreRoot]:
    """
    Yield the caches of llama.cpp, which expands nothing and skips empty variables.

    Since spring 2026 that is the cache of huggingface_hub (`common/hf-cache.cpp` at 03eb25f). The
    older folder stays where it is (`fs_get_cache_directory` in `common/common.cpp` at 00758e0).
    """
    if (root := user.first_root("llamacpp", ("LLAMA_CACHE", ()))) is not None:
        yield root
        return
    yield user.first_root(
        "llamacpp",
        ("HF_HUB_CACHE", ()),
        ("HUGGINGFACE_HUB_CACHE", ()),
        ("HF_HOME", ("hub",)),
        ("XDG_CACHE_HOME", ("huggingface", "hub")),
    ) or StoreRoot("llamacpp", user.below_home(".cache", "huggingface", "hub"), "default")
    if sys.platform == "darwin":
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
    line = text.strip().partition("\n")[0].strip()
    return "" if "\0" in line else line


def _read_downloads_folder(path: str) -> str:
    """
    Return the downloads folder in LM Studio's settings, or "" if there is none.

    Settings of another user than this one and root are ignored. So is a relative path.
    """
    folder: object = None
    try:
        with open_regular_file(path) as file:
            if file.size_bytes > _MAX_SETTINGS_BYTES or not _is_own(file.status):
                return ""
            stream = JsonStream(file, 0, file.size_bytes)
            for name in stream.members(_MAX_SETTINGS):
                value = stream.value()
                if name == "downloadsFolder":
                    folder = value
    except (CatalogError, OSError, ValueError):
        return ""
    is_path = isinstance(folder, str) and "\0" not in folder and os.path.isabs(folder)
    return str(folder) if is_path else ""
