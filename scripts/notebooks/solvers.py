# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # The solvers on another bi-level problem
#
# `implicit_gradient` and the solvers know nothing of reinforcement learning. Here they tune a ridge regression: one penalty per feature,
# learned by gradient descent on the *validation* loss, through the solution of the training problem. Most features are noise, and their
# penalties should grow.

# %%
import os

import jax
import jax.numpy as jnp

from llmrl import implicit_gradient
from llmrl.bilevel.solvers import conjugate_gradient, dense, diagonal, identity, neumann, neumann_finite_difference

SMALL = bool(os.environ.get("LLMRL_SMALL"))  # seconds instead of results, for tests
OUTER_STEPS = 10 if SMALL else 200
FEATURES, USEFUL, SAMPLES = 20, 4, 30

# %%
data_key, weight_key, noise_key = jax.random.split(jax.random.key(0), 3)
inputs = jax.random.normal(data_key, (2, SAMPLES, FEATURES))
truth = jnp.where(jnp.arange(FEATURES) < USEFUL, jax.random.normal(weight_key, (FEATURES,)) + 2.0, 0.0)
targets = inputs @ truth + 1.5 * jax.random.normal(noise_key, (2, SAMPLES))


def squared_error(theta, part):
    return jnp.mean((inputs[part] @ theta - targets[part]) ** 2)


# %% [markdown]
# Inside: the training loss with the penalties. Outside: the validation loss, which sees the penalties only through the solution.


# %%
def inner_loss(theta, phi):
    return squared_error(theta, 0) + jnp.sum(jnp.exp(phi) * theta**2)


def outer_loss(theta, phi):
    return squared_error(theta, 1)


@jax.jit
def solve_inner(phi):
    covariance = inputs[0].T @ inputs[0] / SAMPLES + jnp.diag(jnp.exp(phi))
    return jnp.linalg.solve(covariance, inputs[0].T @ targets[0] / SAMPLES)


# %% [markdown]
# ## One gradient, all solvers
#
# `dense` builds the whole Hessian and is the truth. Every solve says how well it did: the relative residual is measured, not estimated.

# %%
phi = jnp.full(FEATURES, -3.0)
theta = solve_inner(phi)
key = jax.random.key(1)
SOLVERS = {
    "dense": dense(),
    "conjugate_gradient(5)": conjugate_gradient(5),
    "conjugate_gradient(20)": conjugate_gradient(20),
    "neumann(5)": neumann(5),
    "neumann(100)": neumann(100),
    "finite differences(100)": neumann_finite_difference(100, step_size=0.1),
    "diagonal": diagonal(8),
    "identity": identity(),
}


def gradient_with(solver):
    """(gradient, how the solve went), compiled."""
    return jax.jit(
        lambda theta, phi, key: implicit_gradient(
            inner_loss, outer_loss, theta, phi, solver=solver, key=key
        )
    )


exact, _ = gradient_with(dense())(theta, phi, key)
print(f"{'solver':25s}{'residual':>10s}{'products':>10s}{'cosine with the truth':>24s}")
for name, solver in SOLVERS.items():
    found, info = gradient_with(solver)(theta, phi, key)
    cosine = jnp.vdot(found, exact) / (jnp.linalg.norm(found) * jnp.linalg.norm(exact))
    print(f"{name:25s}{info.residual_norm:10.1e}{int(info.num_matvecs):10d}{cosine:24.3f}")

# %% [markdown]
# A residual above 1 is worse than the answer 0, and may still point the right way: look at the cosine of `identity`. And the last word
# is not the residual's: the finite differences of the paper's Algorithm 1 solve well, but they take the mixed derivative as a difference over
# the whole length of the solution, too, which is right to first order only.
#
# ## Learning the penalties

# %%
learned = gradient_with(conjugate_gradient(20))
first = outer_loss(theta, phi)
for number in range(OUTER_STEPS):
    gradient, _ = learned(solve_inner(phi), phi, jax.random.fold_in(key, number))
    phi = jnp.clip(phi - gradient, -8.0, 6.0)
penalties = jnp.exp(phi)
print(f"validation loss {first:.2f} -> {outer_loss(solve_inner(phi), phi):.2f} (the noise alone is {1.5**2:.2f})")
print(f"penalty, median: useful features {jnp.median(penalties[:USEFUL]):.3f}, noise {jnp.median(penalties[USEFUL:]):.3f}")

# %% [markdown]
# Any pair of scalar functions of two pytrees will do: neural networks, weights of samples, augmentation, the learned reward of an agent. What the
# arguments mean: [`implicit_gradient`](../api/index.md#llmrl.bilevel.hypergradients.implicit_gradient).
