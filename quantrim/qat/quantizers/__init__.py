"""Fake-quantizers of activations, weights and biases, and their calibration."""
