"""Which names have several versions, so that a text must state the version."""

import sqlite3
from contextlib import closing

from sqlalchemy import create_engine, event

from model_catalog.repository.model_catalog import executor_of
from model_catalog.repository.operations.lookup import find_several_versions
from model_catalog.repository.statements.model_key import select_several_versions


async def test_names_with_several_versions_are_found_by_their_keys(on_sqlite, sqlite_file):
    """Of a few names only the keys of these are read, and of many the keys of all models."""
    await on_sqlite.register_models(
        {
            "provider": "hf",
            "reference": f"m{number // 2}",
            "version": f"{number}",
            "local_path": "/",
        }
        for number in range(99)
    )
    asked = [("hf", "m0"), ("hf", "m49"), ("hf", "none")]
    many = [("hf", f"m{number}") for number in range(2000)]
    found = [
        await executor_of(on_sqlite).run(find_several_versions(each)) for each in (asked, many, [])
    ]

    plans = []
    engine = create_engine(f"sqlite:///{sqlite_file}")
    with engine.connect() as connection:
        event.listen(
            connection,
            "before_cursor_execute",
            lambda *execution: plans.append(execution[2:4]),
        )
        select_several_versions(connection, asked)
    engine.dispose()
    (statement, parameters) = plans[0]
    with closing(sqlite3.connect(sqlite_file)) as raw:
        plan = raw.execute(f"EXPLAIN QUERY PLAN {statement}", parameters).fetchall()

    assert found == [{("hf", "m0")}, {("hf", f"m{number}") for number in range(49)}, set()]
    assert "(host=? AND provider=? AND reference=?)" in plan[0][3]
