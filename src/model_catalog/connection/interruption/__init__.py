"""Ends steps on connections: at a deadline, at a cancellation, and in a forked child."""
