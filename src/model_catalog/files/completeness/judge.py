"""
Judge whether a model is whole. All evidence is given by the caller, and no file is read here.

`add`, `scan` and `verify` use this one judge, so that each reason has the same words everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import Final, TypeAlias

from model_catalog.errors import shown
from model_catalog.files.completeness.evidence import (
    Completeness,
    FileFacts,
    ReadEvidence,
    ReadFailure,
    StoreEvidence,
)
from model_catalog.files.completeness.needed_files import is_needed, needed_files
from model_catalog.files.file_names import (
    WEIGHT_ROLES,
    ShardSet,
    file_role,
    finished_name,
    is_control_file,
    is_digest_name,
    parse_shard_name,
)
from model_catalog.files.formats.header import Header
from model_catalog.files.formats.unread_formats import FORMAT_LABELS, UNKNOWN, format_of_name
from model_catalog.files.model_config import WeightIndex

ShardNumbers: TypeAlias = Mapping[tuple[str, ShardSet], Collection[int]]
"""The numbers of the shards that exist, by folder (with `/` at the end) and set."""

NO_WEIGHTS: Final = "no weights were found"
UNKNOWN_FORMAT: Final = "the format of the weights is not known"
_MAX_LISTED_NAMES: Final = 3
_FORMATS: Final = (
    ("safetensors", (".safetensors", ".sft")),
    ("gguf", (".gguf",)),
    ("pickle", (".ckpt", ".pt", ".pth")),
)
# These names are those of torch.save() in transformers, PEFT and diffusers. All other .bin files
# may have any format, until their bytes are read.
_PICKLE_NAME: Final = re.compile(r"(pytorch_model|adapter_model|diffusion_pytorch_model)\b.*\.bin")
_GGUF: Final = ".gguf"
_READ_ENDINGS: Final = (".gguf", ".safetensors", ".sft", ".bin", ".ckpt", ".pt", ".pth")


def judge(
    files: Sequence[FileFacts],
    store: StoreEvidence | None = None,
    read: ReadEvidence | None = None,
) -> Completeness:
    """
    Return the verdict about a model with these files.

    `read` is None if no content was read. The same evidence always gives the same words.
    """
    store = store or StoreEvidence()
    existing = {file.path: file for file in files}
    indexes = indexed_paths(existing, {} if read is None else read.indexes)
    sets = shard_numbers(existing)
    counted = {
        (folder, shards)
        for folder, shards in sets
        if any(folder + name in existing for name in shards.index_names)
    }
    gone = {path for path in store.gone if is_needed(path)}
    gone.update(path for path in store.required if path not in existing)
    named = {key: sets[key] for key in sets if key not in counted}
    return Completeness(
        listing=(
            *_missing(gone, named),
            *_no_weights(files, store),
            *_size_reasons(existing, store),
            *_not_downloaded(existing, gone, store),
            *_unfinished(existing, store),
            *store.reasons,
        ),
        counted=tuple(_missing(gone, {key: sets[key] for key in counted}, counts_gone=False)),
        content=None if read is None else tuple(_content_reasons(existing, gone, indexes, read)),
        unknown=tuple(_unknown(files, read)),
    )


def format_of_files(files: Sequence[FileFacts]) -> str | None:
    """
    Return the format of the weights by the file names: safetensors, GGUF or pickle if there is one.

    None if the names do not tell, as for `.bin`, which several programs use.
    """
    weights = [file.path for file in files if file.role == "weights"]
    # A folder or a file may hold nothing but an adapter, a projector or a draft.
    weights = weights or [file.path for file in files if file.role in WEIGHT_ROLES]
    names = [path.lower() for path in weights]
    for format_, endings in _FORMATS:
        if any(name.endswith(endings) for name in names):
            return format_
    if any(_PICKLE_NAME.fullmatch(name.rpartition("/")[2]) for name in names):
        return "pickle"
    paths = {file.path for file in files}
    formats = {format_of_name(path, paths) for path in weights}
    return next((name for name in FORMAT_LABELS if name in formats), None)


def shorten_list(names: Sequence[str], count: int | None = None) -> str:
    """Format the first three names, escaped, and the number of the others out of `count`."""
    first = ", ".join(repr(name) for name in names[:_MAX_LISTED_NAMES])
    more = (len(names) if count is None else count) - min(len(names), _MAX_LISTED_NAMES)
    return f"{first} and {more:,} more" if more else first


def shard_numbers(paths: Iterable[str]) -> dict[tuple[str, ShardSet], set[int]]:
    """Return the shard sets among paths, with the numbers of the shards that exist."""
    sets: dict[tuple[str, ShardSet], set[int]] = {}
    for path in paths:
        folder, slash, name = path.rpartition("/")
        if (shard := parse_shard_name(name)) is not None:
            sets.setdefault((folder + slash, shard[1]), set()).add(shard[0])
    return sets


def indexed_paths(
    existing: Collection[str], indexes: Mapping[str, WeightIndex | ReadFailure]
) -> dict[str, tuple[str, ...]]:
    """
    Return the paths that each index lists, by the path of the index.

    An index is left out if none of its files exists and its folder has other weights: it belongs to
    another format of the same model, and its weights were not asked for.
    """
    if not indexes:
        return {}
    used = {}
    weights = {path.rpartition("/")[0] for path in existing if path.lower().endswith(_READ_ENDINGS)}
    for path, index in indexes.items():
        if isinstance(index, ReadFailure):
            continue
        folder, slash, _ = path.rpartition("/")
        paths = tuple(folder + slash + name for name in index.file_names)
        if folder not in weights or any(each in existing for each in paths):
            used[path] = paths
    return used


def _missing(
    gone: Collection[str], sets: ShardNumbers, *, counts_gone: bool = True
) -> Iterable[str]:
    """Yield the reason that names missing files: the first ones, and the number of all."""
    names = set(gone) if counts_gone else set()
    count = len(names)
    for (folder, shards), numbers in sets.items():
        # A name can claim a set of a million shards. The missing ones are counted without a loop
        # over all names.
        needed = shards.numbers(numbers)
        absent = (folder + shards.file_name(number) for number in needed if number not in numbers)
        names.update(islice((name for name in absent if name not in gone), _MAX_LISTED_NAMES))
        gone_count = sum(1 for path in gone if _is_in_set(path, folder, shards))
        count += len(needed) - len(numbers) - gone_count
    if count > 0:
        yield f"missing: {shorten_list(sorted(names), count)}"


def _is_in_set(path: str, folder: str, shards: ShardSet) -> bool:
    head, slash, name = path.rpartition("/")
    shard = parse_shard_name(name)
    return head + slash == folder and shard is not None and shard[1] == shards


def _no_weights(files: Sequence[FileFacts], store: StoreEvidence) -> Iterable[str]:
    if store.required or any(file.role in WEIGHT_ROLES for file in files):
        return
    # Without weights elsewhere, the repository is that of a tokenizer or a config.
    if not store.listed or any(_is_weights(path) for path in store.listed):
        yield NO_WEIGHTS


def _size_reasons(existing: Mapping[str, FileFacts], store: StoreEvidence) -> Iterable[str]:
    for path, file in existing.items():
        needed_bytes = store.required.get(path)
        if needed_bytes is None and file.role != "other":
            needed_bytes = store.listed.get(path)
        if needed_bytes not in {None, file.size_bytes}:
            yield f"{path!r} has {file.size_bytes} bytes: {needed_bytes} are needed"


def _not_downloaded(
    existing: Collection[str], gone: Collection[str], store: StoreEvidence
) -> Iterable[str]:
    if all(path in existing for path in store.listed):
        return
    needed = needed_files({*existing, *gone}, store.listed)
    # The names of the other shards tell these too.
    begun = shard_numbers(existing) if needed else {}
    absent = [path for path in needed if not any(key in begun for key in shard_numbers([path]))]
    if absent:
        yield f"not downloaded: {shorten_list(absent)}"


def _unfinished(existing: Mapping[str, FileFacts], store: StoreEvidence) -> Iterable[str]:
    names = sorted(name for name in store.unfinished if _is_unfinished(name, existing))
    if names:
        yield f"unfinished downloads: {shorten_list(names)}"


def _is_unfinished(path: str, existing: Mapping[str, FileFacts]) -> bool:
    """
    Return whether an unfinished download is that of a file that the model needs and does not have.

    Another GGUF file is another model. Weights in another format are an alternative.
    """
    folder, slash, name = path.rpartition("/")
    if is_control_file(name):
        return folder + slash + name.rpartition(".")[0] in existing
    final = finished_name(name)
    if final is None and "." not in name:
        # A store names a blob by its digest.
        return path not in existing
    path = path if final is None else folder + slash + final
    if path in existing or not is_needed(path):
        return False
    return not _is_weights(path) or not _is_alternative(path, existing)


def _is_alternative(path: str, existing: Collection[str]) -> bool:
    """Return whether a file of weights is not needed beside the weights that exist."""
    weights = [each for each in existing if _is_weights(each)]
    if not weights:
        return False
    if path.lower().endswith(_GGUF):
        begun = shard_numbers(existing)
        return not any(key in begun for key in shard_numbers([path]))
    return min(map(_format_rank, weights)) < _format_rank(path)


def _format_rank(path: str) -> int:
    """Return the order in which loaders look for formats. A GGUF file needs no other weights."""
    lower = path.lower()
    ranks = ((_GGUF,), (".safetensors", ".sft"), (".bin", ".ckpt", ".pt", ".pth"))
    return next((rank for rank, each in enumerate(ranks) if lower.endswith(each)), len(ranks))


def _content_reasons(
    existing: Mapping[str, FileFacts],
    gone: Collection[str],
    indexes: Mapping[str, Sequence[str]],
    read: ReadEvidence,
) -> Iterable[str]:
    absent = {
        path for paths in indexes.values() for path in paths if path not in existing
    }.difference(gone)
    if absent:
        yield f"missing: {shorten_list(sorted(absent))}"
    for path, index in read.indexes.items():
        yield from index_problems(path, index)
        if isinstance(index, WeightIndex) and path in indexes:
            yield from _short_files(path, index, existing)
    for path, header in read.headers.items():
        if isinstance(header, Header):
            yield from _header_problems(existing[path], header)
    for path, failure in {**read.headers, **read.failures}.items():
        if isinstance(failure, ReadFailure) and failure.is_damage:
            yield f"{path!r} cannot be read: {failure.reason}"


def index_problems(path: str, index: WeightIndex | ReadFailure) -> Iterable[str]:
    """Yield what is wrong with an index itself."""
    label = f"the index {path!r}" if path.endswith(".json") else repr(path)
    if isinstance(index, WeightIndex):
        for name in index.invalid_names:
            yield f"{label} lists {shown(name)}, which is not a file name"
    elif index.is_damage:
        yield f"{label} cannot be read: {index.reason}"


def _short_files(path: str, index: WeightIndex, existing: Mapping[str, FileFacts]) -> Iterable[str]:
    """Yield the listed files that are smaller than the index needs."""
    folder, slash, _ = path.rpartition("/")
    for name, needed_bytes in index.needed_bytes.items():
        file = existing.get(folder + slash + name)
        if file is not None and file.size_bytes < needed_bytes:
            yield f"{file.path!r} has {file.size_bytes} bytes: {needed_bytes} are needed"


def _header_problems(file: FileFacts, header: Header) -> Iterable[str]:
    """Yield the contradictions between a header and the size and the name of its file."""
    if header.is_complete is False:
        needed_bytes = header.expected_size_bytes
        needed = "it is truncated" if needed_bytes is None else f"{needed_bytes} are needed"
        if needed_bytes is not None and file.size_bytes > needed_bytes:
            needed = f"{file.size_bytes - needed_bytes} follow the last tensor"
        yield f"{file.path!r} has {file.size_bytes} bytes: {needed}"
    name = file.path.rpartition("/")[2]
    shard = parse_shard_name(name)
    if shard is None and is_digest_name(name):
        return
    by_name = (1, 1) if shard is None else (shard[0], shard[1].count)
    by_header = (header.shard_index, header.shard_count)
    if header.shard_count is not None and by_header != by_name:
        yield (
            f"the header of {file.path!r} says shard {by_header[0]} of {by_header[1]}, and its "
            f"name says {by_name[0]} of {by_name[1]}"
        )


def _unknown(files: Sequence[FileFacts], read: ReadEvidence | None) -> Iterable[str]:
    """Yield what prevents a verdict: formats that are not read, and limits."""
    weights = [file for file in files if file.role in WEIGHT_ROLES]
    if read is None:
        if any(file.path.lower().endswith(_READ_ENDINGS) for file in weights):
            return
        formats = {format_of_name(file.path) for file in weights}
    else:
        failures = {**read.headers, **read.indexes, **read.failures}
        for path, failure in failures.items():
            if isinstance(failure, ReadFailure) and not (failure.is_damage or failure.format):
                yield f"{path!r} was not judged: {failure.reason}"
        if any(isinstance(header, Header) for header in read.headers.values()):
            return
        unread = [each for each in read.headers.values() if isinstance(each, ReadFailure)]
        formats = {each.format for each in unread if not each.is_damage}
    labels = sorted(label for name, label in FORMAT_LABELS.items() if name in formats)
    if labels:
        yield f"weights in the format {' and '.join(labels)} are not read"
    elif UNKNOWN in formats:
        yield UNKNOWN_FORMAT


def _is_weights(path: str) -> bool:
    return file_role(path) in WEIGHT_ROLES
