"""What a run leaves for people."""
