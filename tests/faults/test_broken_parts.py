"""Whatever is wrong with an environment, a source, a captioner or a policy of one's own is one line, said before
anything is compiled: which function, what came, what was expected."""

import json
import re
import sys
from functools import partial
from types import ModuleType

import jax
import numpy as np
import pytest
from broken import (
    CAPTIONERS,
    ENVIRONMENTS,
    LINE,
    LOUD,
    SOURCES,
    SPEC,
    field,
    made_with,
    observe,
    reset,
    resets,
    spec,
    step,
)
from small import RUN

import llmrl
from llmrl.cli.main import _is_for_user
from llmrl.envs import checked_environment, make, time_step
from llmrl.results import policies
from llmrl.results.policies import load_policy, save_policy
from llmrl.training.loop import Result, make_trainer
from llmrl.types import Box, Environment


@pytest.fixture(scope="module")
def worlds():
    """A module of one's own, as a dotted path finds it."""
    module = ModuleType("broken_worlds_for_tests")
    module.healthy = lambda: LINE
    module.missing = partial(made_with, "x")
    sys.modules[module.__name__] = module
    yield module
    del sys.modules[module.__name__]


def test_what_is_healthy_passes(worlds):
    assert make(f"{worlds.__name__}.healthy", aux=()) is LINE
    for env in (
        spec(action=Box(1))._replace(step=lambda key, state, action: step(key, state, action[0])),
        spec(obs_scale=2),
        resets(lambda state, obs: (state | {"time": 0}, obs)),  # a weak type is the same type
        field(success=lambda x: False, reward=lambda x: 0.5, event=lambda x: 1),
        LINE._replace(steps_per_reset=3),
    ):
        assert checked_environment(env) is env


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int32", "uint8", "bool"])
def test_an_observation_may_be_of_any_dtype_of_real_numbers(dtype):
    def seen(state):
        return observe(state).astype(dtype)

    def stepping(key, state, action):
        state, result = step(key, state, action)
        return state, time_step(seen(state), result.reward, result.terminated, result.truncated)

    env = Environment(SPEC, lambda key: (reset(key)[0], seen(reset(key)[0])), stepping)
    assert checked_environment(env) is env


@pytest.mark.parametrize("name", ["cartpole", "cartpole_continuous", "gridworld", "Pendulum-v1", "DeepSea-bsuite"])
def test_the_librarys_own_environments_pass(name):
    env = make(name, aux=())
    assert checked_environment(env) is env


# --- policies ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """A policy's file; nothing was trained for it."""
    config = llmrl.compose(*RUN, "method=ppo", "seeds=1")
    trainer = make_trainer(config)
    shapes = jax.eval_shape(trainer.init, jax.random.key(0), trainer.numbers)
    actor, phis = jax.tree.map(lambda x: np.zeros((1, *x.shape), x.dtype), (shapes.params.actor, shapes.phis))
    states = shapes._replace(params=shapes.params._replace(actor=actor), phis=phis)
    return save_policy(Result(config, {}, states, {}), tmp_path_factory.mktemp("policy") / "policy.npz")


def header_of(path, **changes):
    """The same file with another header."""
    with np.load(path) as file:
        stored = dict(file)
    header = json.loads(str(stored.pop("header"))) | changes
    return stored | {"header": np.array(json.dumps(header))}


def rewritten(path, folder, stored):
    np.savez(folder / "changed.npz", **stored)
    return load_policy(folder / "changed.npz")


def cut(path, folder):
    (folder / "cut.npz").write_bytes(path.read_bytes()[:-200])
    return load_policy(folder / "cut.npz")


def of_text(path, folder):
    (folder / "notes.npz").write_text("my policy")
    return load_policy(folder / "notes.npz")


def changed_number(path, folder):
    stored = header_of(path)
    stored["leaf0"] = stored["leaf0"] + 1
    return rewritten(path, folder, stored)


def drawing(key):
    return lambda path, folder: load_policy(path).act(np.zeros(6, np.float32), key)


