"""Describe a model from its files, the headers of its weights and its config.json."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from model_catalog.errors import (
    BadHeaderError,
    NotAFileError,
    PlaceholderError,
    StoppedError,
    UnknownFormatError,
)
from model_catalog.files.completeness.evidence import (
    Completeness,
    FileFacts,
    ReadEvidence,
    ReadFailure,
)
from model_catalog.files.completeness.judge import indexed_paths, judge, shard_numbers
from model_catalog.files.completeness.needed_files import VOCABULARIES
from model_catalog.files.file_names import WEIGHT_ROLES, is_digest_name, parse_shard_name
from model_catalog.files.formats import safetensors
from model_catalog.files.formats.header_reader import Header, read_header, refuse_placeholder
from model_catalog.files.formats.tensors import packed_weights
from model_catalog.files.formats.unread_formats import (
    FORMAT_LABELS,
    POINTER_BYTES,
    UNKNOWN,
    format_of_name,
)
from model_catalog.files.model_config import read_config
from model_catalog.files.model_files import (
    ModelFile,
    ModelFiles,
    find_model_files,
    read_indexes,
)
from model_catalog.files.safe_open import ProtectedFiles, StrPath

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
# The opening of each small file would double the time of a first scan. So only files of these sizes
# are opened to see what stands in their place: those of pointers, and vocabularies up to this one.
_MAX_WEB_PAGE_BYTES: Final = 1024 * 1024


@dataclass(frozen=True)
class ModelDescription:
    """
    The files of a model, the combined header of its weights, and why it is incomplete.

    The headers of the shards of a model are added up. If a folder contains alternative models,
    `header` has only the values that all of them share. It is None if no weights could be read.
    `completeness` is the verdict of the judge. `pointers` are the files that are pointers of Git
    LFS, with the digests that these name.
    """

    files: ModelFiles
    header: Header | None
    completeness: Completeness
    pointers: Mapping[str, str] = field(default_factory=dict)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the model is incomplete; empty if no reason is known."""
        return self.completeness.reasons

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
    indexes = files.indexes
    if indexes is None:
        indexes = read_indexes(files.root, [file.path for file in files.files], protected)
    paths = {file.path for file in files.files}
    results = {
        file.path: _read_header(files, file, paths, protected)
        for file in _weights(files)
        if not _is_stopped(files, stop)
    }
    headers = {path: each for path, each in results.items() if isinstance(each, Header)}
    failures = _find_placeholders(files, protected)
    header = _combine_headers(headers, indexed_paths(paths, indexes))
    if header is None:
        header = _header_of_unread(results)
    if header is not None and "config.json" in paths:
        try:
            header = _with_config_values(header, f"{files.root}/config.json", protected)
        except (BadHeaderError, NotAFileError, OSError) as error:
            failures["config.json"] = ReadFailure.from_error(error)
    read = ReadEvidence(headers=results, indexes=indexes, failures=failures)
    pointers = {
        path: result.digest
        for path, result in {**results, **failures}.items()
        if isinstance(result, ReadFailure) and result.digest is not None
    }
    return ModelDescription(files, header, judge(files.files, files.evidence, read), pointers)


def _weights(files: ModelFiles) -> list[ModelFile]:
    weights = [file for file in files.files if file.role == "weights"]
    # A folder or a file may hold nothing but an adapter, a projector or a draft.
    return weights or [file for file in files.files if file.role in WEIGHT_ROLES]


def _is_stopped(files: ModelFiles, stop: Callable[[], bool] | None) -> bool:
    if stop is not None and stop():
        raise StoppedError(f"reading of {files.root!r} was stopped at the caller's request")
    return False


def _read_header(
    files: ModelFiles, file: ModelFile, paths: Collection[str], protected: ProtectedFiles
) -> Header | ReadFailure:
    try:
        return read_header(f"{files.root}/{file.path}", protected=protected)
    except UnknownFormatError as error:
        format_ = error.format or format_of_name(file.path, paths) or UNKNOWN
        is_damage = _has_format_suffix(file.path) or file.size_bytes == 0
        return ReadFailure(error.reason, is_damage=is_damage, format=format_)
    except (BadHeaderError, NotAFileError, OSError) as error:
        return ReadFailure.from_error(error)


def may_be_placeholder(file: FileFacts) -> bool:
    """Return whether a config or a tokenizer is opened to see whether it is the file itself."""
    if file.role not in {"config", "tokenizer"}:
        return False
    is_vocabulary = file.path.rpartition("/")[2] in VOCABULARIES
    return file.size_bytes in POINTER_BYTES or (
        is_vocabulary and file.size_bytes <= _MAX_WEB_PAGE_BYTES
    )


def _find_placeholders(files: ModelFiles, protected: ProtectedFiles) -> dict[str, ReadFailure]:
    """Return the configs and tokenizers that are pointers of Git LFS or web pages."""
    failures = {}
    for file in files.files:
        if not may_be_placeholder(file):
            continue
        try:
            refuse_placeholder(f"{files.root}/{file.path}", protected=protected)
        except PlaceholderError as error:
            failures[file.path] = ReadFailure.from_error(error)
        except (NotAFileError, OSError):
            # A file that is needed here is read by another function, which reports the error.
            continue
    return failures


def _header_of_unread(results: Mapping[str, Header | ReadFailure]) -> Header | None:
    """Return a header that states only the format of weights that are not read."""
    formats = {
        result.format
        for result in results.values()
        if isinstance(result, ReadFailure) and not result.is_damage
    }
    known = next((name for name in FORMAT_LABELS if name in formats), None)
    return None if known is None else Header(format=known)


def _combine_headers(
    headers: Mapping[str, Header], indexes: Mapping[str, Sequence[str]]
) -> Header | None:
    """Combine the headers of all weights, by path, into one header of the model."""
    formats = {header.format for header in headers.values()}
    format_ = next((name for name in _PREFERRED_FORMATS if name in formats), None)
    if format_ is None:
        return None
    headers = {path: header for path, header in headers.items() if header.format == format_}
    indexed: dict[str, list[str]] = {}
    for path in sorted({path for paths in indexes.values() for path in paths}):
        indexed.setdefault(path.rpartition("/")[0], []).append(path)
    folders: dict[str, dict[object, Collection[str]]] = {}
    numbers = shard_numbers(headers)
    for path in headers:
        folder, _, name = path.rpartition("/")
        sets = folders.setdefault(folder, {})
        shard = parse_shard_name(name)
        if any(each in headers for each in indexed.get(folder, ())):
            # Other files in this folder contain the same weights in another layout.
            sets["indexed"] = indexed.pop(folder)
        elif "indexed" in sets:
            continue
        elif shard is None and is_digest_name(name):
            # The manifest of a store lists these blobs as the parts of one model.
            sets["blobs"] = [*sets.get("blobs", ()), path]
        elif shard is None:
            sets[name] = [path]
        elif shard[1] not in sets:
            prefix = f"{folder}/" if folder else ""
            names = shard[1].file_names(numbers[prefix, shard[1]])
            sets[shard[1]] = [prefix + each for each in names]
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


def _has_format_suffix(path: str) -> bool:
    return path.lower().endswith((".gguf", ".safetensors", ".sft"))
