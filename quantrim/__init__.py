"""Quantize and trim vision models, verified on the engine that runs them."""
