"""A host with its own tables and its own Alembic, as `alembic init` creates it."""

import io
from pathlib import Path

from alembic import command
from alembic.config import Config
from conftest import Database

MODELS = """
from sqlalchemy import ForeignKey, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

class Base(DeclarativeBase):
    pass

class Deployment(Base):
    __tablename__ = "deployments"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(Text)

target_metadata = Base.metadata
"""

REVISION = '''"""Create the table of deployments, with one row."""
import sqlalchemy as sa
from alembic import op

revision = "c0ffee"
down_revision = None

def upgrade():
    op.create_table(
        "deployments",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("name", sa.Text(), nullable=False),
    )
    op.execute("INSERT INTO deployments (name) VALUES ('first')")

def downgrade():
    op.drop_table("deployments")
'''

# The lines of Alembic's templates before which a host upgrades the catalog, and its call.
CALLS = {
    "upgrade in an async env.py": (
        "async",
        "    async with connectable.connect()",
        "    await upgrade(connectable)\n    async with connectable.connect()",
    ),
    "upgrade_connection in an async env.py": (
        "async",
        "def do_run_migrations(connection: Connection) -> None:\n",
        "def do_run_migrations(connection: Connection) -> None:\n    upgrade_connection(connection)\n",  # noqa: E501
    ),
    "upgrade_connection in a sync env.py": (
        "generic",
        "    with connectable.connect() as connection:\n",
        "    with connectable.connect() as connection:\n        upgrade_connection(connection)\n",
    ),
}


class HostProject:
    """
    A folder that `alembic init` has created for a database, and the commands of `alembic` in it.

    `template` is Alembic's own: "generic" has a synchronous engine, "async" an asynchronous one.
    """

    def __init__(self, folder: Path, database: Database, template: str = "async") -> None:
        url = database.target_url
        if template == "generic":
            url = url.set(drivername="sqlite" if database.path else "postgresql+psycopg")
        self._steps = folder / "steps"
        self._url = url.render_as_string(hide_password=False).replace("%", "%%")
        config = Config(folder / "alembic.ini", stdout=io.StringIO())
        command.init(config, str(self._steps), template=template)
        self.version_locations: str | None = None
        self.env = self._steps / "env.py"
        self.replace("target_metadata = None", MODELS)

    def replace(self, before: str, after: str) -> None:
        """Replace the only occurrence of a text in env.py."""
        source = self.env.read_text()
        assert source.count(before) == 1, (source.count(before), before)
        self.env.write_text(source.replace(before, after))

    def add_import(self, line: str) -> None:
        """Add an import to env.py."""
        self.env.write_text(f"{line}\n{self.env.read_text()}")

    def add_revision(self) -> None:
        """Add the host's first revision, which creates its table with one row."""
        (self._steps / "versions" / "c0ffee_deployments.py").write_text(REVISION)

    def configure(self, options: str) -> None:
        """Pass more options to `context.configure` in the online mode."""
        before = "connection=connection, target_metadata=target_metadata"
        self.replace(before, f"{before}, {options}")

    def config(self) -> Config:
        """Return a configuration like that of alembic.ini, which does not configure logging."""
        config = Config(stdout=io.StringIO(), output_buffer=io.StringIO())
        config.set_main_option("script_location", str(self._steps).replace("%", "%%"))
        config.set_main_option("path_separator", "newline")
        config.set_main_option("sqlalchemy.url", self._url)
        if self.version_locations is not None:
            config.set_main_option("version_locations", self.version_locations)
        return config

    def upgrade(self) -> None:
        command.upgrade(self.config(), "head")

    def check(self) -> None:
        command.check(self.config())

    def autogenerate(self) -> str:
        """Run `alembic revision --autogenerate`, and return the code of the new revision."""
        script = command.revision(self.config(), "next", autogenerate=True)
        return Path(script.path).read_text()
