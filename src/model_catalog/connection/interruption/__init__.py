"""Interrupting a step on an async connection, and dropping connections that do not answer."""
