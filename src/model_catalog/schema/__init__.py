"""Schema revisions: upgrade, downgrade, check. Only this package imports Alembic."""
