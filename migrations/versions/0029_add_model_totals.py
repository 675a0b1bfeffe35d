"""
Add counters of models and of their sizes, which triggers keep exact. SQLite only.

Revision ID: model_catalog_0029

`model_totals` has a row for each combination of host, provider, store, and effective format,
architecture and quantization. Counting behind one of them read all rows of `models`: 170 ms for a
million. `model_totals_progress` has the id up to which models are counted. Readers add up the
models with a larger id, because a trigger for each inserted row would make a bulk registration 2.5
times as slow. On PostgreSQL the writers of one combination would wait for one another.
"""

from alembic import op

revision = "model_catalog_0029"
down_revision = "model_catalog_0028"
branch_labels = None
depends_on = None

KEY = "host, provider, format, architecture, quantization, store"
WATCHED = (
    "id, host, provider, format, claimed_format, architecture, claimed_architecture,"
    " quantization, claimed_quantization, store, size_bytes"
)
IS_COUNTED = "<= (SELECT counted_to FROM model_totals_progress)"


def values(row: str) -> str:
    # No value of a column of type TEXT is the number 0, so that it can stand for NULL.
    effective = (
        f"coalesce({row}.{name}, {row}.claimed_{name}, 0)"
        for name in ("format", "architecture", "quantization")
    )
    return ", ".join((f"{row}.host", f"{row}.provider", *effective, f"coalesce({row}.store, 0)"))


def change(row: str, sign: str, condition: str) -> str:
    return (
        f"UPDATE model_totals SET models = models {sign} 1,"
        f" high = high {sign} (coalesce({row}.size_bytes, 0) >> 32),"
        f" low = low {sign} (coalesce({row}.size_bytes, 0) & 4294967295)"
        f" WHERE ({KEY}) = ({values(row)}){condition};"
    )


def add(condition: str = "") -> str:
    return (
        f"INSERT INTO model_totals ({KEY}, models, high, low) SELECT {values('NEW')}, 0, 0, 0"
        f" WHERE NOT EXISTS (SELECT 1 FROM model_totals WHERE ({KEY}) = ({values('NEW')}))"
        f"{condition}; {change('NEW', '+', condition)}"
    )


def subtract(condition: str = "") -> str:
    return (
        f"{change('OLD', '-', condition)}"
        f" DELETE FROM model_totals WHERE ({KEY}) = ({values('OLD')}) AND models = 0;"
    )


STATEMENTS = (
    # The columns have no type: with one, SQLite would convert the number 0 to text. No constraint
    # but the key: with one, SQLite would keep a journal of each INSERT into `models`.
    (
        f"CREATE TABLE model_totals ({KEY}, models INTEGER, high INTEGER, low INTEGER,"
        f" PRIMARY KEY ({KEY})) WITHOUT ROWID"
    ),
    "CREATE TABLE model_totals_progress (id INTEGER PRIMARY KEY, counted_to INTEGER)",
    (
        f"CREATE TRIGGER model_totals_insert AFTER INSERT ON models WHEN NEW.id {IS_COUNTED}"
        f" BEGIN {add()} END"
    ),
    (
        f"CREATE TRIGGER model_totals_delete AFTER DELETE ON models WHEN OLD.id {IS_COUNTED}"
        f" BEGIN {subtract()} UPDATE model_totals_progress"
        " SET counted_to = (SELECT coalesce(max(id), 0) FROM models)"
        " WHERE counted_to > (SELECT coalesce(max(id), 0) FROM models); END"
    ),
    (
        f"CREATE TRIGGER model_totals_update AFTER UPDATE OF {WATCHED} ON models"
        f" WHEN {' OR '.join(f'OLD.{name} IS NOT NEW.{name}' for name in WATCHED.split(', '))}"
        f" BEGIN {subtract(f' AND OLD.id {IS_COUNTED}')} {add(f' AND NEW.id {IS_COUNTED}')} END"
    ),
)

COUNT_ALL = (
    f"INSERT INTO model_totals ({KEY}, models, high, low)"
    f" SELECT {values('models')}, 1, coalesce(size_bytes, 0) >> 32,"
    " coalesce(size_bytes, 0) & 4294967295"
    # Row by row: sorting the rows for GROUP BY takes twice as long.
    " FROM models NOT INDEXED WHERE true ON CONFLICT DO UPDATE SET models = models + 1,"
    " high = high + excluded.high, low = low + excluded.low"
)


def upgrade() -> None:
    if op.get_context().dialect.name != "sqlite":
        return
    for statement in (
        *STATEMENTS,
        COUNT_ALL,
        "INSERT INTO model_totals_progress SELECT 1, max(id) FROM models",
    ):
        op.execute(statement)


def downgrade() -> None:
    if op.get_context().dialect.name != "sqlite":
        return
    for name in ("insert", "delete", "update"):
        op.execute(f"DROP TRIGGER model_totals_{name}")
    op.execute("DROP TABLE model_totals_progress")
    op.execute("DROP TABLE model_totals")
