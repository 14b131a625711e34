"""Look at the first item of an iterator without losing it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from quantrim.errors import DataError


class Peeked:
    """An iterator whose first item may be looked at before it is given.

    Args:
        source: the iterator.
    """

    def __init__(self, source: Iterator[Any]) -> None:
        self._source = source
        self._seen: list[Any] = []

    def first(self) -> Any:
        """The item that comes next; it still comes.

        Raises:
            DataError: there is none.
        """
        if not self._seen:
            self._seen = list(islice(self._source, 1))
        if not self._seen:
            raise DataError(f"the {type(self._source).__name__} of calibration data is empty.")
        return self._seen[0]

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self._seen.pop() if self._seen else next(self._source)


def peekable(data: Any) -> Any:
    """The data; an iterator, which can't start again, as :class:`Peeked`."""
    return Peeked(data) if isinstance(data, Iterator) else data
