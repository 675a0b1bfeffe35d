"""Compare the catalog with the status of files."""
