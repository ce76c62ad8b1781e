"""Reward functions asked for and asked for again: what a model is told of an environment and of a training."""

from dataclasses import replace
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest

import llmrl
from llmrl.analysis.trust import AS_ACTED, TrustMap
from llmrl.assembly.parts import make_environment
from llmrl.settings.config import LLMConfig
from llmrl.settings.errors import BadValue
from llmrl.studies import write as studies


def test_an_environment_is_described_by_its_own_words():
    config = llmrl.compose("env=keydoor", "env.size=5", "aux=none")
    task = studies.described(config, make_environment(config))
    assert task.name == "keydoor" and task.horizon == 80 and task.action == "a whole number from 0 to 3"
    assert task.words.startswith("Two rooms and a door between them")
    assert "size=5, horizon=80" in task.words and "Raises" not in task.words
    assert task.fields["reached"] == "truth value; whether the sub-goal was reached in this episode, []."
    assert task.fields["goal"].startswith("whole numbers, shape [2]; row and column of the goal")
    assert len(task.samples) == 6
    assert task.samples[0].startswith("state: position=[4, 0], goal=[4, 4], reached=False, time=0; action: ")


def test_gymnax_tasks_have_their_parameters():
    config = llmrl.compose("env=gymnax", "env.id=MountainCar-v0", "aux=none")
    words = studies._words(config, make_environment(config))
    assert "MountainCar" in words and "goal_position=0.5" in words


class Described(NamedTuple):
    """Something.

    Attributes:
        first: what comes first,
            on two lines.
        second: the rest.
    """

    first: int
    second: int


def test_meanings_are_read_from_docstrings():
    assert studies.attributes(Described) == {"first": "what comes first, on two lines.", "second": "the rest."}
    assert studies.attributes(int) == {}


# --- after a training -------------------------------------------------------------------------------------------------


def trained(names=("angle", "speed")):
    """A source that is trusted at half where the first component is above 0."""
    obs = np.linspace(-1.0, 1.0, 300, dtype=np.float32)[None, :, None] * np.array([1.0, 0.0], np.float32)
    weight = np.where(obs[..., :1] > 0, 0.25, 0.0).astype(np.float32)[:, :, None]
    shape = weight.shape
    ones = np.ones(shape, np.float32)
    found = TrustMap(("lean",), (AS_ACTED,), names, obs, ones, ones, ones, weight, np.full((1, 1), 0.5, np.float32))
    made = {"used": [0.0, 0.5, 0.0], "ignored": [0.0, 0.25, 0.5], "turned": [0.0, 0.25, 0.0]}
    curves = {f"trust_{name}/lean": np.array([shares], np.float32) for name, shares in made.items()}
    return found, curves | {"episode_return": np.array([[np.nan, 1.0, 3.0]], np.float32)}


def test_a_report_says_what_was_made_of_a_source_and_where():
    found, curves = trained()
    line = studies.what_was_made_of(found, curves, "lean")
    # Where it said nothing (the first iteration) nothing counts.
    assert "used on 33% of the steps on which it spoke, ignored on 50%, turned around on 17%" in line
    assert "by angle: +0.00 from -1 to -0.333, +0.25 from -0.333 to 0.333, +0.50 from 0.333 to 1" in line
    nameless = studies.what_was_made_of(trained(("observation 0", "observation 1"))[0], curves, "lean")
    assert nameless.endswith("as a share of full trust: +0.25")
    silent = {name: 0.0 * curve for name, curve in curves.items()}
    assert "never said anything" in studies.what_was_made_of(found, silent, "lean")
    assert studies.outcome(curves) == "the agent's return of an episode was 2, and 3 at the end"
    assert studies.outcome({"episode_return": np.full((1, 2), np.nan)}) == "no episode of the agent has ended"


def test_refining_tells_the_model_what_was_made_of_its_functions(monkeypatch, tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text(
        '# format: llmrl-functions 1\ndef lean(state, action, next_state):\n    """Leans."""\n    return state.theta\n'
    )
    config = llmrl.compose("aux=code", f"aux.file={file}")
    found, curves = trained()
    monkeypatch.setattr(studies.runs, "load_trained", lambda path: SimpleNamespace(config=config, metrics_path=path))
    monkeypatch.setattr(studies, "trust_map", lambda path: found)
    monkeypatch.setattr(studies.metrics, "read", lambda path: curves)
    told = []
    assert studies.refine("x", LLMConfig(), told.append, dry_run=True) == ()
    (prompt,) = told
    assert "def lean(" in prompt and "- lean: used on 33%" in prompt and "and 3 at the end" in prompt

    with pytest.raises(BadValue, match=r"llm\.provider=recorded writes no new functions"):
        studies.refine("x", LLMConfig(), told.append)
    deaf = replace(config, aux=replace(config.aux, sources={"harmful": 1.0}, file="handmade"))
    monkeypatch.setattr(studies.runs, "load_trained", lambda path: SimpleNamespace(config=deaf, metrics_path=path))
    with pytest.raises(BadValue, match="x has no functions to refine"):
        studies.refine("x", LLMConfig(), told.append, dry_run=True)
