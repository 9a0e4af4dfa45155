"""How alike names are, as rubrics name it: exact, by table, by embedding model."""
