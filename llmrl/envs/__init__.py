"""Environments as pure functions, with auxiliary sources of every quality; a name becomes a function here."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from llmrl.envs import captions as _captions
from llmrl.envs import cartpole as _cartpole
from llmrl.envs import craftax_classic as _craftax_classic
from llmrl.envs import crafter_goals as _crafter_goals
from llmrl.envs import crafter_host as _crafter_host
from llmrl.envs import crafter_qualities as _crafter_qualities
from llmrl.envs import gridworld as _gridworld
from llmrl.envs import gymnax_qualities as _gymnax_qualities
from llmrl.envs import small_tasks as _small_tasks
from llmrl.envs.base import (
    EXPECTED,
    AuxFunction,
    check_aux_on_host,
    checked_aux,
    clip_action,
    dotted_name,
    step_with_reset,
    time_step,
    with_aux,
)
from llmrl.envs.captions import with_captioner
from llmrl.envs.checking import checked_environment
from llmrl.envs.gymnax_env import from_gymnax
from llmrl.envs.once import Once, paid_once, paid_once_on_host
from llmrl.envs.parameters import fitted_arguments, fitted_like
from llmrl.envs.qualities import LATE_WRONG
from llmrl.settings.errors import OWN_ENVIRONMENT, BadType, BadValue, NotImported, first_line, install, unknown
from llmrl.settings.loading import load_function
from llmrl.types import Captioner, Environment, HostEnvironment

_Place = TypeVar("_Place", Environment, HostEnvironment)

ENVIRONMENTS: dict[str, Callable[..., Environment]] = {
    "cartpole": _cartpole.cartpole,
    "cartpole_continuous": _cartpole.cartpole_continuous,
    "gridworld": _gridworld.gridworld,
    "crumbs": _small_tasks.crumbs,
    "keydoor": _small_tasks.keydoor,
    "moving_goal": _small_tasks.moving_goal,
    "craftax_classic": _craftax_classic.craftax_classic,
}
"""Our own environments by name; ``make`` also takes every id that gymnax knows."""


def _gymnasium(
    id: str = "",
    horizon: int | None = None,
    wrappers: str | Sequence[str] = (),
    processes: int | None = None,
    **params: Any,
) -> HostEnvironment:
    try:
        from llmrl.envs.gymnasium_env import gymnasium_env
    except ModuleNotFoundError as error:
        raise NotImported(f"env=gymnasium needs the package {error.name}: {install('gymnasium')}") from error
    return gymnasium_env(id, horizon, wrappers, processes, **params)


HOST_ENVIRONMENTS: dict[str, Callable[..., HostEnvironment]] = {
    "crafter": _crafter_host.crafter,
    "gymnasium": _gymnasium,
}
"""Environments that only Python can step, by name; ``make_host`` makes them."""

AUX_SOURCES: dict[str, dict[str, Callable[..., AuxFunction]]] = {
    "cartpole": _cartpole.AUX_SOURCES,
    "cartpole_continuous": _cartpole.AUX_SOURCES,
    "gridworld": _gridworld.AUX_SOURCES,
    **_small_tasks.AUX_SOURCES,
    **_gymnax_qualities.AUX_SOURCES,
    "craftax_classic": _crafter_qualities.AUX_SOURCES,
    "crafter": _crafter_qualities.AUX_SOURCES,
}
"""Environment -> source -> factory. A factory's parameter named as one of the environment's gets its value."""

CODE = "code"
"""Reward functions that a language model has written, each a source; ``llmrl.assembly`` reads them from a file."""

LANGUAGE, GOALS, NOVELTY = "language", "goals", "novelty"
LATE = (LANGUAGE, GOALS, NOVELTY)
"""Sources whose values depend on more than a step: a language model's scores of it, goals that it suggested, how new
the state is. They are 0 in every step, and are filled in once a rollout is complete; the first two need a captioner."""

CAPTIONERS: dict[str, Callable[..., Captioner]] = {
    "cartpole": _captions.cartpole,
    "cartpole_continuous": _captions.cartpole,
    "craftax_classic": _crafter_goals.captions,
    "crafter": _crafter_goals.captions,
}
"""Environment -> its own captioner's factory; a parameter named as one of the environment's gets its value."""


def make(
    name: str,
    aux: str | Sequence[str] | Mapping[str, Any] = ("harmful",),
    aux_scale: Any = 1.0,
    aux_function: str | AuxFunction | None = None,
    aux_options: Mapping[str, Any] | None = None,
    captioner: str | Captioner | None = None,
    params: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Environment:
    """An environment with its auxiliary sources.

    Args:
        name: a key of ``ENVIRONMENTS``, a gymnax id, or the dotted path of a function that makes an ``Environment``.
        aux: names of the environment's own sources, in the order of ``TimeStep.aux``; may be empty. A mapping gives
            each a factor of its own, []. Those of ``LATE`` are 0 in every step; training fills them in.
        aux_scale: factor on all sources, [], beside their own.
        aux_function: a source of one's own, as a function or its dotted path; it comes last and is called by its name.
        aux_options: options of the sources, each given to every chosen source that has it.
        captioner: words for states and steps, as for ``with_captioner``; None takes the environment's own, if any.
        params: parameters of the environment by name, whatever they are called; ``kwargs`` of the same name give way.
        **kwargs: the same, where no argument above has their name.

    Returns:
        The environment.

    Raises:
        ValueError: a name or a parameter does not exist (the nearest are named) or is of another type than its owner
            declares, ``language`` or ``goals`` is chosen
            where there is no captioner, or as ``checked_aux`` and ``with_captioner``.
        ImportError: the dotted path's module cannot be imported.
        TypeError: as ``checked_aux`` and ``with_captioner``.
    """
    kwargs |= params or {}
    chosen = (aux,) if isinstance(aux, str) else tuple(aux)
    env = _in_words(_build(name, kwargs), name, captioner, chosen, kwargs)
    functions = sources_of(name, chosen, aux_function, aux_options, kwargs)
    return with_sources(env, functions, aux_scale, aux if isinstance(aux, Mapping) else {})


def with_sources(
    env: Environment, functions: Sequence[tuple[str, AuxFunction]], scale: Any, factors: Mapping[str, Any]
) -> Environment:
    """The environment with sources as ``sources_of`` gives them; those that pay once per episode do.

    Args:
        env: the environment, without sources.
        functions: their names and functions.
        scale: factor on all of them, [].
        factors: factors of single ones, by name.

    Raises:
        ValueError, TypeError: as ``with_aux``.
    """
    # One by one, since a mapping would silently lose the first of two equal names that ``with_aux`` complains of.
    for source, function in functions:
        env = with_aux(env, {source: function}, scale * factors.get(source, 1.0))
    return paid_once(env, _that_pay_once(functions))


def make_host(
    name: str,
    aux: str | Sequence[str] | Mapping[str, Any] = ("harmful",),
    aux_scale: Any = 1.0,
    aux_function: str | AuxFunction | None = None,
    aux_options: Mapping[str, Any] | None = None,
    captioner: str | Captioner | None = None,
    params: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> HostEnvironment:
    """An environment that only Python can step, with its auxiliary sources; arguments and errors as for ``make``.

    Every source gives one value.
    """
    kwargs |= params or {}
    if name not in HOST_ENVIRONMENTS:
        raise unknown("environment of the host", name, HOST_ENVIRONMENTS)
    parameters = inspect.signature(HOST_ENVIRONMENTS[name]).parameters
    if not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        _refuse_unknown(f"parameter of {name}", kwargs, parameters)
    chosen, factors = (aux,) if isinstance(aux, str) else tuple(aux), aux if isinstance(aux, Mapping) else {}
    env = _in_words(HOST_ENVIRONMENTS[name](**kwargs), name, captioner, chosen, kwargs)
    functions = sources_of(name, chosen, aux_function, aux_options, kwargs)
    if aux_function is not None:
        check_aux_on_host(env, functions[-1][1])
    names = tuple(source for source, _ in functions)
    sources = tuple(_scaled(function, aux_scale * factors.get(source, 1.0)) for source, function in functions)
    env = env._replace(spec=replace(env.spec, aux_names=names), sources=sources)
    return paid_once_on_host(env, _that_pay_once(functions))


def defaults_of(name: str) -> dict[str, Any]:
    """The parameters of one of our own environments with their defaults; empty for any other."""
    maker = {**ENVIRONMENTS, **HOST_ENVIRONMENTS}.get(name)
    parameters = {} if maker is None else inspect.signature(maker).parameters
    return {key: each.default for key, each in parameters.items() if each.default is not each.empty}


def _that_pay_once(functions: Sequence[tuple[str, AuxFunction]]) -> list[int]:
    """Columns of sources that pay once; only an environment's own do, which have one column each and come first."""
    return [column for column, (_, function) in enumerate(functions) if isinstance(function, Once)]


