"""Commands that use a model, and score what it answers."""
