"""Toy scenes: rendered pictures with exact graphs, and a model small enough for a CPU."""
