"""Sources that pay once per episode, where jax steps and where Python does."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np

from llmrl.envs import make
from llmrl.envs.once import Once, paid_once_on_host
from llmrl.types import Discrete, EnvSpec, HostEnvironment, HostWorlds, TimeStep

KEY = jax.random.key(0)
DOWN, UP = 2, 0


def row(state, action, next_state):
    return next_state.position[0].astype(jnp.float32)


def test_half_of_the_way_is_paid_once_however_often_it_is_walked():
    env = make("gridworld", aux={"rare": 2.0, "fair": 1.0}, aux_function=row, size=3)
    state, step, paid = env.reset(KEY)[0], jax.jit(env.step), []
    for action in (DOWN, DOWN, UP, DOWN):
        state, result = step(KEY, state, jnp.asarray(action))
        paid.append(result.aux)
    # Every other source sees the state without what is remembered, and pays as always.
    np.testing.assert_allclose(np.stack(paid), [[0, 0.1, 1], [1, 0.1, 2], [0, -0.1, 1], [0, 0.1, 2]], rtol=1e-6)
    assert not env.reset(KEY)[0].paid.any()


def counting():
    """Games that count their steps; a step's reward from each source is what the source says of that number."""

    @contextlib.contextmanager
    def opened(sources):
        ages = {}

        def reset(places, seeds):
            ages.update(dict.fromkeys(places, 0))

        def step(places, actions):
            ages.update({place: ages[place] + 1 for place in places})
            aux = np.array([[f(None, None, ages[place]) for f in sources] for place in places])
            nothing = dict.fromkeys(TimeStep._fields, np.zeros(len(places)))
            return TimeStep(**nothing | {"aux": aux})

        yield HostWorlds(reset, step)

    return HostEnvironment(EnvSpec("counting", (1,), Discrete(2), 9), opened)


def test_games_in_python_are_told_apart_by_their_places():
    second = Once(lambda state, action, next_state: float(next_state >= 2))
    always = lambda state, action, next_state: 1.0  # noqa: E731
    with paid_once_on_host(counting(), [1]).opened([always, second]) as worlds:
        worlds.reset([0, 1], [0, 0])
        found = [worlds.step([0, 1], [0, 0]).aux[:, 1] for _ in range(3)]
        worlds.reset([0], [0])
        found += [worlds.step([0, 1], [0, 0]).aux[:, 1] for _ in range(2)]
        assert worlds.step([1, 0], [0, 0]).aux[:, 0].tolist() == [1, 1]
    np.testing.assert_array_equal(found, [[0, 0], [1, 1], [0, 0], [0, 0], [1, 0]])
