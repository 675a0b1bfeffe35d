"""
Add the host to the keys of models, aliases and leases, so that hosts can share a database.

Revision ID: model_catalog_0025

Existing rows get the host `""`, which is the host of a catalog that was opened without one. SQLite
rebuilds the tables, because it cannot change a key.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "model_catalog_0025"
down_revision = "model_catalog_0024"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
KEY = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")

MODEL_KEY = ["provider", "reference", "version"]
NEWEST_FIRST = {"sqlite": "downloaded_at DESC", "postgresql": "downloaded_at DESC NULLS LAST"}

KEY_COLUMNS = (
    *("reference", "provider", "version", "state"),
    *("format", "architecture", "quantization", "license"),
    *("claimed_format", "claimed_architecture", "claimed_quantization", "claimed_license"),
    *("digest", "found_digest", "signed_by", "signature_verdict", "store", "kind", "claimed_kind"),
)
NUMBER_COLUMNS = (
    *("size_bytes", "downloaded_at", "context_length", "parameter_count", "download_count"),
    *("claimed_context_length", "claimed_parameter_count", "last_used_at", "pinned_at"),
    *("checked_at", "missing_since", "verified_at", "inventoried_at", "signature_checked_at"),
    *("use_count", "headers_read_at"),
)
DEFAULTS = {"version": "''", "download_count": "1", "use_count": "0", "state": "'unchecked'"}
ORDER = (
    *("reference", "provider", "local_path", "size_bytes", "downloaded_at", "id", "version"),
    *("format", "architecture", "quantization", "license", "context_length", "parameter_count"),
    *("source_url", "claimed_format", "claimed_architecture", "claimed_quantization"),
    *("claimed_license", "claimed_context_length", "claimed_parameter_count", "description"),
    *("download_count", "use_count", "last_used_at", "pinned_at", "pin_reason"),
    *("reference_folded", "description_folded", "state", "state_detail", "checked_at"),
    *("missing_since", "mount_point", "digest", "found_digest", "verified_at", "inventoried_at"),
    *("incomplete_reason", "signed_by", "signature_verdict", "signature_detail"),
    *("signature_checked_at", "store", "store_root", "headers_read_at", "kind", "claimed_kind"),
    *("unknown_reason", "listing_reason", "content_reason", "managed_root"),
)
REQUIRED_COLUMNS = ("reference", "provider", "local_path", "id", *DEFAULTS)
CHECKS = {
    "size_bytes": "size_bytes BETWEEN 0 AND 9223372036854775807",
    "downloaded_at": "downloaded_at BETWEEN -62135596800 AND 253402300799",
    **{
        name: f"{name} BETWEEN 0 AND 9223372036854775807"
        for number in ("context_length", "parameter_count")
        for name in (number, f"claimed_{number}")
    },
}


def host() -> sa.Column:
    return sa.Column("host", KEY, nullable=False, server_default=sa.text("''"))


def column(name: str) -> sa.Column:
    if name == "id":
        return sa.Column("id", BIG, sa.Identity(), nullable=False)
    kind = BIG if name in NUMBER_COLUMNS else KEY if name in KEY_COLUMNS else sa.Text()
    default = sa.text(DEFAULTS[name]) if name in DEFAULTS else None
    return sa.Column(name, kind, nullable=name not in REQUIRED_COLUMNS, server_default=default)


def models(*more: sa.Column) -> sa.Table:
    """Return the table at this revision with the column `host`, or without it as it was before."""
    key = [*(each.name for each in more), *MODEL_KEY]
    return sa.Table(
        "models",
        sa.MetaData(),
        *map(column, ORDER),
        *more,
        sa.PrimaryKeyConstraint("id", name="pk_models"),
        sa.UniqueConstraint(*key, name="_".join(("uq_models", *key))),
        *(
            sa.CheckConstraint(condition, name=f"ck_models_{name}")
            for name, condition in CHECKS.items()
        ),
        sa.Index("ix_models_digest", "digest"),
    )


def aliases(*more: sa.Column) -> sa.Table:
    return sa.Table(
        "model_aliases",
        sa.MetaData(),
        sa.Column("provider", KEY, nullable=False),
        sa.Column("reference", KEY, nullable=False),
        sa.Column("alias", KEY, nullable=False),
        sa.Column("model_id", BIG, nullable=False),
        sa.Column("store", KEY),
        *more,
        sa.PrimaryKeyConstraint(
            *(each.name for each in more), "provider", "reference", "alias", name="pk_model_aliases"
        ),
        sa.ForeignKeyConstraint(
            ["model_id"], ["models.id"], name="fk_model_aliases_model_id_models", ondelete="CASCADE"
        ),
        sa.Index("ix_model_aliases_model_id", "model_id"),
    )


def leases(*more: sa.Column) -> sa.Table:
    return sa.Table(
        "model_catalog_leases",
        sa.MetaData(),
        sa.Column("name", KEY, nullable=False),
        sa.Column("holder", KEY, nullable=False),
        sa.Column("renewed_at_ms", BIG, nullable=False),
        sa.Column("expires_at_ms", BIG, nullable=False),
        *more,
        sa.PrimaryKeyConstraint(
            *(each.name for each in more), "name", name="pk_model_catalog_leases"
        ),
    )


def require_foreign_keys_off() -> None:
    """Refuse to rebuild a table of SQLite while dropping it would delete the rows of others."""
    context = op.get_context()
    if context.dialect.name != "sqlite" or context.as_sql:
        return
    if op.get_bind().exec_driver_sql("PRAGMA foreign_keys").scalar():
        raise sa.exc.InvalidRequestError(
            "the connection enforces foreign keys, and a rebuilt table would lose the rows that"
            " refer to it: execute PRAGMA foreign_keys = OFF before the transaction begins"
        )


def require_one_host() -> None:
    if op.get_context().as_sql:
        return
    table = sa.table("models", sa.column("host"))
    count = sa.select(table.c.host, sa.func.count()).group_by(table.c.host).order_by(table.c.host)
    hosts = op.get_bind().execute(count).all()
    if len(hosts) > 1:
        listed = ", ".join(f"{host!r} ({number})" for host, number in hosts)
        raise sa.exc.InvalidRequestError(
            f"the older revision has the models of one host, and these hosts have models: {listed}."
            " Export the models of each host (model-catalog export --host NAME), then remove those"
            " of all hosts but one"
        )


def create_newest_first(*first: str) -> None:
    newest_first = sa.text(NEWEST_FIRST[op.get_context().dialect.name])
    op.create_index("ix_models_newest_first", "models", [*first, newest_first, *MODEL_KEY])


def upgrade() -> None:
    require_foreign_keys_off()
    op.drop_index("ix_models_newest_first", "models")
    with op.batch_alter_table("models", copy_from=models()) as table:
        table.add_column(host())
        table.drop_constraint("uq_models_provider_reference_version", type_="unique")
        table.create_unique_constraint(
            "uq_models_host_provider_reference_version", ["host", *MODEL_KEY]
        )
    create_newest_first("host")
    with op.batch_alter_table("model_aliases", copy_from=aliases()) as table:
        table.add_column(host())
        table.drop_constraint("pk_model_aliases", type_="primary")
        table.create_primary_key("pk_model_aliases", ["host", "provider", "reference", "alias"])
    with op.batch_alter_table("model_catalog_leases", copy_from=leases()) as table:
        table.add_column(host())
        table.drop_constraint("pk_model_catalog_leases", type_="primary")
        table.create_primary_key("pk_model_catalog_leases", ["host", "name"])


def downgrade() -> None:
    """Drop the hosts. The models of one host are kept; those of several hosts are refused."""
    require_foreign_keys_off()
    require_one_host()
    # Background tasks that are running stop at their next renewal.
    op.execute("DELETE FROM model_catalog_leases")
    with op.batch_alter_table("model_catalog_leases", copy_from=leases(host())) as table:
        table.drop_constraint("pk_model_catalog_leases", type_="primary")
        table.drop_column("host")
        table.create_primary_key("pk_model_catalog_leases", ["name"])
    with op.batch_alter_table("model_aliases", copy_from=aliases(host())) as table:
        table.drop_constraint("pk_model_aliases", type_="primary")
        table.drop_column("host")
        table.create_primary_key("pk_model_aliases", ["provider", "reference", "alias"])
    op.drop_index("ix_models_newest_first", "models")
    with op.batch_alter_table("models", copy_from=models(host())) as table:
        table.drop_constraint("uq_models_host_provider_reference_version", type_="unique")
        table.drop_column("host")
        table.create_unique_constraint("uq_models_provider_reference_version", MODEL_KEY)
    create_newest_first()
