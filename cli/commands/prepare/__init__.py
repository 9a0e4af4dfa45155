"""Commands that come before a run."""
