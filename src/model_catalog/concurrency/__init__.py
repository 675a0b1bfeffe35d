"""asyncio helpers: batching, run to completion, threads, ownership. No database."""
