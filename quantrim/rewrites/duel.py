"""Which of two files is faster, answered with a confidence interval.

One thread is timed by the processor time of the process, which other programs on the machine hardly disturb;
several threads are timed by the clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from quantrim.engines import Session

#: Pairs of runs at least and at most; between them a clear answer ends the race.
_FEWEST, _MOST = 17, 97
#: A pair that takes so many seconds is noisy by a small share of itself: fewer of them answer as well.
_LONG, _FEWEST_LONG = 0.1, 5
_RESAMPLES = 500
#: A candidate wins when even the upper end of the interval is below, and loses when the lower end is above: two
#: sessions of one file, whose memory lies differently, have been seen 2 % apart.
WINS, LOSES = 0.97, 1.03


@dataclass(frozen=True, slots=True)
class Duel:
    """Time of a candidate over that of the champion, in pairs of runs back to back.

    Attributes:
        ratio: median over the pairs; below 1 the candidate is faster.
        low: lower end of the 99 % bootstrap interval of that median.
        high: upper end.
        champion_ms: median milliseconds of the champion.
        candidate_ms: median milliseconds of the candidate.
    """

    ratio: float
    low: float
    high: float
    champion_ms: float
    candidate_ms: float

    @property
    def wins(self) -> bool:
        """Whether the candidate is faster beyond noise."""
        return self.high < WINS

    @property
    def loses(self) -> bool:
        """Whether the candidate is slower beyond noise."""
        return self.low > LOSES

    @property
    def clear(self) -> bool:
        """Whether more runs would change nothing: it wins, loses, or does surely neither."""
        return self.wins or self.loses or WINS < self.low <= self.high < LOSES


def duel(
    champion: Session,
    candidate: Session,
    feed: Mapping[str, np.ndarray],
    candidate_feed: Mapping[str, np.ndarray] | None = None,
    *,
    seconds: float = 5.0,
) -> Duel:
    """Race two sessions in pairs, each pair in random order, until the answer is clear.

    Args:
        champion: the one to beat.
        candidate: the other.
        feed: input of both.
        candidate_feed: input of the candidate where it is another.
        seconds: time for the race, warm-up included.
    """
    other = feed if candidate_feed is None else candidate_feed
    runs = ((champion, feed), (candidate, other))
    generator = np.random.default_rng(0)
    clock = clock_for(champion.threads)
    begun = time.perf_counter()
    for session, given in runs * 2:
        session.run(given)
    long = time.perf_counter() - begun > 2 * _LONG
    fewest, step = (_FEWEST_LONG, 2) if long else (_FEWEST, 16)
    pairs: list[tuple[float, float]] = []
    while len(pairs) < _MOST and (len(pairs) < fewest or time.perf_counter() < begun + seconds):
        times = [0.0, 0.0]
        for index in generator.permutation(2):
            start = clock()
            runs[index][0].run(runs[index][1])
            times[index] = (clock() - start) * 1e3
        pairs.append((times[0], times[1]))
        if len(pairs) >= fewest and len(pairs) % step == 1:
            answer = judged(np.array(pairs))
            if answer.clear:
                return answer
    return judged(np.array(pairs))


def clock_for(threads: int) -> Callable[[], float]:
    """Seconds that runs on so many threads are timed by."""
    return time.process_time if threads == 1 else time.perf_counter


def judged(pairs: np.ndarray) -> Duel:
    """Ratio and interval of paired times.

    Args:
        pairs: float64[runs, 2], milliseconds of champion and candidate.
    """
    ratios = pairs[:, 1] / pairs[:, 0]
    generator = np.random.default_rng(0)
    drawn = generator.integers(0, len(ratios), (_RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(ratios[drawn], axis=1), [0.5, 99.5])
    champion, candidate = np.median(pairs, axis=0)
    return Duel(float(np.median(ratios)), float(low), float(high), float(champion), float(candidate))
