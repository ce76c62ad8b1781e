# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Trust in your own PPO
#
# `llmrl train` brings its own training loop. If you have one already, you need two functions of `llmrl.trust`: `init`, and `update` once
# per rollout. Here is a PPO of about 60 lines, written for this page, first alone and then with learned trust in a hint.

# %%
import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from llmrl import trust
from llmrl.settings.config import MethodConfig, TrustConfig
from llmrl.types import Discrete, EnvSpec

SMALL = bool(os.environ.get("LLMRL_SMALL"))  # seconds instead of results, for tests
SEEDS, ITERATIONS, ENVS, STEPS = (1, 2, 4, 16) if SMALL else (4, 80, 32, 64)
GAMMA, LAMBDA, ENTROPY = 0.99, 0.95, 0.01

# %% [markdown]
# ## A task and its hint
#
# A corridor: the agent starts in the middle, has to fetch a key at the left end, and open the door at the right end. Only the open door pays.
# A hint pays for every step towards the key, and with the key for every step towards the door; or, if it is a bad one, for every step away.

# %%
CELLS, HORIZON = 17, 50


class World(NamedTuple):
    cell: jax.Array
    key: jax.Array
    time: jax.Array


FRESH = World(jnp.int32(CELLS // 2), jnp.bool_(False), jnp.int32(0))


def look(world):
    return jnp.append(jax.nn.one_hot(world.cell, CELLS), world.key)


def step(world, action, hint):
    """(next world, observation before any reset, reward, terminated, truncated, what the hint pays)."""
    move = 2 * action - 1
    cell = jnp.clip(world.cell + move, 0, CELLS - 1)
    after = World(cell, world.key | (cell == 0), world.time + 1)
    opened = world.key & (cell == CELLS - 1)
    wanted = jnp.where(world.key, 1, -1) * hint  # hint: 1 is good, -1 is bad
    over = opened | (after.time == HORIZON)
    fresh = jax.tree.map(lambda new, old: jnp.where(over, new, old), FRESH, after)
    return fresh, look(after), opened.astype(jnp.float32), opened, ~opened & over, (move == wanted).astype(jnp.float32)


# %% [markdown]
# ## PPO
#
# Nothing in here is llmrl's. `credit` says what the actions of a rollout were worth: for a plain PPO, generalised advantages of a reward.


# %%
def network(key, outputs):
    shapes = [(CELLS + 1, 32), (32, outputs)]
    weights = [jax.random.normal(k, s) / s[0] ** 0.5 for k, s in zip(jax.random.split(key), shapes)]
    return [(w * (0.01 if last else 1.0), jnp.zeros(w.shape[1])) for w, last in zip(weights, (False, True))]


def apply(params, obs):
    (w1, b1), (w2, b2) = params
    return jnp.tanh(obs @ w1 + b1) @ w2 + b2


class Choice(NamedTuple):
    """A distribution over actions: all that `llmrl.trust` needs of it is `log_prob` and `entropy`."""

    logits: jax.Array

    def log_prob(self, action):
        return jnp.take_along_axis(jax.nn.log_softmax(self.logits), action[..., None], axis=-1)[..., 0]

    def entropy(self):
        return -jnp.sum(jax.nn.softmax(self.logits) * jax.nn.log_softmax(self.logits), axis=-1)


def policy(actor, obs):
    return Choice(apply(actor, obs))


def play(actor, worlds, hint, key):
    """(worlds, rollout of STEPS steps in ENVS environments)."""

    def one(worlds, key):
        obs = jax.vmap(look)(worlds)
        action = jax.random.categorical(key, policy(actor, obs).logits)
        log_prob = policy(actor, obs).log_prob(action)
        worlds, next_obs, reward, terminated, truncated, said = jax.vmap(step, (0, 0, None))(worlds, action, hint)
        names = "obs action log_prob reward terminated truncated next_obs aux".split()
        return worlds, dict(zip(names, (obs, action, log_prob, reward, terminated, truncated, next_obs, said[:, None])))

    return jax.lax.scan(one, worlds, jax.random.split(key, STEPS))


def loss(params, batch):
    chosen = policy(params["actor"], batch["obs"])
    ratio = jnp.exp(chosen.log_prob(batch["action"]) - batch["log_prob"])

    def clipped(advantage, least_deviation):
        advantage = (advantage - advantage.mean()) / jnp.maximum(advantage.std(), least_deviation + 1e-8)
        return -jnp.mean(jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.8, 1.2) * advantage))

    steps = sum(each["length"][0] * clipped(each["advantage"], each["least"][0]) for each in batch["follow"])
    error = jnp.mean(jnp.square(apply(params["critic"], batch["obs"]) - batch["target"]))
    return steps + 0.5 * error - ENTROPY * jnp.mean(chosen.entropy())


