"""Faults of other libraries as one line of ours."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import onnx

from quantrim.errors import ModelError, QuantrimError, first_line


@contextlib.contextmanager
def telling(what: str, proto: Callable[[], onnx.ModelProto], where: str = "") -> Iterator[None]:
    """Faults of onnx_ir, onnxscript and numpy: what ONNX's checker says of the model, or their own first line.

    They raise whatever comes up (TypeError, IndexError, PassError with the whole graph), and a model that no
    rule of :mod:`quantrim.graph.soundness` refuses may still be none.

    Args:
        what: "be read", "be normalised".
        proto: gives the model, for the checker; called after a fault alone.
        where: the file, as the message begins.

    Raises:
        ModelError: instead of any other error but MemoryError.
    """
    try:
        yield
    except (QuantrimError, MemoryError):
        raise
    except Exception as error:
        try:
            onnx.checker.check_model(proto(), full_check=True)
        except Exception as fault:  # ValidationError, or what made the block fail
            raise ModelError(f"{where}damaged model: {_short(fault)}") from error
        raise ModelError(
            f"{where}can't {what}: {_short(error)}. If an engine runs the model, please report it."
        ) from error


def _short(error: BaseException) -> str:
    """The cause of all, in a line."""
    while error.__cause__ is not None:
        error = error.__cause__
    words = first_line(error).rstrip(".")[:300]
    return words if isinstance(error, onnx.checker.ValidationError) else f"{type(error).__name__}: {words}"
