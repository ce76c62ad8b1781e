"""What is no number reaches one seed: it learns nothing from it, says so, and the others do not notice (F13)."""

import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llmrl
from llmrl.assembly.parts import make_environment
from llmrl.bilevel.trees import all_finite
from llmrl.training.devices import seed_keys
from llmrl.training.loop import make_trainer

LEARNED = (
    "method=scalar",
    "method.trust.cross_fitting=false",
    "method.trust.gate=false",
    "method.trust.advice=0",
    "solver=identity",
    "seeds=3",
)
CURSES = {"nothing": 0, "reward": 1, "observation": 2, "auxiliary": 3, "gradients": 4}


class Cursed(NamedTuple):
    """A state of the environment and what is to go wrong until the end of the episode."""

    state: Any
    curse: jax.Array


def cursed(env):
    """The same environment, but a curse in its state makes one thing of every step no number."""

    def reset(key):
        state, obs = env.reset(key)
        return Cursed(state, jnp.zeros((), jnp.int32)), obs

    def step(key, state, action):
        inner, result = env.step(key, state.state, action)
        curse = state.curse
        aux = jnp.where(curse == CURSES["auxiliary"], jnp.nan, result.aux)
        # Finite itself, but no sum and no square of it is: the rollout is sound and what is computed from it is not.
        aux = jnp.where(curse == CURSES["gradients"], jnp.float32(3e38), aux)
        return Cursed(inner, curse), result._replace(
            reward=jnp.where(curse == CURSES["reward"], jnp.inf, result.reward),
            obs=jnp.where(curse == CURSES["observation"], jnp.nan, result.obs),
            aux=aux,
        )

    return env._replace(reset=reset, step=step)


@pytest.fixture(scope="module")
def program(tiny):
    """First states of three seeds, and three iterations of training."""
    config = llmrl.compose(*tiny, *LEARNED)
    with pytest.MonkeyPatch.context() as patch:
        # By its full name: in the package's namespace, the name is the function's.
        patch.setattr(
            sys.modules["llmrl.training.loop"], "any_environment", lambda config: cursed(make_environment(config))
        )
        trainer = make_trainer(config)
    states = jax.jit(jax.vmap(lambda key: trainer.init(key, trainer.numbers)))(seed_keys(config))
    run = jax.jit(jax.vmap(lambda state: trainer.run(state, trainer.numbers, 3)))
    return states, run


def with_curse(states, curse):
    """One environment of the middle seed is cursed."""
    env_state = states.acting.env_state
    marked = env_state.curse.at[1, 0].set(CURSES[curse])
    return states._replace(acting=states.acting._replace(env_state=env_state._replace(curse=marked)))


def leaves(tree, seed):
    """One seed's numbers, as bytes."""
    plain = [jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in tree]
    return [np.asarray(leaf)[seed].tobytes() for leaf in plain]


@pytest.mark.parametrize("curse", [name for name in CURSES if name != "nothing"])
def test_one_seed_skips_and_the_others_do_not_notice(program, curse):
    states, run = program
    undisturbed, calm = run(states)
    after, metrics = run(with_curse(states, curse))
    for seed in (0, 2):
        assert leaves(jax.tree.leaves(after), seed) == leaves(jax.tree.leaves(undisturbed), seed)
        for name in metrics:
            assert np.asarray(metrics[name])[seed].tobytes() == np.asarray(calm[name])[seed].tobytes(), name
    # The episode ends within the rollout, and with it the curse: from then on there is something to learn.
    np.testing.assert_array_equal(metrics["skipped_update"], [[0, 0, 0], [1, 0, 0], [0, 0, 0]])
    assert bool(all_finite((after.params, after.opt_state, after.phis, after.acting.obs, after.acting.returned)))


def test_a_skipped_update_leaves_no_trace_in_the_optimiser(program):
    states, run = program
    disturbed, _ = run(with_curse(states, "reward"))
    undisturbed, _ = run(states)
    assert int(disturbed.iteration[1]) == int(undisturbed.iteration[1]) == 3
    # Its counts of steps: two iterations' worth instead of three.
    counts = [
        [int(leaf[1]) for leaf in jax.tree.leaves(state.opt_state) if leaf.dtype == jnp.int32]
        for state in (disturbed, undisturbed)
    ]
    assert counts[0] and [3 * count for count in counts[0]] == [2 * count for count in counts[1]]
