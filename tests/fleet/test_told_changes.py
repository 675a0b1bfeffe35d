"""The changes that `on_change` is told of are those of the rows, whatever call writes them."""

import random
import time
from contextlib import suppress

import pytest
from host_calls import STEPS, Clock, write_files

from model_catalog import CatalogError, open_catalog
from model_catalog.execution.observation.changed_rows import UNREPORTED_FIELDS
from model_catalog.mapping.child_tables import ALIASES, FILES, TAGS
from model_catalog.mapping.tables import Model

COLUMNS = [column.key for column in Model.__table__.columns if not column.key.endswith("_folded")]
CHILDREN = {"tags": TAGS, "aliases": ALIASES, "files": FILES}


def read_rows(database) -> dict[int, dict]:
    """Return the rows of all models with their tags, aliases and files, by id."""
    rows = {
        row[COLUMNS.index("id")]: dict(zip(COLUMNS, row, strict=True))
        for row in database.run(f"SELECT {', '.join(COLUMNS)} FROM models")
    }
    for name, table in CHILDREN.items():
        for row in rows.values():
            row[name] = []
        columns = ", ".join(table.columns.keys())
        for model_id, *child in sorted(
            database.run(f"SELECT model_id, {columns} FROM {table.name}"), key=repr
        ):
            rows[model_id][name].append(child)
    return rows


class Replica:
    """What a host knows of the models by the changes alone: existence, name and state."""

    def __init__(self) -> None:
        self.models: dict[int, tuple] = {}
        self.fields: dict[int, set[str]] = {}
        self.count = 0

    def follow(self, changes) -> None:
        for each in changes:
            self.count += 1
            name = (each.host, each.provider, each.reference, each.version)
            known = self.models.get(each.model_id)
            if each.kind == "registered":
                assert known is None
                self.models[each.model_id] = (name, str(each.new_state))
                self.fields[each.model_id] = set(COLUMNS) | CHILDREN.keys()
                continue
            assert known is not None, each
            if each.kind == "removed":
                assert known == (name, str(each.old_state))
                del self.models[each.model_id]
                self.fields.pop(each.model_id, None)
                continue
            if each.previous_ref is not None:
                ref = each.previous_ref
                assert known[0] == (each.host, ref.provider, ref.reference, ref.version or "")
            else:
                assert known[0] == name
            assert each.fields
            state = known[1]
            if each.kind == "state_changed":
                assert (state, each.old_state != each.new_state) == (str(each.old_state), True)
                state = str(each.new_state)
            self.models[each.model_id] = (name, state)
            self.fields.setdefault(each.model_id, set()).update(each.fields)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "seed"), [*(("sqlite", seed) for seed in range(3)), ("asyncpg", 0), ("psycopg", 1)]
)
async def test_a_replica_that_follows_the_changes_equals_the_rows(
    database, tmp_path, monkeypatch, seed
):
    """
    After each of many random calls the replica has the rows, names and states of the database, and
    each field that differs was told.
    """
    clock = Clock()
    monkeypatch.setattr(time, "time", clock)
    write_files(tmp_path)
    rng = random.Random(seed)
    replica = Replica()
    before = read_rows(database)
    steps = [
        *["register_model"] * 6,
        *rng.sample(list(STEPS), len(STEPS)),
        *rng.choices(list(STEPS), k=40),
    ]

    async with open_catalog(database.target, host="a", on_change=replica.follow) as catalog:
        for step in steps:
            clock.now_s += 1
            replica.fields.clear()
            with suppress(CatalogError, ValueError, OSError):
                await STEPS[step](catalog, rng, tmp_path)
            after = read_rows(database)
            expected = {
                model_id: (
                    (row["host"], row["provider"], row["reference"], row["version"]),
                    row["state"],
                )
                for model_id, row in after.items()
            }
            assert replica.models == expected, step
            for model_id, row in after.items():
                old = before.get(model_id)
                if old is not None:
                    changed = {name for name in row if row[name] != old[name]} - UNREPORTED_FIELDS
                    told = replica.fields.get(model_id, set())
                    assert changed <= told, (step, changed - told)
            before = after

    assert replica.count > 20
