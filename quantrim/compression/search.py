"""The fewest layers to keep float: a search over one order of the layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

#: Whether a set of float layers is accurate enough.
Trial = Callable[[frozenset[str]], bool]


def fewest_float(order: Sequence[str], trial: Trial, *, most_returned: int = 8) -> frozenset[str] | None:
    """A small set of layers that must stay float.

    The first 1, 2, 4, ... layers of the order are tried, then the gap is halved, and last each layer that was
    kept, from the end of the order, is tried in INT8 again: what one bad layer forced may not need the others.
    Where accuracy rises with every float layer, the prefix found is the shortest one; where noise makes it rise
    and fall, the set found still passes, since every set was tried itself.

    Args:
        order: layers, the one that should be float first in front.
        trial: whether a set passes; asked about 2 log2(n) + ``most_returned`` times, never twice for a set.
        most_returned: layers that are tried in INT8 again at most.

    Returns:
        Layers to keep float, none of them tried in vain; None where not even all of them suffice.
    """
    low, high = 0, 0  # the first low layers don't suffice, the first high ones do
    while high < len(order):
        high = min(len(order), max(1, 2 * high))
        if trial(frozenset(order[:high])):
            break
        low = high
    else:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        if trial(frozenset(order[:middle])):
            high = middle
        else:
            low = middle
    kept = frozenset(order[:high])
    for name in list(reversed(order[: high - 1]))[:most_returned]:  # the last one is needed, the bisection says
        if trial(kept - {name}):
            kept -= {name}
    return kept
