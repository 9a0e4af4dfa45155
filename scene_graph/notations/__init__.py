"""The texts that a scene graph is written as: JSON, and a compact one of lines."""
