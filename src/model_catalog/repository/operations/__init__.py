"""The operations of the catalog, by topic: functions of a connection."""
