import asyncio
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrl.language.goals import best_match, cosine, local_similarity, parse_goals, read_embeddings, spelling
from llmrl.language.question import Unanswered


def test_goals_are_bulleted_lines():
    text = "Here you go:\n- Place a table.\n  * drink WATER\n2) sleep\n- place a table\n\nGood luck!"
    assert parse_goals(text) == ("place a table", "drink water", "sleep")
    assert parse_goals("- none") == ()


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200))
def test_any_text_has_goals_or_is_refused(text):
    try:
        goals = parse_goals(text)
    except Unanswered as failure:
        assert failure.kind == "unparseable"
    else:
        assert len(goals) <= 32
        assert all(goal and goal == goal.lower() for goal in goals)


def test_the_best_goal_over_the_threshold_counts():
    similarities = np.asarray([[0.95, 0.2, 0.89], [0.99, 0.1, -1.0]], np.float32)
    assert best_match(similarities, 0.9) == (pytest.approx(0.99), 0.0, 0.0)
    with pytest.raises(Unanswered):
        best_match(np.asarray([[np.nan]], np.float32), 0.9)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=4))
def test_similarity_of_spelling(goals):
    similarities = asyncio.run(spelling(goals, [*goals, "place a table"]))
    assert similarities.shape == (len(goals), len(goals) + 1)
    assert np.all((similarities >= 0.0) & (similarities <= 1.0))


def test_neither_articles_nor_order_nor_punctuation_count():
    named = ["place the table", "Table, place a!", "eat the cow"]
    alike = asyncio.run(spelling(named, ["place a table"]))[:, 0]
    np.testing.assert_array_equal(alike[:2], 1.0)
    assert alike[2] < 0.5


def test_cosine():
    vectors = np.asarray([[1.0, 0.0], [3.0, 4.0], [0.0, 0.0]], np.float32)
    np.testing.assert_allclose(cosine(vectors, vectors[:2]), [[1.0, 0.6], [0.6, 1.0], [0.0, 0.0]], rtol=1e-6)


# --- embeddings -------------------------------------------------------------------------------------------------------


def test_local_embeddings(monkeypatch):
    asked = []

    def encode(texts):
        asked.extend(texts)
        return [[float("a" in text), float("b" in text)] for text in texts]

    stand_in = SimpleNamespace(SentenceTransformer=lambda name: SimpleNamespace(encode=encode))
    monkeypatch.setitem(sys.modules, "sentence_transformers", stand_in)
    similarity = local_similarity("any")
    for _ in range(2):
        np.testing.assert_allclose(asyncio.run(similarity(["a", "ab"], ["b"])), [[0.0], [0.5**0.5]], rtol=1e-6)
    assert asked == ["a", "ab", "b"]  # each text once

    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ValueError, match="local-llm"):
        local_similarity("any")

    rows = [{"index": 1, "embedding": [2.0]}, {"index": 0, "embedding": [1]}]
    assert read_embeddings({"data": rows}, 2).tolist() == [[1.0], [2.0]]
    for body in (None, {}, {"data": rows[:1]}, {"data": [rows[0], {"embedding": [1.0, 2.0]}]}, {"data": [{}, {}]}):
        with pytest.raises(Unanswered):
            read_embeddings(body, 2)
