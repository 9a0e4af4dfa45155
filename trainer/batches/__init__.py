"""From groups to tensors, the same plan on every rank."""
