"""What a search has found out: each answer is asked for by all that it depends on, and kept until the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from quantrim.journal import Journal, digest

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answers:
    """A journal of one model, data, judge, engine and machine.

    Attributes:
        journal: where answers are kept.
        scope: digest of what all of them depend on.
    """

    journal: Journal
    scope: str

    def of(self, asked: Sequence[Any], kind: Any, make: Callable[[], T], files: Sequence[Path] = ()) -> T:
        """The kept answer to a question, or a new one; see :meth:`Journal.answer`."""
        return self.journal.answer(digest(self.scope, *asked), kind, make, files)

    def path(self, asked: Sequence[Any], suffix: str) -> Path:
        """Where a file that belongs to a question lies."""
        return self.journal.path(f"{asked[0]}_{digest(self.scope, *asked)}", suffix)
