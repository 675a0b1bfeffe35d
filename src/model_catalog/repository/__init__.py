"""ModelCatalog: its operations and its SQL statements."""
