"""Rows in any layout: where they lie, how they are read, and why one is refused."""
