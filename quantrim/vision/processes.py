"""Several processes of one run, as torchrun and accelerate start them: the first one decides and writes."""

from __future__ import annotations

import os
from typing import Any, TypeVar

from torch import distributed

T = TypeVar("T")


def is_first() -> bool:
    """Whether this is the only process, or the first of several."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank() == 0
    return int(os.environ.get("RANK", "0")) == 0


def from_first(value: Any) -> Any:
    """What the first process has, in every process; in a run of one, the value itself."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]
