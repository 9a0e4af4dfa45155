"""The model, its engine, and how it scores."""
