"""The search for layers to keep float, against the smallest passing set found by trying all prefixes."""

from hypothesis import given
from hypothesis import strategies as st

from quantrim.compression.search import fewest_float

orders = st.integers(1, 40).map(lambda count: [f"layer_{index}" for index in range(count)])


@given(orders, st.data())
def test_where_every_float_layer_helps_the_shortest_prefix_is_found(order, data):
    needed = data.draw(st.integers(1, len(order)))
    asked = []

    def trial(kept):
        asked.append(kept)
        return kept >= frozenset(order[:needed])

    assert fewest_float(order, trial) == frozenset(order[:needed])
    assert len(asked) == len(set(asked))
    assert len(asked) <= 2 * len(order).bit_length() + 1 + 8


@given(orders, st.data())
def test_layers_that_were_only_in_the_way_go_back_to_int8(order, data):
    bad = frozenset(data.draw(st.lists(st.sampled_from(order), min_size=1, max_size=6, unique=True)))
    kept = fewest_float(order, lambda chosen: chosen >= bad, most_returned=len(order))
    assert kept == bad


@given(orders, st.functions(like=lambda kept: ..., returns=st.booleans(), pure=True))
def test_whatever_noise_says_the_set_that_is_returned_had_passed(order, trial):
    kept = fewest_float(order, trial)
    if kept is not None:
        assert trial(kept)
    else:
        assert not trial(frozenset(order))


def test_none_where_not_even_all_layers_suffice():
    assert fewest_float(["a", "b", "c"], lambda kept: False) is None
    assert fewest_float([], lambda kept: True) is None
