"""What the pages show, read from a run's folder in bounded memory."""
