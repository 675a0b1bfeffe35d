"""Describe a model from its files, the headers of its weights and its config.json."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from model_catalog.errors import BadHeaderError, NotAFileError, StoppedError, UnknownFormatError
from model_catalog.files.file_names import WEIGHT_ROLES, parse_shard_name
from model_catalog.files.formats import safetensors
from model_catalog.files.formats.header_reader import Header, read_header
from model_catalog.files.formats.tensors import packed_weights
from model_catalog.files.model_config import read_config
from model_catalog.files.model_files import ModelFile, ModelFiles, find_model_files
from model_catalog.files.safe_open import ProtectedFiles, StrPath, errno_name

_PREFERRED_FORMATS: Final = ("safetensors", "gguf", "pickle")
_HEADER_FIELDS: Final = (
    "architecture",
    "quantization",
    "context_length",
    "license",
    "name",
    "general_type",
)
_INTEGER_TYPES: Final = ("U8", "I8", "I16", "U16", "I64", "U64")
_MAX_LISTED_NAMES: Final = 3


@dataclass(frozen=True)
class ModelDescription:
    """
    The files of a model, the combined header of its weights, and why it is incomplete.

    The headers of the shards of a model are added up. If a folder contains alternative models,
    `header` has only the values that all of them share. It is None if no weights could be read.
    `reasons` is empty if the model is complete.
    """

    files: ModelFiles
    header: Header | None
    reasons: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        """The size of all files. A file with several names is counted once."""
        return self.files.size_bytes

    @property
    def is_complete(self) -> bool:
        """Whether there is no reason to consider the model incomplete."""
        return not self.reasons


def describe_model(
    path: StrPath, stop: Callable[[], bool] | None = None, *, protected: ProtectedFiles = ()
) -> ModelDescription:
    """
    Describe the model at a path, which is a file or a folder.

    The shards of a set count as one model. Several files in one folder count as alternatives: the
    header contains only the values that all of them share. Safetensors files in several folders
    count as parts of one model. If a folder contains several formats, the first of safetensors,
    GGUF and pickle is described. Values that the headers lack are taken from config.json. A header
    that cannot be read becomes one of the reasons. `stop` is called before each file; if it
    returns True, StoppedError is raised. Raises the errors of `find_model_files`.
    """
    return describe_files(find_model_files(path, protected=protected), stop, protected=protected)


def describe_files(
    files: ModelFiles, stop: Callable[[], bool] | None = None, *, protected: ProtectedFiles = ()
) -> ModelDescription:
    """Describe a model from the files that were found, as `describe_model` does."""
    weights = [file for file in files.files if file.role == "weights"]
    # A folder or a file may hold nothing but an adapter, a projector or a draft.
    weights = weights or [file for file in files.files if file.role in WEIGHT_ROLES]
    reasons = list(files.problems)
    if files.missing:
        reasons.append(_missing_reason(files.missing))
    if not weights:
        reasons.append("no weights were found")

    headers: dict[str, Header] = {}
    for file in weights:
        if stop is not None and stop():
            raise StoppedError(f"reading of {files.root!r} was stopped at the caller's request")
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
    """Combine the headers of all weights, by path, into one header of the model."""
    formats = {header.format for header in headers.values()}
    format_ = next((name for name in _PREFERRED_FORMATS if name in formats), None)
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
            # Other files in this folder contain the same weights in another layout.
            sets["indexed"] = indexed.pop(folder)
        elif "indexed" in sets:
            continue
        elif shard is None:
            sets[name] = [path]
        elif shard[1] not in sets:
            names = shard[1].file_names()
            sets[shard[1]] = [f"{folder}/{each}" if folder else each for each in names]
    models = [
        _combine_alternatives([_combine_set(paths, headers) for paths in sets.values()])
        for sets in folders.values()
    ]
    return _combine_parts(models) if format_ == "safetensors" else _combine_alternatives(models)


def _combine_set(paths: Collection[str], headers: Mapping[str, Header]) -> Header:
    """
    Combine the headers of one set of files, in path order.

    If a file of the set is missing, the totals are unknown, and the set is incomplete.
    """
    combined = _combine_parts([headers[path] for path in sorted(paths) if path in headers])
    if all(path in headers for path in paths):
        shard_count = len(paths) if len(paths) > 1 else combined.shard_count
        return replace(combined, shard_count=shard_count)
    return replace(
        combined,
        tensor_counts=None,
        parameter_count=None,
        expected_size_bytes=None,
        is_complete=False,
        shard_count=len(paths),
    )


def _combine_parts(parts: Sequence[Header]) -> Header:
    """Combine the headers of parts of one model. The first part that has a value provides it."""
    if len(parts) == 1:
        return parts[0]
    values = {name: _first_known(getattr(part, name) for part in parts) for name in _HEADER_FIELDS}
    parameters = _sum_if_all_known([part.parameter_count for part in parts])
    counts = None
    if all(part.tensor_counts is not None for part in parts):
        # A part states only the types of its own weights, and the first part is often the
        # smallest.
        counts = packed_weights.merge_counts(part.tensor_counts or () for part in parts)
        values["quantization"] = safetensors.quantization(counts)
        parameters = packed_weights.count_parameters(counts, None)
    return Header(
        format=parts[0].format,
        tensor_counts=counts,
        parameter_count=parameters,
        expected_size_bytes=_sum_if_all_known([part.expected_size_bytes for part in parts]),
        is_complete=_all_true([part.is_complete for part in parts]),
        unsafe=any(part.unsafe for part in parts),
        **values,
    )


def _combine_alternatives(models: Sequence[Header]) -> Header:
    """Combine the headers of alternative models. Only values that all of them share are kept."""
    if len(models) == 1:
        return models[0]
    values: dict[str, Any] = {
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
        **values,
    )


def _first_known(values: Iterable[Any]) -> Any:
    return next((value for value in values if value is not None), None)


def _sum_if_all_known(numbers: Sequence[int | None]) -> int | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if len(known) == len(numbers) else None


def _all_true(answers: Sequence[bool | None]) -> bool | None:
    """Return False if any answer is False, else None if any is None, else True."""
    if False in answers:
        return False
    return None if None in answers else True


def _with_config_values(header: Header, path: str, protected: ProtectedFiles) -> Header:
    """Return the header with the values that only config.json states."""
    config = read_config(path, protected=protected)
    completed = replace(
        header,
        architecture=header.architecture or config.architecture,
        context_length=header.context_length or config.context_length,
    )
    if header.format == "gguf":
        return completed
    # Quantized weights are packed into integers. The type in the header is only the width of such
    # an integer, so the quantization in config.json has priority.
    quantization = config.quantization or header.quantization
    if quantization is None and not header.tensor_counts:
        quantization = config.dtype
    return replace(
        completed,
        quantization=quantization,
        parameter_count=_parameter_count(header, config.packing),
    )


def _parameter_count(header: Header, packing: packed_weights.Packing | None) -> int | None:
    """Return the parameters of the model, not of the words into which they are packed."""
    counts = header.tensor_counts
    if counts is None or packing is None:
        return header.parameter_count
    is_known = packed_weights.packing_method(counts) is not None
    if not is_known and packed_weights.main_dtype(counts) in _INTEGER_TYPES:
        # The weights are packed in a way that this module does not know.
        return None
    return packed_weights.count_parameters(counts, packing)


def _header_problems(file: ModelFile, header: Header) -> list[str]:
    """Return the contradictions between a header and the size and the name of its file."""
    problems = []
    if header.is_complete is False:
        needed_bytes = header.expected_size_bytes
        needed = "it is truncated" if needed_bytes is None else f"{needed_bytes} are needed"
        if needed_bytes is not None and file.size_bytes > needed_bytes:
            needed = f"{file.size_bytes - needed_bytes} follow the last tensor"
        problems.append(f"{file.path!r} has {file.size_bytes} bytes: {needed}")
    shard = parse_shard_name(file.path.rpartition("/")[2])
    by_name = (1, 1) if shard is None else (shard[0], shard[1].count)
    by_header = (header.shard_index, header.shard_count)
    if header.shard_count is not None and by_header != by_name:
        problems.append(
            f"the header of {file.path!r} says shard {by_header[0]} of {by_header[1]}, and its "
            f"name says {by_name[0]} of {by_name[1]}"
        )
    return problems


def _has_format_suffix(path: str) -> bool:
    return path.lower().endswith((".gguf", ".safetensors"))


def _missing_reason(names: Sequence[str]) -> str:
    more = len(names) - _MAX_LISTED_NAMES
    suffix = f" and {more} more" if more > 0 else ""
    return f"missing: {', '.join(names[:_MAX_LISTED_NAMES])}{suffix}"


def _read_error_reason(error: BadHeaderError | NotAFileError | OSError) -> str:
    if isinstance(error, BadHeaderError):
        return error.reason
    if isinstance(error, OSError):
        return errno_name(error)
    return f"it is {error.found}"
