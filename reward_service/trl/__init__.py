"""The same rewards inside TRL's trainers."""
