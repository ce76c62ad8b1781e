"""What is wrong with a captioner, or may be, by what it says of the states and steps that were played."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from llmrl.envs.base import clip_action
from llmrl.envs.captions import check_words
from llmrl.envs.checking import Faults
from llmrl.envs.playing import Played, called
from llmrl.envs.tracing import described
from llmrl.settings.errors import BadType, BadValue, UserError, first_line
from llmrl.types import Captioner, EnvSpec


class Captions(NamedTuple):
    """The captions of what was played.

    Attributes:
        keys: of the states acted in, [t, n].
        events: of the steps, [t, n].
        faults: what went wrong on the way.
    """

    keys: Int[np.ndarray, "t n"]
    events: Int[np.ndarray, "t n"]
    faults: tuple[UserError, ...] = ()


def captions(what: str, spec: EnvSpec, captioner: Captioner, played: Played) -> Captions | UserError:
    """What a captioner makes of the states and steps that were played, as training asks it.

    Args:
        what: what the captioner is called, as errors begin.
        spec: the environment's description.
        captioner: a captioner that shapes have shown no fault of.
        played: what was seen.
    """
    if captioner.state_key is None or captioner.event is None:
        return Captions(played.results.state_key, played.results.event)
    obs, actions, next_obs = jax.tree.map(_flat, (played.obs, played.actions, played.results.obs))
    faults: list[UserError] = []

    def asked(name: str, function: Callable[..., Any], *arguments: Any) -> np.ndarray:
        call = called(f"{what}: {name}", jax.vmap(function), "expected pure jax of one instance")
        first, second = (np.asarray(call(*arguments)) for _ in range(2))
        if (other := first != second).any():
            one = int(np.argmax(other))
            faults.append(
                BadValue(
                    f"{what}: {name} returned {first[one]}, and {second[one]} when it was called again with the same "
                    "arguments; expected the same"
                )
            )
        return first.reshape(played.ages.shape)

    try:
        keys = asked("state_key(obs)", captioner.state_key, obs)
        performed = jax.vmap(lambda action: clip_action(spec.action, action))(actions)
        events = asked("event(obs, action, next_obs)", captioner.event, obs, performed, next_obs)
    except UserError as fault:
        return fault
    return Captions(keys, events, tuple(faults))


def _flat(array: np.ndarray) -> jax.Array:
    return jnp.asarray(array.reshape(-1, *array.shape[2:]))


def caption_faults(what: str, captioner: Captioner, found: Captions) -> Faults:
    """Everything that is wrong with captions: of states and steps that were met, and of keys that are listed.

    Args:
        what: what the captioner is called, as errors begin.
        captioner: the captioner.
        found: its captions of what was played.
    """
    yield from found.faults
    if (found.keys == 0xFFFFFFFF).any():
        yield BadValue(f"{what}: state_key(obs) returned 0xFFFFFFFF, which stands for no state; expected a smaller key")
    number = len(captioner.events)
    if (strange := (found.events < 0) | (found.events >= number)).any():
        yield BadValue(
            f"{what}: event(obs, action, next_obs) returned {found.events[strange][0]}; expected 0 to {number - 1}, an "
            f"index into its {number} events"
        )
    met = sorted({int(key) for key in np.unique(found.keys)})
    yield from _listed_faults(what, captioner, met)
    yield from _word_faults(what, captioner, met)


def _listed_faults(what: str, captioner: Captioner, met: list[int]) -> Faults:
    if captioner.keys is None:
        return
    listed, again = list(captioner.keys()), list(captioner.keys())
    strange = [key for key in listed if not isinstance(key, int | np.integer) or not 0 <= key < 0xFFFFFFFF]
    if strange:
        yield BadType(f"{what}: keys() holds {described(strange[0])}; expected ints from 0 to 4294967294")
    elif len(set(listed)) != len(listed):
        yield BadValue(f"{what}: keys() holds {len(listed) - len(set(listed))} keys twice; expected each once")
    if listed != again:
        yield BadValue(f"{what}: keys() returned other keys, or another order, when it was called again")
    if missing := sorted(set(met) - set(listed)):
        yield BadValue(
            f"{what}: state_key(obs) returned {missing[0]}; expected one of the {len(listed)} that keys() lists"
        )


def _word_faults(what: str, captioner: Captioner, met: list[int]) -> Faults:
    """The first fault of what a captioner says of the states that were met."""
    try:
        for key in met:
            for event in range(len(captioner.events)):
                check_words(what, captioner, key, event)
            first, second = captioner.describe(key), captioner.describe(key)
            if first != second:
                raise BadValue(
                    f"{what}: describe({key}) returned {first!r}, and {second!r} when it was called again; expected "
                    "the same, since answers are kept by what was asked"
                )
            if captioner.history is not None:
                _check_history(f"{what}: history({key})", captioner.history, key)
    except UserError as fault:
        yield fault


def _check_history(what: str, history: Callable[[int], Any], key: int) -> None:
    expected = "expected a sequence of (state, action), two texts each"
    try:
        pairs = list(history(key))
    except Exception as error:
        raise BadValue(f"{what} failed: {first_line(error)}; {expected}") from error
    for pair in pairs:
        if not isinstance(pair, tuple) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise BadType(f"{what} holds {described(pair)}; {expected}")


def caption_notes(captioner: Captioner, found: Captions) -> Iterator[str]:
    """What is allowed of captions but seldom meant."""
    met = sorted({int(key) for key in np.unique(found.keys)})
    words: dict[str, int] = {}
    for key in met:
        said = captioner.describe(key)
        if not said.strip():
            yield f"describe({key}) returned {said!r}: a model is told nothing of that state"
            return
        if said in words:
            yield f"describe({words[said]}) and describe({key}) read alike, {said!r}: two keys are asked about twice"
            return
        words[said] = key
    if len(met) == 1:
        yield f"all {found.keys.size:,} states have the key {met[0]}: a model is asked one question"
