"""Answers and what was made of them: means per caption and event, and the extremes."""

import numpy as np
import pytest

from llmrl.analysis.answers import Words, answers, extremes

KEYS = np.array([[7, 7, 9, 4], [7, 9, 9, 4]], np.uint32)
SCORES = {7: np.array([0.2, 0.8]), 9: np.array([0.5, 1.0])}


def told(weight, probes=3):
    """Two seeds, four states; the first probe is what was done, the others are both events."""
    event = np.stack([np.array([[0, 1, 0, 0], [0, 1, 1, 0]]), np.zeros((2, 4)), np.ones((2, 4))], axis=2).astype(int)
    words = Words(0, KEYS, event[..., :probes], lambda key: f"state {key}", ("left", "right"), SCORES)
    return {(each.state, each.event): each for each in answers(words, weight[..., :probes] ** 2, weight[..., :probes])}


def test_an_answer_has_the_mean_weight_of_the_states_that_read_so_and_the_steps_on_which_it_was_heard():
    weight = np.arange(24, dtype=float).reshape(2, 4, 3)
    found = told(weight)
    assert set(found) == {(f"state {key}", event) for key in (7, 9) for event in ("left", "right")}  # 4 has no answer
    left = found["state 7", "left"]
    states = np.array([weight[0, 0, 1], weight[0, 1, 1], weight[1, 0, 1]])
    assert left.weight == pytest.approx(states.mean())
    assert left.influence == pytest.approx((states**2).mean())
    assert (left.score, left.visits) == (0.2, 2)
    assert [each.visits for each in found.values()] == sorted((each.visits for each in found.values()), reverse=True)
    assert sum(each.visits for each in found.values()) == 6


def test_where_only_the_action_taken_is_asked_about_it_is_what_counts():
    weight = np.arange(24, dtype=float).reshape(2, 4, 3)
    found = told(weight, probes=1)
    assert found["state 7", "left"].weight == pytest.approx((weight[0, 0, 0] + weight[1, 0, 0]) / 2)
    assert ("state 9", "right") in found
    assert sum(each.visits for each in found.values()) == 6


def test_extremes_are_sorted_and_leave_out_what_says_nothing_or_is_rare():
    one = next(iter(told(np.ones((2, 4, 3))).values()))
    shares = (0.9, -0.7, 0.01, 0.5, -0.02, -0.9)
    some = [one._replace(state=str(share), influence=share, visits=50) for share in shares]
    some += [one._replace(influence=1.0, visits=2), one._replace(influence=1.0, visits=50, score=0.5)]
    found = extremes(some, 0.05)
    assert {kind: [each.influence for each in those] for kind, those in found.items()} == {
        "most trusted": [0.9, 0.5],
        "most ignored": [0.01, -0.02],
        "most turned around": [-0.9, -0.7],
    }
    assert [len(those) for those in extremes(some, 0.05, number=1).values()] == [1, 1, 1]
