"""Datasets of images with scene graphs, instruction templates and the seeded sampler."""
