"""A model as a whole, from the headers of all its files and from what lies beside them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from model_catalog.errors import BadHeaderError, NotAFileError, StoppedError, UnknownFormatError
from model_catalog.files.file_names import parse_shard_name
from model_catalog.files.formats.header_reader import Header, read_header
from model_catalog.files.model_config import read_config
from model_catalog.files.model_files import ModelFile, ModelFiles, find_model_files
from model_catalog.files.safe_open import ProtectedFiles, StrPath, errno_name

_PREFERRED_FORMATS: Final = ("safetensors", "gguf", "pickle")
_HEADER_FIELDS: Final = ("architecture", "quantization", "context_length", "license", "name")
_MAX_LISTED_NAMES: Final = 3


@dataclass(frozen=True)
class ModelDescription:
    """
    A model's files, what they claim of it together, and why it is not whole.

    `header` is None where no weights could be read; `reasons` are empty where all is there.
    """

    files: ModelFiles
    header: Header | None
    reasons: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        return self.files.size_bytes

    @property
    def is_complete(self) -> bool:
        return not self.reasons


def describe_model(
    path: StrPath, stop: Callable[[], bool] | None = None, *, protected: ProtectedFiles = ()
) -> ModelDescription:
    """
    What lies at a path, as one model; headers that cannot be read are among the reasons.

    The shards of a set are one; several files in a folder are taken for alternatives, of which is
    said what all of them claim; safetensors in several folders are parts of one. Where a folder
    holds several formats, the first of safetensors, GGUF and pickle is described. What the headers
    lack is taken from config.json. `stop` is asked before each file. Raises StoppedError and what
    `members` raises.
    """
    files = find_model_files(path, protected=protected)
    weights = [file for file in files.files if file.role == "weights"]
    # Projectors alone are what was asked for.
    weights = weights or [file for file in files.files if file.role == "projector"]
    reasons = list(files.problems)
    if files.missing:
        reasons.append(_missing_reason(files.missing))
    if not weights:
        reasons.append("there are no weights")

    headers: dict[str, Header] = {}
    for file in weights:
        if stop is not None and stop():
            raise StoppedError(f"the reading of {files.root!r} was stopped")
        try:
            headers[file.path] = read_header(f"{files.root}/{file.path}", protected=protected)
        except (BadHeaderError, NotAFileError, OSError) as error:
            if not isinstance(error, UnknownFormatError) or _has_format_suffix(file.path):
                reasons.append(f"{file.path!r} cannot be read: {_read_error_reason(error)}")
        else:
            reasons += _header_problems(file, headers[file.path])
    header = _combine_headers(files, headers)
    if header is not None and any(file.path == "config.json" for file in files.files):
        try:
            header = _with_config_values(header, f"{files.root}/config.json", protected)
        except (BadHeaderError, NotAFileError, OSError) as error:
            reasons.append(f"'config.json' cannot be read: {_read_error_reason(error)}")
    return ModelDescription(files, header, tuple(reasons))


def _combine_headers(files: ModelFiles, headers: Mapping[str, Header]) -> Header | None:
    found = {header.format for header in headers.values()}
    format_ = next((name for name in _PREFERRED_FORMATS if name in found), None)
    if format_ is None:
        return None
    headers = {path: header for path, header in headers.items() if header.format == format_}
    indexed: dict[str, list[str]] = {}
    for path in files.indexed:
        indexed.setdefault(path.rpartition("/")[0], []).append(path)
    folders: dict[str, dict[object, Collection[str]]] = {}
    for path in headers:
        folder, _, name = path.rpartition("/")
        sets = folders.setdefault(folder, {})
        shard = parse_shard_name(name)
        if any(each in headers for each in indexed.get(folder, ())):
            # Others beside them are the same weights once more, in another layout.
            sets["indexed"] = indexed.pop(folder)
        elif "indexed" in sets:
            continue
        elif shard is None:
            sets[name] = [path]
        elif shard[1] not in sets:
            sets[shard[1]] = [
                f"{folder}/{each}" if folder else each for each in shard[1].file_names()
            ]
    models = [
        _combine_alternatives([_combine_set(names, headers) for names in sets.values()])
        for sets in folders.values()
    ]
    return _combine_parts(models) if format_ == "safetensors" else _combine_alternatives(models)


def _combine_set(names: Collection[str], headers: Mapping[str, Header]) -> Header:
    """The files of one set, in order; what is not there may have had more of everything."""
    found = _combine_parts([headers[name] for name in sorted(names) if name in headers])
    if all(name in headers for name in names):
        return replace(found, shard_count=len(names) if len(names) > 1 else found.shard_count)
    return replace(
        found,
        parameter_count=None,
        expected_size_bytes=None,
        is_complete=False,
        shard_count=len(names),
    )


def _combine_parts(parts: Sequence[Header]) -> Header:
    """Parts of one model: the first that claims a thing is believed."""
    if len(parts) == 1:
        return parts[0]
    claims = {name: _first_known(getattr(part, name) for part in parts) for name in _HEADER_FIELDS}
    if parts[0].format == "safetensors":
        # No file has the type of all weights in it, and the first is as often as not the smallest.
        largest = max(parts, key=lambda part: part.parameter_count or 0)
        claims["quantization"] = largest.quantization
    return Header(
        format=parts[0].format,
        parameter_count=_sum_if_all_known([part.parameter_count for part in parts]),
        expected_size_bytes=_sum_if_all_known([part.expected_size_bytes for part in parts]),
        is_complete=_all_true([part.is_complete for part in parts]),
        unsafe=any(part.unsafe for part in parts),
        **claims,
    )


def _combine_alternatives(models: Sequence[Header]) -> Header:
    """Several that are each a model: only what all of them claim is true of whichever is meant."""
    if len(models) == 1:
        return models[0]
    claims: dict[str, Any] = {
        name: getattr(models[0], name)
        if len({getattr(model, name) for model in models}) == 1
        else None
        for name in (*_HEADER_FIELDS, "parameter_count")
    }
    return Header(
        format=models[0].format,
        expected_size_bytes=_sum_if_all_known([model.expected_size_bytes for model in models]),
        is_complete=_all_true([model.is_complete for model in models]),
        unsafe=any(model.unsafe for model in models),
        **claims,
    )


def _first_known(values: Iterable[Any]) -> Any:
    return next((value for value in values if value is not None), None)


def _sum_if_all_known(numbers: Sequence[int | None]) -> int | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if len(known) == len(numbers) else None


def _all_true(answers: Sequence[bool | None]) -> bool | None:
    if False in answers:
        return False
    return None if None in answers else True


def _with_config_values(header: Header, path: str, protected: ProtectedFiles) -> Header:
    config = read_config(path, protected=protected)
    filled = replace(
        header,
        architecture=header.architecture or config.architecture,
        context_length=header.context_length or config.context_length,
    )
    if header.format == "gguf":
        return filled
    # Packed weights are stored as whole numbers: their type says how wide a number is, not more.
    return replace(filled, quantization=config.quantization or header.quantization or config.dtype)


def _header_problems(file: ModelFile, header: Header) -> list[str]:
    found = []
    if header.is_complete is False:
        wanted = header.expected_size_bytes
        needed = "it ends too early" if wanted is None else f"{wanted} are needed"
        found.append(f"{file.path!r} has {file.size_bytes} bytes: {needed}")
    said = parse_shard_name(file.path.rpartition("/")[2])
    by_name = (1, 1) if said is None else (said[0], said[1].count)
    by_header = (header.shard_index, header.shard_count)
    if header.shard_count is not None and by_header != by_name:
        found.append(
            f"{file.path!r} is shard {by_header[0]} of {by_header[1]}, and by its name "
            f"{by_name[0]} of {by_name[1]}"
        )
    return found


def _has_format_suffix(path: str) -> bool:
    return path.lower().endswith((".gguf", ".safetensors"))


def _missing_reason(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_LISTED_NAMES} more" if len(names) > _MAX_LISTED_NAMES else ""
    return f"missing: {', '.join(names[:_MAX_LISTED_NAMES])}{more}"


def _read_error_reason(error: BadHeaderError | NotAFileError | OSError) -> str:
    if isinstance(error, BadHeaderError):
        return error.reason
    if isinstance(error, OSError):
        return errno_name(error)
    return f"it is {error.found}"
