"""The model families that are trained and served."""
