"""What a PostgreSQL server may do: whether it writes, and reads from its replicas."""
