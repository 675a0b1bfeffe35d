"""The queries of claims, downloads and uses: synchronous functions of a connection."""
