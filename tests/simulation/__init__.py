"""The shipped control plane on one simulated clock: `python -m tests.simulation --help`."""
