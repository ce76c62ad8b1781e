"""What PPO differentiates is the same network with the same gradient, however wide its layers are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmrl.nets import make_critic, make_policy
from llmrl.types import Box, Discrete, EnvSpec

DISCRETE = EnvSpec("none", (4,), Discrete(2), 10, ("first",))
CONTINUOUS = EnvSpec("none", (4,), Box(2), 10, ("first",))


def close(a, b):
    """To rounding, in units of the largest number of each array: sums are taken in another order."""
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * float(1.0 + jnp.abs(y).max())), a, b)


def directions(tree):
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), tree)


@pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
@pytest.mark.parametrize("hidden", [(16, 16), (3,), (2, 32)], ids=str)
def test_the_policy_of_updates_has_the_gradient_and_curvature_of_the_policy(spec, hidden):
    policy = make_policy(spec, hidden)
    params = directions(policy.init(jax.random.key(0)))
    obs = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5, 4)), jnp.float32)

    def loss(distribution):
        return lambda p: jnp.mean(jnp.sin(distribution(p, obs).entropy() + sum(map(jnp.sum, distribution(p, obs)))))

    plain, quick = loss(policy.distribution), loss(policy.in_updates)
    close(jax.value_and_grad(quick)(params), jax.value_and_grad(plain)(params))
    v = directions(params)
    close(*(jax.jvp(jax.grad(f), (params,), (v,))[1] for f in (quick, plain)))


def test_seeds_side_by_side_are_no_other():
    critic = make_critic(DISCRETE, (16, 16), 3)
    params = jax.vmap(critic.init)(jax.random.split(jax.random.key(0), 2))
    obs = jnp.asarray(np.random.default_rng(0).normal(size=(2, 40, 4)), jnp.float32)

    def slope(p, x):
        return jax.grad(lambda q: jnp.mean(jnp.square(critic.value(q, x) - 1.0)))(p)

    together = jax.vmap(slope)(params, obs)
    for i in range(2):
        close(jax.tree.map(lambda x, i=i: x[i], together), slope(jax.tree.map(lambda x, i=i: x[i], params), obs[i]))
