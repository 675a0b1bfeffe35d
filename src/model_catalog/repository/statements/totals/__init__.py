"""SQL statements that count models, and sum their sizes and the bytes of their files."""
