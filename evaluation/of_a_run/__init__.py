"""A training run's own evaluation: its held-out images before, during and after, and its plots."""
