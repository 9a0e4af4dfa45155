"""The ways for a version's bytes: one file for each, with both its ends."""
