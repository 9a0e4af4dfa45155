"""Messages on every wire, one file per stage. Versioned, keyed by name, each with an example.

A field is never renamed or given another meaning; a change adds a field with a default, or a new
version. The examples live as golden JSON in `tests/contract/`.
"""
