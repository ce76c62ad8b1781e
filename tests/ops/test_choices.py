"""A choice in two steps is jax's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmrl.ops.choices import choice

DRAWS = 2000


def drawn(probability):
    keys = jax.random.split(jax.random.key(0), DRAWS)
    ours = jax.jit(jax.vmap(lambda key: choice(key, probability)))(keys)
    theirs = jax.jit(jax.vmap(lambda key: jax.random.choice(key, probability.size, p=probability)))(keys)
    return np.asarray(ours), np.asarray(theirs)


@pytest.mark.parametrize("size", [1, 2, 7, 256, 4096])
@pytest.mark.parametrize("share", [1.0, 0.2], ids=["all", "some"])
def test_it_draws_what_jax_draws(size, share):
    rng = np.random.default_rng(size)
    possible = rng.random(size) < share
    possible[rng.integers(size)] = True
    for weight in (possible.astype(np.float32), possible * rng.random(size).astype(np.float32)):
        ours, theirs = drawn(jnp.asarray(weight / weight.sum()))
        assert weight[ours].all()
        assert (ours == theirs).mean() > 0.998


@pytest.mark.parametrize("place", [0, 15, 16, 4095])
def test_a_single_possibility_is_taken(place):
    ours, _ = drawn(jnp.zeros(4096).at[place].set(1e-30))
    assert (ours == place).all()


def test_nothing_to_choose_from_is_an_index_all_the_same():
    ours, _ = drawn(jnp.full(4096, jnp.nan))
    assert ((ours >= 0) & (ours < 4096)).all()
