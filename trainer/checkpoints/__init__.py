"""Checkpoints that are whole or absent, and who may write them."""
