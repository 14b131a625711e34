"""Ask an engine, by small graphs, what it runs in INT8: a target that nobody wrote."""

from quantrim.probing.learn import Answer, learn_target

__all__ = ["Answer", "learn_target"]
