"""Load and soak tests of ``quantrim serve``."""
