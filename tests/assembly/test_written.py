"""``aux=code``: every function of a file is a source, and what cannot be one is refused by name."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llmrl
from llmrl.assembly.identity import of_one_run
from llmrl.assembly.parts import any_environment, make_environment
from llmrl.language.function_files import SHIPPED, read_file
from llmrl.rewards.trial import Trial
from llmrl.settings.errors import BadValue
from llmrl.training import written

HEAD = "# format: llmrl-functions 1\n\n"
OWN = HEAD + (
    'def lean(state, action, next_state):\n    """Pays for leaning."""\n    return 2 * state.theta\n\n\n'
    'def push(state, action, next_state):\n    """Pays for a push."""\n    return action\n'
)


@pytest.fixture
def own(tmp_path):
    def make(text=OWN):
        file = tmp_path / "own.txt"
        file.write_text(text)
        return f"aux.file={file}"

    return make


def test_the_functions_of_a_file_are_the_last_sources(own):
    config = llmrl.compose("aux=[harmful,code]", own(), "aux.scale=3", "aux.sources.code=0.5")
    env = make_environment(config)
    assert env.spec.aux_names == ("harmful", "lean", "push")
    state, _ = env.reset(jax.random.key(0))
    _, step = env.step(jax.random.key(1), state, jnp.asarray(1))
    np.testing.assert_allclose(step.aux[1:], [3.0 * state.theta, 1.5], rtol=1e-6)


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*/*.txt")))
def test_what_is_shipped_fits_its_environment(path):
    words = ("env=gymnax", f"env.id={path.stem}") if "-" in path.stem else (f"env={path.stem}",)
    env = make_environment(llmrl.compose(*words, "aux=code", f"aux.file={path.parent.name}"))
    assert env.spec.aux_names == tuple(function.name for function in read_file(path).functions)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (OWN.replace("2 * state.theta", "state.angle"), "lean of .* is refused: line 5: state.angle does not exist; "),
        (OWN.replace("2 * state.theta", "open('x')"), "lean of .* is refused: line 5: a call of open"),
        (OWN.replace("return action", "return jnp.array([action])"), r"push of .* an array of shape \[1\]"),
        (OWN.replace("push(", "novelty("), "has the name of another source: novelty"),
        (OWN.replace("push(", "harmful("), "sources need different names, got .'harmful'"),
        (OWN.replace("push(", "lean("), "lean is there twice"),
        (OWN.replace("format", "from"), "its first line must read"),
    ],
)
def test_a_function_that_cannot_be_a_source_is_refused_by_name(own, text, reason):
    config = llmrl.compose("aux=[harmful,code]", own(text))
    with pytest.raises(BadValue, match=reason) as error:
        make_environment(config)
    assert "\n" not in str(error.value)


def test_what_cannot_have_written_functions_says_so(own):
    with pytest.raises(BadValue, match=r"aux\.file=.* is for aux=code"):
        llmrl.compose("aux=harmful", own())
    with pytest.raises(BadValue, match="unknown environment of the functions 'handmade' 'crumbs'"):
        make_environment(llmrl.compose("env=crumbs", "aux=code"))
    with pytest.raises(BadValue, match="crafter runs in Python"):
        any_environment(llmrl.compose("env=crafter", "aux=code"))


def test_the_file_matters_to_those_who_hear_it(own):
    shipped, other = (llmrl.compose("aux=code", *words) for words in ((), (own(),)))
    assert not of_one_run(shipped, other)
    ppo = [replace(config, method=replace(config.method, name="ppo")) for config in (shipped, other)]
    assert of_one_run(*ppo)


def test_before_training_a_line_says_how_each_function_ranks_random_episodes(own, monkeypatch):
    config, told = llmrl.compose("aux=code", own()), []
    monkeypatch.setattr(written, "note", told.append)
    found = {"lean": Trial(True, 0.5, 8, 6.0), "push": Trial(False, 0.0, 0, 0.0)}
    monkeypatch.setattr(written, "tried", lambda env, functions, discount: {name: found[name] for name in functions})
    with pytest.raises(BadValue, match="push is refused: a value is no number"):
        written.try_written(config)
    assert told == [
        "lean speaks on 50% of the steps of 64 random episodes; ranks 75% of 8 pairs of them as the task does "
        "(chance: 50%)"
    ]
    written.try_written(llmrl.compose("aux=harmful"))  # has nothing to try
