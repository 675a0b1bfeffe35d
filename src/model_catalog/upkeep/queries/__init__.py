"""The bulk queries of upkeep: what checks, verifications and store scans read and write."""
