# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Two levels by hand
#
# A corridor of six cells that is small enough to compute everything exactly: no samples, no critic, no PPO. At the right end there is a
# reward of 1. A bad adviser pays for every step to the left. The agent believes it at first, with weight $\phi = 1$, and we watch the
# implicit gradient of the task's own return turn $\phi$ around.

# %%
import os

import jax
import jax.numpy as jnp
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from llmrl import implicit_gradient
from llmrl.analysis.plots import show_in_notebooks
from llmrl.bilevel.solvers import conjugate_gradient, identity, neumann

SMALL = bool(os.environ.get("LLMRL_SMALL"))  # seconds instead of results, for tests
OUTER_STEPS = 10 if SMALL else 40
CELLS, GAMMA, ENTROPY, PULL = 6, 0.9, 0.1, 1e-2

# %% [markdown]
# ## The task
#
# `to[s, a]` is the cell that action `a` leads to; the last cell is the end. `task` pays for reaching it, `advice` for going left.

# %%
cells = jnp.arange(CELLS)
to = jnp.stack([jnp.maximum(cells - 1, 0), jnp.minimum(cells + 1, CELLS - 1)], axis=1)
walking = (cells < CELLS - 1).astype(jnp.float32)  # nothing happens after the end
task = jnp.stack([jnp.zeros(CELLS), (cells == CELLS - 2).astype(jnp.float32)], axis=1)
advice = jnp.stack([0.1 * walking, jnp.zeros(CELLS)], axis=1)


def value(theta, reward):
    """Value of every cell under softmax(theta), by iterating Bellman's equation to its fixed point, [cells]."""
    policy = jax.nn.softmax(theta)

    def backup(v, _):
        return walking * jnp.sum(policy * (reward + GAMMA * v[to]), axis=1), None

    return jax.lax.scan(backup, jnp.zeros(CELLS), None, length=80)[0]


def entropy(theta):
    return -jnp.sum(walking[:, None] * jax.nn.softmax(theta) * jax.nn.log_softmax(theta))


# %% [markdown]
# ## The inner and the outer level
#
# The inner level believes the blend, the outer level asks about the task alone. (The pull of $\theta$ towards 0 is there because adding
# a constant to both actions of a cell changes nothing, so that without it the curvature would have no inverse.)


# %%
def inner_loss(theta, phi):
    blended = value(theta, task + phi * advice)[0]
    return -blended - ENTROPY * entropy(theta) + PULL * jnp.sum(theta**2)


def outer_loss(theta, phi):
    return -value(theta, task)[0]


@jax.jit
def solve_inner(theta, phi):
    def step(theta, _):
        return theta - 0.5 * jax.grad(inner_loss)(theta, phi), None

    return jax.lax.scan(step, theta, None, length=1500)[0]


# %% [markdown]
# ## One derivative, checked
#
# The implicit gradient says how the *task's* loss changes with $\phi$ once the inner level has followed, without following. We check it
# the hard way: solve the inner level again a little to either side.

# %%
def gradient_with(solver):
    """(gradient, how the solve went), compiled."""
    return jax.jit(
        lambda theta, phi, key: implicit_gradient(
            inner_loss, outer_loss, theta, phi, solver=solver, key=key
        )
    )


key = jax.random.key(0)
phi = jnp.asarray(1.0)
theta = solve_inner(jnp.zeros((CELLS, 2)), phi)
exact = gradient_with(conjugate_gradient(12))
gradient, info = exact(theta, phi, key)
implicit = float(gradient)
width = 0.02
above, below = (float(outer_loss(solve_inner(theta, phi + d), phi)) for d in (width, -width))
by_hand = (above - below) / (2 * width)
print(f"implicit {implicit:.4f}, by solving twice more {by_hand:.4f}; residual {info.residual_norm:.1e}")

# %% [markdown]
# Cheaper solvers give cheaper answers. All of them have the sign right:

# %%
for name, solver in {"identity": identity(), "neumann, 5": neumann(5), "neumann, 50": neumann(50)}.items():
    found, how = gradient_with(solver)(theta, phi, key)
    print(f"{name:12s} {found:8.4f}   residual {how.residual_norm:.2g} after {how.num_matvecs} products")

# %% [markdown]
# ## The outer loop
#
# Solve inside, one step outside, again and again. While the agent believes the adviser, hardly anything it does ever meets the
# task, and the gradient is small; as soon as it lets go a little, things move fast.

# %%
phis, returns = [float(phi)], []
for number in range(OUTER_STEPS):
    theta = solve_inner(theta, phi)
    returns.append(-float(outer_loss(theta, phi)))
    gradient, _ = exact(theta, phi, jax.random.fold_in(key, number))
    phi = phi - 2.0 * gradient
    phis.append(float(phi))
best = float(GAMMA ** (CELLS - 2))
print(f"weight {phis[0]:.2f} -> {phis[-1]:.2f}; task's return {returns[0]:.3f} -> {returns[-1]:.3f}, {best:.3f} at most")

# %%
figure = Figure(figsize=(9, 3), layout="constrained")
FigureCanvasAgg(figure)
left, right = figure.subplots(1, 2)
left.plot(phis, color="#c8553d")
left.axhline(0, color="0.6", linewidth=0.8)
left.set_title("weight of the bad advice", loc="left")
right.plot(returns, color="#1f6f8b")
right.axhline(best, color="0.6", linewidth=0.8)
right.set_title("the task's own return", loc="left")
for axes in (left, right):
    axes.set_xlabel("outer steps")
show_in_notebooks(figure)
figure

# %% [markdown]
# The weight has crossed zero: where the adviser said "left", the agent now reads "right", and that helps it against the entropy bonus that
# keeps it from being certain. What `method=implicit` adds to this picture is what samples
# make necessary: estimates on two halves of the environments, a curvature that stays invertible, limits on the weight. See
# [how it works](../how.md).
