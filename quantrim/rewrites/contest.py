"""The fastest of several files of one model, each challenger raced against the champion of the moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from quantrim.engines import EngineName, Precision, Session, open_session
from quantrim.rewrites.duel import Duel, duel
from quantrim.rewrites.memory import Memory, scope_of

#: Files that stay loaded.
_MOST_OPEN = 3


@dataclass(frozen=True, slots=True)
class Entrant:
    """A file that takes part.

    Attributes:
        name: what it is, for people and the memory.
        path: the file.
        precision: in which its layers that are not INT8 run, on engines that have a choice.
    """

    name: str
    path: Path
    precision: Precision = "f32"


@dataclass(frozen=True, slots=True)
class Contest:
    """Where and on what files are raced.

    Attributes:
        engines: a challenger must win on one of them and lose on none.
        threads: CPU threads.
        feed: what they run on.
        memory: answers of earlier races.
        subject: what tells this model from others in the memory.
        seconds: for one race.
    """

    engines: Sequence[EngineName]
    threads: int
    feed: Mapping[str, np.ndarray]
    memory: Memory
    subject: str
    seconds: float = 4.0
    _open: dict[tuple[EngineName, Path, Precision], Session] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def beats(self, challenger: Entrant, champion: Entrant) -> bool:
        """Whether a challenger is faster beyond noise on one engine, and slower on none."""
        answers = [self.race(engine, champion, challenger) for engine in self.engines]
        known = [answer for answer in answers if answer is not None]
        return any(answer.wins for answer in known) and not any(answer.loses for answer in known)

    def race(self, engine: EngineName, champion: Entrant, challenger: Entrant) -> Duel | None:
        """The answer of one engine's clock; None where both are the same to it."""
        chosen = engine == "openvino"
        precisions: list[Precision] = [one.precision if chosen else "f32" for one in (champion, challenger)]
        if champion.path == challenger.path and len(set(precisions)) == 1:
            return None
        scope = scope_of(engine, self.threads)
        key = f"{self.subject} | {challenger.name} against {champion.name}"
        answer = self.memory.recall(scope, key)
        if answer is None:
            one, two = (
                self.session(engine, entrant.path, precision)
                for entrant, precision in zip((champion, challenger), precisions, strict=True)
            )
            answer = duel(one, two, self.feed, seconds=self.seconds)
            self.memory.learn(scope, key, answer)
        return answer

    def session(self, engine: EngineName, path: Path, precision: Precision = "f32") -> Session:
        """A file on an engine; the last few are kept, since loading takes longer than a race."""
        key = engine, path, precision
        kept = self._open.pop(key, None)
        kept = kept or open_session(path, engine, threads=self.threads, precision=precision)
        while len(self._open) >= _MOST_OPEN:
            del self._open[next(iter(self._open))]
        self._open[key] = kept
        return kept
