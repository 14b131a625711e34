"""Whole jobs from a configuration: the libraries strung together, and nothing decided about numbers."""
