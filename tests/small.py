"""A run so small that it takes no time: what many tests train, so that its program is compiled once for all of them."""

import functools
import inspect

RUN = ("env=gridworld", "env.size=3", "env.horizon=8", "aux=helpful_hackable", "ppo=tiny", "progress=false")
TWELVE = ("total_steps=768", "num_chunks=6")
"""Iterations, in six chunks."""


def with_defaults(factory, settings, **others):
    """A factory that takes a section's defaults where a test names no value, and ``others`` before those."""
    keywords = {name for name, one in inspect.signature(factory).parameters.items() if one.kind is one.KEYWORD_ONLY}
    named = {name: value for name, value in vars(settings).items() if name in keywords}
    return functools.partial(factory, **named | others)