def _scaled(function: AuxFunction, factor: Any) -> AuxFunction:
    return lambda *step: factor * function(*step)


def _build(name: str, kwargs: Mapping[str, Any]) -> Environment:
    if name in ENVIRONMENTS:
        _refuse_unknown(f"parameter of {name}", kwargs, inspect.signature(ENVIRONMENTS[name]).parameters)
        return ENVIRONMENTS[name](**kwargs)
    if name in HOST_ENVIRONMENTS:
        raise BadValue(f"{name} runs in Python and cannot be compiled; `make_host` makes it")
    if "." in name:  # which no gymnax id has
        return checked_environment(made_at(name, kwargs), f"env.id {name!r}")
    import gymnax  # costs seconds, so only those pay who use it

    # Not exported above: a function of its module's name would hide the module from `import llmrl.envs.gymnax_env`.
    from llmrl.envs.gymnax_env import gymnax_env

    if name in gymnax.registered_envs:
        return gymnax_env(name, **kwargs)
    known = [*ENVIRONMENTS, *HOST_ENVIRONMENTS, *gymnax.registered_envs]
    raise BadValue(f"{unknown('environment', name, known)}; {OWN_ENVIRONMENT}")


def made_at(path: str, kwargs: Mapping[str, Any]) -> Any:
    """What the function at a dotted path makes of parameters: an ``Environment``, if it is as it should be.

    Args:
        path: of the function.
        kwargs: its parameters by name.

    Raises:
        ValueError: there is no such function, it has no such parameter, or it raises.
        TypeError: what stands there cannot be called, or as above.
        ImportError: the path's module cannot be imported.
    """
    factory = load_function(path, "env.id", "a function that returns an llmrl.types.Environment")
    arguments = fitted_arguments(path, factory, kwargs)
    try:
        return factory(**arguments)
    except (Exception, SystemExit) as error:
        kind = BadType if isinstance(error, TypeError) else BadValue
        raise kind(f"env.id {path!r} failed: {first_line(error)}; expected an llmrl.types.Environment") from error