POLICIES = {
    "no file": (lambda path, folder: load_policy(folder / "x.npz"), r"x\.npz is neither a policy's file nor a run's"),
    "no run": (lambda path, folder: load_policy(folder), "run"),
    "a file of text": (of_text, r"notes\.npz is no policy's file, or is damaged"),
    "a file cut short": (cut, r"cut\.npz is no policy's file, or is damaged"),
    "another format": (
        lambda path, folder: rewritten(path, folder, header_of(path, format=99)),
        r"changed\.npz has format=99, this llmrl reads format=\d",
    ),
    "another number": (changed_number, r"changed\.npz is damaged: its numbers are not those that were saved"),
    "no observations": (
        lambda path, folder: load_policy(path).act(np.zeros((0, 6), np.float32)),
        r"policy.*observations of shape \[6\].*; got shape \[0, 6\], an empty batch",
    ),
    "a complex observation for a policy": (
        lambda path, folder: load_policy(path).act(np.zeros(6, np.complex64)),
        "policy knows observations of real numbers; got dtype complex64",
    ),
    "a number as key": (drawing(0), r"policy.act\(obs, key\) needs one random key.*; got 0"),
    "a text as key": (drawing("x"), r"policy.act\(obs, key\) needs one random key.*; got 'x'"),
    "two keys": (drawing(jax.random.split(LOUD)), r"policy.act\(obs, key\) needs one random key.*; got key<.*>\[2\]"),
    "a vector as key": (drawing(np.zeros(3, np.uint32)), r"policy.act\(obs, key\) needs.*; got uint32\[3\]"),
    "a float as key": (drawing(np.zeros(2, np.float32)), r"policy.act\(obs, key\) needs.*; got float32\[2\]"),
    "a seed that a file does not have": (
        lambda path, folder: load_policy(path, seed=7),
        r"policy\.npz holds the policy of seed 0 alone, got seed=7",
    ),
    "a seed that is false": (lambda path, folder: load_policy(path, seed=False), "of seed 0 alone, got seed=False"),
    "a seed of draws that is true": (
        lambda path, folder: load_policy(path, draw_seed=True),
        "draw_seed must be a whole number from 0 to 4294967295, got True",
    ),
    "a seed of draws that is too large": (
        lambda path, folder: load_policy(path, draw_seed=2**32 + 1),
        "draw_seed must be a whole number from 0 to 4294967295, got 4294967297",
    ),
    "an observation of another length": (
        lambda path, folder: load_policy(path).act(np.zeros(3, np.float32)),
        r"policy.*observations of shape \[6\].*; got shape \[3\]",
    ),
    "an observation in words": (
        lambda path, folder: load_policy(path).act("near"),
        r"policy.*observations of shape \[6\].*; got str",
    ),
}


# --- the law ----------------------------------------------------------------------------------------------------------


def making(module, part):
    """How a part is given to llmrl, by the kind that it is: by its dotted path, as on the command line."""
    healthy, broken = f"{module.__name__}.healthy", f"{module.__name__}.broken"
    if part in SOURCES:
        module.broken = SOURCES[part][0]
        return lambda: make(healthy, aux=(), aux_function=broken)
    if part in CAPTIONERS:
        module.broken = CAPTIONERS[part][0]
        return lambda: make(healthy, aux=(), captioner=broken)
    module.broken = lambda: ENVIRONMENTS[part][0]
    return lambda: make(broken, aux=())


def refusal(use):
    with pytest.raises((ValueError, TypeError)) as caught:
        use()
    assert _is_for_user(caught.value)  # so that the command line shows one line and no traceback
    return str(caught.value)


@pytest.mark.parametrize("part", [*ENVIRONMENTS, *SOURCES, *CAPTIONERS, *POLICIES])
def test_what_is_broken_is_refused_in_one_line(worlds, policy, tmp_path, part):
    says = (ENVIRONMENTS | SOURCES | CAPTIONERS | POLICIES)[part][1]
    use = partial(POLICIES[part][0], policy, tmp_path) if part in POLICIES else making(worlds, part)
    message = refusal(use)
    assert "\n" not in message and len(message) < 700
    assert re.search(says, message), message
    if part in ENVIRONMENTS:
        assert message.startswith("env.id 'broken_worlds_for_tests.broken'")


@pytest.mark.parametrize("seed", [True, False, -1, 1])
def test_a_seed_is_one_of_the_runs(seed, tmp_path):
    config = llmrl.compose(*RUN, "method=ppo", "seeds=1")
    with pytest.raises(ValueError, match=f"seed must be one of the run's, 0 to 0, got {seed}"):
        save_policy(Result(config, {}, None, {}), tmp_path / "policy.npz", seed=seed)


@pytest.mark.parametrize("seed", [0.0, "0", None, np.float32(0), np.bool_(False)])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(ValueError, match=re.escape(f"seed must be one of the run's, 0 to 0, got {seed!r}")):
        policies._check_seed(seed, 1)


def test_keys_of_both_kinds_draw_alike(policy):
    acting, obs = load_policy(policy, seed=0), np.zeros(6, np.float32)
    assert acting.act(obs, jax.random.PRNGKey(3)) == acting.act(obs, jax.random.key(3))


def test_there_are_sixty_broken_parts():
    assert len({**ENVIRONMENTS, **SOURCES, **CAPTIONERS, **POLICIES}) >= 60


def test_a_factory_that_fails_is_named(worlds):
    message = refusal(lambda: make(f"{worlds.__name__}.missing", aux=()))
    assert "\n" not in message and "missing' failed: LookupError: no map called" in message
