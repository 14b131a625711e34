"""The INT8 file of a trained module, and the proof that it computes the same codes."""