def sources_of(
    name: str,
    chosen: Sequence[str],
    aux_function: str | AuxFunction | None,
    options: Mapping[str, Any] | None,
    kwargs: Mapping[str, Any],
) -> list[tuple[str, AuxFunction]]:
    """The environment's own sources that were chosen, and the user's last, each with its name; none is tried.

    Args:
        name, aux_function: as for ``make``.
        chosen: names of the environment's own sources.
        options: of the sources, as ``make``'s ``aux_options``.
        kwargs: the environment's parameters by name.

    Raises:
        ValueError, TypeError, ImportError: as for ``make``.
    """
    functions = _own_sources(name, chosen, options or {}, kwargs)
    if aux_function is None:
        return functions
    function = aux_function
    if isinstance(function, str):
        function = load_function(function, "aux_function", EXPECTED)
    return [*functions, (dotted_name(function).rpartition(".")[2].strip("<>"), function)]


def _own_sources(
    name: str, chosen: Sequence[str], options: Mapping[str, Any], kwargs: Mapping[str, Any]
) -> list[tuple[str, AuxFunction]]:
    own_ones = AUX_SOURCES.get(name, {})
    factories = {**own_ones, **dict.fromkeys(LATE, lambda: _filled_later)}
    if set(chosen).difference(LATE) and not own_ones:
        raise BadValue(
            f"{name} has no auxiliary sources of its own, got aux={','.join(chosen)}: choose aux=none, or a source of "
            "your own with aux=function aux.function=my_module.hint (in Python aux=() and aux_function=...)"
        )
    for source in chosen:
        if source not in factories:
            raise unknown(f"auxiliary source of {name}", source, factories)
    accepted = {source: inspect.signature(factories[source]).parameters for source in chosen}
    settings = _settings(name, kwargs) if set(chosen).difference(LATE) else {}
    own = set().union(*accepted.values()) - set(settings)
    _refuse_unknown(f"option of the auxiliary sources {list(chosen)}", options, sorted(own))
    given = {**settings, **options}

    def made(source: str) -> AuxFunction:
        what, taken = f"of the auxiliary source {source}", accepted[source].keys() & given.keys()
        mine = {
            name: fitted_like(f"option {name} {what}", options[name], accepted[source][name].default)
            for name in taken & options.keys()
        }
        return factories[source](**{name: given[name] for name in taken} | mine)

    return [(source, made(source)) for source in chosen]