def train(key, hint, credit, outputs, trusted=()):
    """Success rate per iteration, and what `credit` tells."""
    actor_key, critic_key, key = jax.random.split(key, 3)
    params = {"actor": network(actor_key, 2), "critic": network(critic_key, outputs)}
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(3e-3))
    worlds = jax.tree.map(lambda x: jnp.broadcast_to(x, (ENVS,)), FRESH)

    def minibatch(carry, batch):
        params, opt_state = carry
        steps, opt_state = optimizer.update(jax.grad(loss)(params, batch), opt_state, params)
        return (optax.apply_updates(params, steps), opt_state), None

    def iteration(carry, key):
        params, opt_state, worlds, trusted = carry
        play_key, credit_key, *epochs = jax.random.split(key, 6)
        worlds, steps = play(params["actor"], worlds, hint, play_key)
        follow, target, trusted, told = credit(params, steps, trusted, credit_key)
        batch = {name: steps[name] for name in ("obs", "action", "log_prob")} | {"follow": follow, "target": target}
        batch = jax.tree.map(lambda x: jnp.broadcast_to(x, (STEPS, ENVS)) if x.ndim == 0 else x, batch)
        orders = jnp.stack([jax.random.permutation(k, STEPS * ENVS) for k in epochs]).reshape(16, -1)
        batch = jax.tree.map(lambda x: x.reshape(STEPS * ENVS, *x.shape[2:])[orders], batch)
        (params, opt_state), _ = jax.lax.scan(minibatch, (params, opt_state), batch)
        ends = jnp.sum(steps["terminated"] | steps["truncated"])
        return (params, opt_state, worlds, trusted), (jnp.sum(steps["terminated"]) / jnp.maximum(ends, 1), told)

    carry = params, optimizer.init(params), worlds, trusted
    return jax.lax.scan(iteration, carry, jax.random.split(key, ITERATIONS))[1]


def plain(hint_weight):
    """Credit of the task's reward plus the hint's, at a fixed weight."""

    def credit(params, steps, trusted, key):
        reward = steps["reward"][..., None] + hint_weight * steps["aux"]
        value, after = apply(params["critic"], steps["obs"]), apply(params["critic"], steps["next_obs"])
        goes_on = 1.0 - steps["terminated"][..., None]
        same_episode = goes_on * (1.0 - steps["truncated"][..., None])
        errors = reward + GAMMA * goes_on * after - value

        def back(later, now):
            error, same = now
            return (found := error + GAMMA * LAMBDA * same * later), found

        advantage = jax.lax.scan(back, jnp.zeros_like(value[0]), (errors, same_episode), reverse=True)[1]
        follow = [{"advantage": advantage[..., 0], "least": jnp.zeros(()), "length": jnp.ones(())}]
        return follow, advantage + value, trusted, jnp.full((), hint_weight)

    return credit


# %% [markdown]
# ## Learned trust
#
# The learner gets the same functions that the PPO has: the policy's distribution and the critic's values, each of its own parameters. Its
# critic has three outputs, one for each name in `learner.streams`. `update` says what to follow: the blend of task and weighted hint, and
# beside it the hint itself while the task has said too little. Both come as an advantage and a length.

# %%
spec = EnvSpec("corridor", (CELLS + 1,), Discrete(2), HORIZON, aux_names=("hint",))
patience = 10.0 * ENVS * STEPS  # steps without any success before the hint is followed
learner = trust.learner(
    spec,
    policy,
    apply,
    discount=GAMMA,
    gae_lambda=LAMBDA,
    entropy=ENTROPY,
    method=MethodConfig(trust=TrustConfig(advice_patience=patience, advice_decay=0.1)),
)
print("the critic's outputs:", learner.streams)


def trusting(params, steps, trusted, key):
    blend, trusted, info = learner.update(trusted, trust.rollout(**steps), params["actor"], params["critic"], key)
    follow = [
        {"advantage": each.advantage, "least": each.least_deviation, "length": each.length}
        for each in (blend.blended, blend.hints)
    ]
    return follow, blend.target, trusted, blend.weights.mean() + blend.hints.length


def train_trusting(key, hint):
    return train(key, hint, trusting, len(learner.streams), learner.init(jax.random.fold_in(key, 1)))


# %% [markdown]
# ## Does it pay?
#
# The same PPO ignores the hint, believes it, or learns how far to trust it; the hint is good or bad.

# %%
keys = jax.random.split(jax.random.key(0), SEEDS)
ways = {
    "ignore": lambda key, hint: train(key, hint, plain(0.0), 1),
    "believe": lambda key, hint: train(key, hint, plain(1.0), 1),
    "learn": train_trusting,
}
success, told = {}, {}
for way, run in ways.items():
    program = jax.jit(jax.vmap(run, (0, None)))
    for name, hint in (("good", 1), ("bad", -1)):
        success[way, name], told[way, name] = program(keys, hint)
        whole, end = success[way, name].mean(), success[way, name][:, -ITERATIONS // 10 :].mean()
        print(f"{way:8s} a {name:4s} hint: success {whole:.2f} on average over training, {end:.2f} at its end")

# %% [markdown]
# At full size (four seeds, which show a direction and no more) the program printed
#
# the agent | good hint: training, end | bad hint: training, end
# ---|---|---
# ignores the hint | 0.54, 0.75 | 0.54, 0.75
# believes it | 0.02, 0.00 | 0.00, 0.00
# learns how far to trust it | 0.73, 1.00 | 0.45, 0.75
#
# Believing fails even with the good hint: to walk to and fro pays more than to arrive. Learned trust collects nothing that way. The bad hint
# costs it some of the training, since a task that says nothing cannot tell a bad hint from a good one.
#
# How much it costs depends on `advice_patience` and `advice_decay`, which we set here for a short training: the defaults, 40,960 steps and 0.02 per
# rollout, are made for trainings of hundreds of rollouts. We tried three corridors. In one of 11 cells the task speaks early, and learned trust
# did as well as ignoring, with either hint (eight seeds). In one of 21 cells, with the default `advice_decay`, the agent followed the bad hint
# for the whole training and ended at 0.00, where ignoring ended at 0.25; with the good one it ended at 1.00 (four seeds).
