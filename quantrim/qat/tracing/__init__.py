"""A trace of a module: which functions it calls, with what, where."""
