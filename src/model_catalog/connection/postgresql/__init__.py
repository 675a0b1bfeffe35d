"""Our own engines for PostgreSQL, and how connections to a server are dropped."""
