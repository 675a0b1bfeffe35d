"""Find the recorded models whose files a scan finds under other names, as after a split."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from model_catalog.files.file_names import WEIGHT_ROLES
from model_catalog.stores.scan_result import FoundModel
from model_catalog.upkeep.queries.store_sync_queries import FILE_COLUMNS, PLAIN_FOLDER, ModelKey
from model_catalog.upkeep.store_sync.scan_changes import RecordedModel

_ROLE: Final = FILE_COLUMNS.index("role")


@dataclass(slots=True)
class Successions:
    """
    Found models that have no row of their own, by key, and the recorded models they were part of.

    `heirs` take over the row, with its id. `copies` get new rows, with the tags, the pin, the
    description and the user's aliases of the recorded model.
    """

    heirs: dict[ModelKey, RecordedModel] = field(default_factory=dict)
    copies: dict[ModelKey, RecordedModel] = field(default_factory=dict)


def find_successions(
    found: Iterable[FoundModel],
    recorded: Collection[RecordedModel],
    names: Mapping[ModelKey, ModelKey],
) -> Successions:
    """
    Return the recorded models that the found models without a row continue.

    `names` has the key of each found model that has a row, and the key of that row. A model
    continues the recorded one that lists its first file of weights. The first of several models
    takes over the row, unless the row still has a model. A model of a plain folder that has a new
    name at its path takes over its row, also if the folder is known as the store of a program now.
    """
    result = Successions()
    unnamed = [each for each in found if _key(each) not in names]
    if not unnamed:
        return result
    owners: dict[tuple[str, str], RecordedModel] = {}
    plain: dict[str, RecordedModel] = {}
    for model in recorded:
        for path in _weight_paths(model):
            owners.setdefault((model.provider, path), model)
            if model.store == PLAIN_FOLDER:
                plain.setdefault(path, model)
    taken = set(names.values())
    for each in unnamed:
        key = _key(each)
        first = next((file.path for file in each.files if file.role in WEIGHT_ROLES), None)
        if each.local_path != each.folder:
            first = each.local_path[len(each.folder) + 1 :]
        path = f"{each.folder}/{first}"
        owner = owners.get((each.provider, path)) or plain.get(path)
        if owner is None:
            continue
        is_at_same_path = owner.local_path == each.local_path
        # Two tags of Ollama are two names of one file, and neither is a part of the other. A model
        # in a plain folder has one name, which a newer release may give it.
        if is_at_same_path and (owner.store != PLAIN_FOLDER or owner.key in taken):
            continue
        if owner.key in taken:
            result.copies[key] = owner
        else:
            taken.add(owner.key)
            result.heirs[key] = owner
    return result


def _key(found: FoundModel) -> ModelKey:
    return found.provider, found.reference, found.version


def _weight_paths(model: RecordedModel) -> list[str]:
    """Return the absolute paths of the recorded weights of a model."""
    files = model.files or {}
    root = model.local_path
    if (part := next((path for path in files if root.endswith(f"/{path}")), None)) is not None:
        root = root[: -len(part) - 1]
    return [f"{root}/{path}" for path, row in files.items() if row[_ROLE] in WEIGHT_ROLES]
