"""Schema revisions: upgrade, downgrade, diagnosis. Only this package imports Alembic."""
