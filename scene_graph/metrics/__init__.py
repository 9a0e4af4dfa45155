"""How good predicted scene graphs are, by three protocols. Pure functions: `docs/evaluation.md`."""
