"""The reward service's HTTP API: requests read, scored in workers, and answered."""
