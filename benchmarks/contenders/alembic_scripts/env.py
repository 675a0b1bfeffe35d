"""Alembic's environment as its template generates it, for a program with the same table."""

from alembic import context
from benchmarks.contenders.sqlalchemy import Base
from sqlalchemy import create_engine, pool

engine = create_engine(context.config.get_main_option("sqlalchemy.url"), poolclass=pool.NullPool)

with engine.connect() as connection:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        version_table=context.config.get_main_option("version_table"),
    )
    with context.begin_transaction():
        context.run_migrations()
