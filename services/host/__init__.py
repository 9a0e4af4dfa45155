"""This host: its ports, programs and processes, and text for its terminals."""
