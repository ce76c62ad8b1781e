"""A run so small that it takes no time: what many tests train, so that its program is compiled once for all of them."""

import contextlib
import functools
import importlib
import inspect
from dataclasses import replace

import jax
import pytest

RUN = ("env=gridworld", "env.size=3", "env.horizon=8", "aux=helpful_hackable", "ppo=tiny", "progress=false")
TWELVE = ("total_steps=768", "num_chunks=6")
"""Iterations, in six chunks."""


def with_defaults(factory, settings, **others):
    """A factory that takes a section's defaults where a test names no value, and ``others`` before those."""
    keywords = {name for name, one in inspect.signature(factory).parameters.items() if one.kind is one.KEYWORD_ONLY}
    named = {name: value for name, value in vars(settings).items() if name in keywords}
    return functools.partial(factory, **named | others)


_COMPILED = {}


@contextlib.contextmanager
def compiled_once():
    """Within it, runs of the same settings start from the same states and share their programs, wherever they are kept:
    for tests of what becomes of a run, where tracing it again and again is all that costs. May decorate a test."""
    loop, sweeps = (importlib.import_module(f"llmrl.{name}") for name in ("training.loop", "studies.sweeps"))

    def once(function, name, of):
        def shared(*arguments, **options):
            key = name, *map(str, of(*arguments, **options))
            if key not in _COMPILED:
                _COMPILED[key] = function(*arguments, **options)
            return _COMPILED[key]

        return shared

    def of_settings(config):
        return (replace(config, run_dir=None),)

    def of_start(trainer, config, mesh, table=None, rows=None):
        return id(trainer), mesh, table, rows and (jax.random.key_data(rows.keys).tolist(), rows.numbers)

    def of_run(trainer, states, mesh, num_iterations, table=None, at_once=None, numbers=None):
        return id(trainer), jax.tree.map(jax.typeof, states), mesh, num_iterations, table, at_once, numbers

    with pytest.MonkeyPatch.context() as patch:
        make = once(loop.make_trainer, "trainer", of_settings)
        for room in (loop, sweeps):
            patch.setattr(room, "make_trainer", make)
        patch.setattr(loop, "initial_states", once(loop.initial_states, "start", of_start))
        patch.setattr(loop, "compiled_run", once(loop.compiled_run, "run", of_run))
        yield
