"""The SQLAlchemy mapping: tables, column types."""