def _in_words(
    env: _Place, name: str, captioner: str | Captioner | None, chosen: Sequence[str], kwargs: Mapping[str, Any]
) -> _Place:
    """The environment with the captioner given, or else with its own, if it has one."""
    if captioner is not None:
        return with_captioner(env, captioner)
    if name in CAPTIONERS:
        return env._replace(captioner=_own_captioner(name, kwargs))
    wordy = [source for source in (LANGUAGE, GOALS) if source in chosen]
    if wordy:
        raise BadValue(
            f"aux={wordy[0]} needs words for the states of {name}: give captioner=my_module.captioner "
            f"(own ones have {', '.join(CAPTIONERS)})"
        )
    return env


def _own_captioner(name: str, kwargs: Mapping[str, Any]) -> Captioner:
    settings, accepted = _settings(name, kwargs), inspect.signature(CAPTIONERS[name]).parameters
    return CAPTIONERS[name](**{option: settings[option] for option in settings.keys() & accepted.keys()})


def _filled_later(*step: Any) -> Float[Array, ""]:
    return jnp.zeros(())


def _settings(name: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What the environment was built with, its defaults included."""
    if (maker := {**ENVIRONMENTS, **HOST_ENVIRONMENTS}.get(name)) is None:
        return {}  # gymnax's, whose sources look at states alone
    bound = inspect.signature(maker).bind(**kwargs)
    bound.apply_defaults()
    return bound.arguments


def _refuse_unknown(kind: str, given: Mapping[str, Any], known: Any) -> None:
    for name in given:
        if name not in known:
            raise unknown(kind, name, known)


__all__ = [
    "AUX_SOURCES",
    "CAPTIONERS",
    "CODE",
    "ENVIRONMENTS",
    "GOALS",
    "HOST_ENVIRONMENTS",
    "LANGUAGE",
    "LATE",
    "LATE_WRONG",
    "NOVELTY",
    "AuxFunction",
    "checked_aux",
    "checked_environment",
    "clip_action",
    "defaults_of",
    "dotted_name",
    "from_gymnax",
    "made_at",
    "make",
    "make_host",
    "sources_of",
    "step_with_reset",
    "time_step",
    "with_aux",
    "with_captioner",
    "with_sources",
]
