"""Union-find over slots against a slow one."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from quantrim.pruning.groups.slots import SlotSpace

PAIRS = st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30)


def slow_classes(pairs: list[tuple[int, int]]) -> list[frozenset[int]]:
    classes = [{slot} for slot in range(20)]
    for a, b in pairs:
        first, second = (next(c for c in classes if slot in c) for slot in (a, b))
        if first is not second:
            classes.remove(second)
            first |= second
    return [frozenset(c) for c in classes]


@given(PAIRS, st.lists(st.integers(0, 19), max_size=3))
def test_classes_and_reasons_equal_those_of_a_slow_union_find(pairs: list[tuple[int, int]], frozen: list[int]):
    space = SlotSpace()
    space.new(12)
    space.new(8)
    for a, b in pairs:
        space.tie(np.array([a]), np.array([b]))
    for slot in frozen:
        space.freeze(np.array([slot]), f"slot {slot}")
    solved = space.solve()
    found = {frozenset(np.flatnonzero(solved.of_slot == label).tolist()) for label in set(solved.of_slot)}
    assert found == set(slow_classes(pairs))
    for members in found:
        reason = solved.reasons.get(int(solved.of_slot[min(members)]))
        first = next((slot for slot in frozen if slot in members), None)
        assert reason == (None if first is None else f"slot {first}")


def test_rows_of_equal_parts_are_tied_place_by_place():
    space = SlotSpace()
    space.tie_rows(space.new(12).reshape(3, 4))
    labels = space.solve().of_slot
    assert labels.reshape(3, 4).T.tolist() == [[label] * 3 for label in labels[:4]]
