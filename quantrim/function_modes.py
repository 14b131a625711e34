"""Torch's stack of function modes, kept clean around exports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def function_modes_restored() -> Iterator[None]:
    """Take away the function modes that a failed export leaves behind.

    torch 2.15 doesn't leave the mode of its non-strict export where tracing raises; every later call of the
    process would go through it.
    """
    before = torch._C._len_torch_function_stack()
    try:
        yield
    finally:
        while torch._C._len_torch_function_stack() > before:
            torch._C._pop_torch_function_stack()
