"""Captions: a state as an integer key on the device, and the key as words on the host; CartPole's, and how to make one.

A language model is asked about captions, not about states: what two states have in common in words, they share one
answer for. So a bin is as wide as a person's word for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import exp, prod, radians
from string import Formatter
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped, UInt32

from llmrl.envs.base import action_shape
from llmrl.envs.tracing import described, traced
from llmrl.settings.errors import BadType, BadValue, UserError, first_line
from llmrl.settings.loading import load_object
from llmrl.types import Captioner, Environment, HostEnvironment

_Place = TypeVar("_Place", Environment, HostEnvironment)


@dataclass(frozen=True)
class Feature:
    """One component of the observation in words.

    Attributes:
        component: its place in the observation.
        edges: where one word ends and the next begins, ascending; an edge itself belongs to the upper word.
        words: one more than edges, from the lowest values to the highest.
    """

    component: int
    edges: tuple[float, ...]
    words: tuple[str, ...]


def binned(
    sentence: str,
    features: Mapping[str, Feature],
    events: tuple[str, ...],
    event: Callable[[Array, Array, Array], Array],
    context: str,
) -> Captioner:
    """A captioner that puts observation components into words, each by itself.

    The key counts the combinations of words: key = sum_i bin_i prod_{j<i} (words of feature j).

    Args:
        sentence: the state, with ``{name}`` for each feature's word.
        features: by name.
        events: as in ``Captioner``.
        event: as in ``Captioner``.
        context: as in ``Captioner``.

    Returns:
        The captioner; observations are vectors, and its keys are 0 to their number - 1.

    Raises:
        ValueError: edges are not ascending or do not fit their words, two states would read alike, or there are too
            many for a key.
    """
    mentioned = {name for _, name, _, _ in Formatter().parse(sentence) if name is not None}
    if strange := sorted(mentioned - set(features)):
        raise BadValue(f"sentence {sentence!r} mentions {{{strange[0]}}}; the features are {sorted(features)}")
    for name, feature in features.items():
        _check_feature(name, feature)
        if f"{{{name}}}" not in sentence:
            raise BadValue(f"sentence {sentence!r} does not mention {{{name}}}: states that differ would read alike")
    number = prod(len(feature.words) for feature in features.values())
    if number >= 2**32 - 1:
        raise BadValue(f"a key has 32 bits, got features with {number} combinations of words")

    def state_key(obs: Shaped[Array, " obs"]) -> UInt32[Array, ""]:
        key, place = jnp.zeros((), jnp.uint32), 1
        for name, feature in features.items():
            if feature.component >= obs.shape[0]:
                raise BadValue(f"feature {name!r} looks at component {feature.component} of {obs.shape[0]}, from 0 on")
            above = obs[feature.component].astype(jnp.float32) >= jnp.asarray(feature.edges, jnp.float32)
            key = key + jnp.sum(above, dtype=jnp.uint32) * jnp.uint32(place)
            place *= len(feature.words)
        return key

    def describe(key: int) -> str:
        words = {name: features[name].words[bin] for name, bin in bins_of(key, features).items()}
        return sentence.format(**words)

    return Captioner(events, describe, context, state_key, event, keys=lambda: range(number))


def bins_of(key: int, features: Mapping[str, Feature]) -> dict[str, int]:
    """Which word of each feature a key of ``binned`` stands for, on the host.

    Raises:
        ValueError: it stands for none.
    """
    bins, rest = {}, key
    for name, feature in features.items():
        rest, bins[name] = divmod(rest, len(feature.words))
    if rest:
        number = prod(len(feature.words) for feature in features.values())
        raise BadValue(f"keys of this captioner are 0 to {number - 1}, got {key}")
    return bins


def with_captioner(env: _Place, captioner: Captioner | str) -> _Place:
    """The same environment with words for its states and steps; the captioner is tried on shapes first.

    Args:
        env: the environment.
        captioner: a captioner, or the dotted path of one or of a function without arguments that makes one.

    Returns:
        The environment with its ``captioner``.

    Raises:
        ValueError: the path leads nowhere, the captioner names no events or twice the same, or its functions raise or
            return something else than ``Captioner`` says.
        TypeError: it is no ``Captioner``, or as above.
        ImportError: the path's module cannot be imported.
    """
    what, found = made_captioner(captioner)
    for fault in captioner_faults(what, env, found):
        raise fault
    return env._replace(captioner=found)


def made_captioner(captioner: Captioner | str) -> tuple[str, Any]:
    """What it is called, and a ``Captioner``, if it is as it should be; arguments and errors as ``with_captioner``."""
    label = captioner if isinstance(captioner, str) else "given"
    found: Any = load_object(captioner, "captioner") if isinstance(captioner, str) else captioner
    if not isinstance(found, Captioner) and callable(found):
        try:
            found = found()
        except (Exception, SystemExit) as error:
            raise BadValue(f"captioner {label} failed: {first_line(error)}") from error
    return f"captioner {label}", found


def captioner_faults(
    what: str, env: Environment | HostEnvironment, captioner: Any, own: bool = False
) -> Iterator[UserError]:
    """Every fault of a captioner that shapes and its first key show.

    Args:
        what: what it is called, as errors begin.
        env: the environment that it is for.
        captioner: the captioner to try, whatever it turns out to be.
        own: whether the environment's step may put the captions into its ``TimeStep`` itself.

    Returns:
        Errors as ``with_captioner`` raises them.
    """
    if not isinstance(captioner, Captioner):
        yield BadType(f"{what}: expected an llmrl.types.Captioner, got {described(captioner)}")
        return
    events: Any = captioner.events
    if not isinstance(events, tuple | list) or not all(isinstance(event, str) for event in events):
        yield BadType(f"{what}: events is {described(events)}; expected a tuple of texts, as in ('go left',)")
    elif not events or len(set(events)) != len(events):
        yield BadValue(f"{what}: events need different names, got {list(events)}")
    if not isinstance(captioner.context, str):
        yield BadType(f"{what}: context is {described(captioner.context)}; expected a text")
    if not own or captioner.state_key is not None or captioner.event is not None:
        obs = _observation(env)
        for name, given, arguments, dtype in (
            ("state_key(obs)", captioner.state_key, (obs,), np.uint32),
            ("event(obs, action, next_obs)", captioner.event, (obs, action_shape(env.spec.action), obs), np.int32),
        ):
            yield from _said(_check_function, f"{what}: {name}", given, arguments, np.dtype(dtype))
    if captioner.keys is not None:
        yield from _said(_check_first_key, what, captioner)


def _said(check: Callable[..., None], *arguments: Any) -> Iterator[UserError]:
    """What a check raises, if anything."""
    try:
        check(*arguments)
    except UserError as fault:
        yield fault


def _check_first_key(what: str, captioner: Captioner) -> None:
    check_words(what, captioner, _first_key(what, captioner.keys))


def _first_key(what: str, keys: Any) -> int:
    expected = "expected a sequence of ints"
    try:
        listed = keys()
    except Exception as error:
        raise BadValue(f"{what}: keys() failed: {first_line(error)}; {expected}") from error
    if not hasattr(listed, "__len__"):
        raise BadType(f"{what}: keys() returned {described(listed)}; {expected}")
    if not len(listed):
        raise BadValue(f"{what}: keys() is empty; {expected}")
    key = next(iter(listed))
    if not isinstance(key, int | np.integer):
        raise BadType(f"{what}: keys() holds {described(key)}; {expected}")
    return int(key)


def check_words(what: str, captioner: Captioner, key: int, event: int = 0) -> None:
    """Refuses what a captioner says of a state and of an event there, where it is no text or no score.

    Args:
        what: what the captioner is called, as errors begin.
        captioner: the captioner.
        key: the state.
        event: the event that its oracle is asked about, where it has one.

    Raises:
        ValueError: one of its functions raises, or the oracle's answer is outside of [0, 1].
        TypeError: ``describe`` returned no text.
    """
    words = _asked(f"{what}: describe(key)", "a text", captioner.describe, key)
    if not isinstance(words, str):
        raise BadType(f"{what}: describe(key) returned {described(words)}; expected a text")
    if captioner.oracle is not None:
        score = _asked(f"{what}: oracle(key, event)", "a number in [0, 1]", captioner.oracle, key, event)
        if not isinstance(score, int | float | np.number) or not 0.0 <= float(score) <= 1.0:
            raise BadValue(f"{what}: oracle(key, event) returned {described(score)}; expected a number in [0, 1]")


def _asked(what: str, expected: str, function: Any, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except Exception as error:
        raise BadValue(f"{what} failed: {first_line(error)}; expected {expected}") from error


def _observation(env: Environment | HostEnvironment) -> jax.ShapeDtypeStruct:
    if isinstance(env, HostEnvironment):
        return jax.ShapeDtypeStruct(env.spec.obs_shape, jnp.dtype(env.obs_dtype))
    return jax.eval_shape(env.reset, jax.random.key(0))[1]


def _check_feature(name: str, feature: Feature) -> None:
    if list(feature.edges) != sorted(set(feature.edges)) or len(feature.words) != len(feature.edges) + 1:
        raise BadValue(
            f"feature {name!r} needs ascending edges and one word more than edges, "
            f"got {list(feature.edges)} and {list(feature.words)}"
        )
    if len(set(feature.words)) != len(feature.words):
        raise BadValue(f"feature {name!r} needs different words, got {list(feature.words)}")


def _check_function(what: str, function: Any, arguments: tuple[Any, ...], dtype: np.dtype) -> None:
    expected = f"expected pure jax that returns {dtype.name}[]"
    if not callable(function):
        raise BadType(f"{what} is {function!r}; {expected}")
    returned = traced(what, function, *arguments, hint=expected)
    if not isinstance(returned, jax.ShapeDtypeStruct) or returned.shape != () or returned.dtype != dtype:
        raise BadType(f"{what} returned {described(returned)}; {expected}, as .astype(jnp.{dtype.name}) makes it")


# --- CartPole -------------------------------------------------------------------------------------------------------

_CARTPOLE = {
    "angle": Feature(
        2,
        tuple(radians(degrees) for degrees in (-6.0, -2.0, -0.5, 0.5, 2.0, 6.0)),
        (
            "leans far to the left",
            "leans to the left",
            "leans slightly to the left",
            "stands upright",
            "leans slightly to the right",
            "leans to the right",
            "leans far to the right",
        ),
    ),
    "turning": Feature(
        3,
        (-1.0, -0.2, 0.2, 1.0),
        (
            "turning quickly to the left",
            "turning slowly to the left",
            "hardly turning",
            "turning slowly to the right",
            "turning quickly to the right",
        ),
    ),
    "position": Feature(
        0,
        (-1.6, -0.5, 0.5, 1.6),
        (
            "near the left end of the track",
            "left of the middle of the track",
            "in the middle of the track",
            "right of the middle of the track",
            "near the right end of the track",
        ),
    ),
    "moving": Feature(1, (-0.3, 0.3), ("rolling to the left", "hardly moving", "rolling to the right")),
}
"""Radians, radians per second, metres, metres per second; a single push changes the second by about 0.3, the last by
0.2. The pole has fallen at 12 degrees, the track ends at 2.4 metres."""


def cartpole() -> Captioner:
    """CartPole's captions, the same whether pushes are discrete or continuous; a continuous one counts by its sign.

    Returns:
        The captioner, with 525 keys, the events "push the cart to the left" and "... to the right", and an oracle that
        answers by hand-made rules, as a person might who looks at the pole and hardly at the cart.
    """

    def event(obs: Float[Array, "4"], action: Shaped[Array, "*a"], next_obs: Float[Array, "4"]) -> Int[Array, ""]:
        right = action == 1 if jnp.issubdtype(action.dtype, jnp.integer) else action[0] > 0.0
        return right.astype(jnp.int32)

    captioner = binned(
        "The pole {angle} and is {turning}. The cart is {position} and is {moving}.",
        _CARTPOLE,
        ("push the cart to the left", "push the cart to the right"),
        event,
        "A pole is hinged to a cart on a short, straight track. At every step the agent pushes the cart to the left or "
        "to the right. The pole must not fall over, and the cart must not leave the track.",
    )
    return captioner._replace(name="cartpole", oracle=_cartpole_answer)


def _cartpole_answer(key: int, event: int) -> float:
    """Catch the pole: p(right) = sigmoid(0.9 angle + 1.3 turning - 0.15 position - 0.1 moving), in words from the
    middle one. No answer is exactly 0 or 1."""
    pulls = {"angle": 0.9, "turning": 1.3, "position": -0.15, "moving": -0.1}
    bins = bins_of(key, _CARTPOLE)
    right = sum(pull * (bins[name] - len(_CARTPOLE[name].words) // 2) for name, pull in pulls.items())
    chance = 1.0 / (1.0 + exp(-right if event else right))
    return round(0.02 + 0.96 * chance, 2)
