"""Tables on the device against Python's own dictionary and counter, for any keys, queries and sizes."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrl.rewards.sources import NO_KEY, lookup, tally

ROWS, QUERIES, EVENTS = 8, 16, 3
KEYS = st.one_of(st.integers(0, 12), st.integers(0, 2**32 - 2), st.sampled_from([0, 2**31 - 1, 2**31, 2**32 - 2]))
"""Few different ones, so that some are met again; and all around where a signed integer would overflow."""

look = jax.jit(lookup)


def table(answers):
    keys, values = np.full(ROWS, NO_KEY), np.full((ROWS, EVENTS), 0.5, np.float32)
    for row, key in enumerate(sorted(answers)):
        keys[row], values[row] = key, answers[key]
    return keys, values


@settings(deadline=None)
@given(
    st.dictionaries(KEYS, st.lists(st.floats(0, 1, width=32), min_size=EVENTS, max_size=EVENTS), max_size=ROWS),
    st.lists(st.tuples(KEYS, st.integers(-1, EVENTS)), max_size=QUERIES),
)
def test_looking_up_is_a_dictionary(answers, queries):
    queries = [*queries, *((key, 1) for key in answers)][:QUERIES]
    asked = np.full(QUERIES, NO_KEY)
    events = np.zeros(QUERIES, np.int32)
    for i, (key, event) in enumerate(queries):
        asked[i], events[i] = key, event
    values, known = look(*table(answers), asked, events)
    assert known.tolist() == [key in answers for key in asked.tolist()]
    expected = [
        answers[key][event] if key in answers and 0 <= event < EVENTS else 0.0
        for key, event in zip(asked.tolist(), events, strict=True)
    ]
    np.testing.assert_array_equal(values, np.asarray(expected, np.float32))


def test_an_empty_row_has_no_key_and_batches_keep_their_shape():
    keys, values = table({7: [0.1, 0.2, 0.3]})
    asked = jnp.asarray([[7, 8], [NO_KEY, 7]], jnp.uint32)
    found, known = look(keys, values, asked, jnp.asarray([[0, 0], [0, 2]], jnp.int32))
    np.testing.assert_array_equal(found, np.asarray([[0.1, 0.0], [0.0, 0.3]], np.float32))
    np.testing.assert_array_equal(known, [[True, False], [False, True]])


def test_new_rows_are_no_new_program():
    compiled = look._cache_size()
    for answers in ({}, {1: [0.0] * 3}, {key: [1.0] * 3 for key in range(ROWS)}):
        look(*table(answers), np.zeros(5, np.uint32), np.zeros(5, np.int32))
    assert look._cache_size() == compiled + 1


count = jax.jit(tally, static_argnums=2)


def as_dict(keys, counts):
    assert all((key == NO_KEY) == (number == 0) for key, number in zip(keys, counts, strict=True))
    return {int(key): int(number) for key, number in zip(keys, counts, strict=True) if key != NO_KEY}


@settings(deadline=None)
@given(st.lists(st.one_of(KEYS, st.just(int(NO_KEY))), max_size=QUERIES), st.integers(1, 3))
def test_a_tally_is_a_counter_that_keeps_the_most_common(met, each):
    keys = np.full(QUERIES, NO_KEY)
    keys[: len(met)] = met
    expected = Counter({key: each * number for key, number in Counter(met).items() if key != NO_KEY})
    counts = np.full(QUERIES, each, np.int32)
    assert as_dict(*count(keys, counts, QUERIES)) == expected

    few_keys, few = count(keys, counts, 4)
    assert few.tolist() == [*sorted(expected.values(), reverse=True)[:4], *[0] * (4 - len(expected))]
    assert as_dict(few_keys, few).items() <= expected.items()


def test_tallies_add_up_as_one_where_everything_fits():
    rng = np.random.default_rng(0)
    met = rng.integers(0, 10, (5, QUERIES)).astype(np.uint32)
    keys, counts = np.full(10, NO_KEY), np.zeros(10, np.int32)
    for part in met:
        both = np.concatenate([keys, part]), np.concatenate([counts, np.ones(QUERIES, np.int32)])
        keys, counts = map(np.asarray, count(*both, 10))
    assert as_dict(keys, counts) == Counter(met.reshape(-1).tolist())
