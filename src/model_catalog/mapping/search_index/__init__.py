"""The index of the filter `search`: its objects in a database, its filling, and its use."""
