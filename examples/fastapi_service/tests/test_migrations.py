"""The migrations of the service and of the catalog share a database."""

from alembic import command
from alembic.config import Config

from model_catalog import Model, sync


def test_the_migrations_agree_with_the_tables(alembic_config: Config) -> None:
    """Autogenerate finds no difference, and leaves the catalog's tables alone."""
    command.upgrade(alembic_config, "head")

    command.check(alembic_config)


def test_a_downgrade_keeps_the_models(alembic_config: Config) -> None:
    """The catalog's tables are no part of the service's migrations."""
    url = alembic_config.attributes["url"]
    command.upgrade(alembic_config, "head")
    with sync.open_catalog(url) as catalog:
        catalog.register_model(Model(reference="chat", provider="hf", local_path="/m/chat.gguf"))

    command.downgrade(alembic_config, "base")

    with sync.open_catalog(url) as catalog:
        assert catalog.count_models() == 1
