import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrl.language import table as tables

SCORES = st.floats(0.0, 1.0, width=32)
KEYS = st.integers(0, tables.PADDING - 1)
ANSWERS = st.dictionaries(KEYS, st.tuples(SCORES, SCORES).map(lambda row: np.asarray(row, np.float32)), max_size=12)


@settings(max_examples=50, deadline=None)
@given(ANSWERS, ANSWERS)
def test_a_table_knows_what_was_merged_last_and_nothing_else(first, second):
    merged = tables.merge(tables.build(first, 24, 2), second)
    expected = {**first, **second}
    assert tables.size(merged) == len(expected)
    assert merged.keys.shape == (24,) and merged.scores.shape == (24, 2)
    assert merged.keys.dtype == np.uint32 and merged.scores.dtype == np.float32
    assert np.all(np.diff(merged.keys[: len(expected)].astype(np.int64)) > 0)
    assert np.all(merged.keys[len(expected) :] == tables.PADDING)
    known = tables.as_dict(merged)
    assert known.keys() == expected.keys()
    for key, row in expected.items():
        np.testing.assert_array_equal(known[key], row)


def test_the_order_of_merging_different_states_does_not_matter():
    rows = {key: np.asarray([key / 10, 1.0], np.float32) for key in range(10)}
    forward, backward = tables.empty(16, 2), tables.empty(16, 2)
    for key in range(10):
        forward = tables.merge(forward, {key: rows[key]})
        backward = tables.merge(backward, {9 - key: rows[9 - key]})
    for ours, theirs in zip(forward, backward, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_merge_leaves_the_old_table_as_it_was():
    old = tables.build({1: np.zeros(1, np.float32)}, 2, 1)
    tables.merge(old, {1: np.ones(1, np.float32), 2: np.ones(1, np.float32)})
    assert tables.as_dict(old) == {1: np.zeros(1)}


def test_a_full_table_keeps_what_it_has_takes_the_first_and_says_so(caplog):
    answers = {key: np.ones(1, np.float32) for key in (9, 3, 5, 1)}
    full = tables.merge(tables.build({7: np.zeros(1, np.float32)}, 3, 1), answers)
    assert full.keys.tolist() == [3, 7, 9]
    assert "2 of 5 states" in caplog.text
    updated = tables.merge(full, {7: np.ones(1, np.float32)})
    assert updated.scores[1] == 1.0


@pytest.mark.parametrize(
    ("key", "row", "message"),
    [
        (1, [np.nan, 0.0], "nan"),
        (1, [2.0, 0.0], "2.0"),
        (1, [0.0], "shape"),
        (-1, [0.0, 0.0], "got -1"),
        (tables.PADDING, [0.0, 0.0], "got 4294967295"),
    ],
)
def test_what_is_no_answer_is_refused(key, row, message):
    with pytest.raises(ValueError, match=message):
        tables.build({key: np.asarray(row, np.float32)}, 4, 2)


def test_a_saved_table_is_read_back_and_a_damaged_one_refused(tmp_path):
    table = tables.build({5: np.asarray([0.1, 0.9], np.float32)}, 4, 2)
    tables.save(table, tmp_path / "tables" / "a.npz")
    for ours, theirs in zip(table, tables.load(tmp_path / "tables" / "a.npz"), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    tables.save(table._replace(keys=table.keys[::-1].copy()), tmp_path / "b.npz")
    (tmp_path / "c.npz").write_bytes((tmp_path / "tables" / "a.npz").read_bytes()[:100])
    (tmp_path / "d.npz").write_text("no archive")
    np.savez(tmp_path / "e.npz", keys=np.asarray([object()]))
    for name in "bcde":
        with pytest.raises(ValueError, match=f"{name}.npz"):
            tables.load(tmp_path / f"{name}.npz")
    assert [file.name for file in (tmp_path / "tables").iterdir()] == ["a.npz"]
