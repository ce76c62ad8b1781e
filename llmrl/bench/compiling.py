"""What compiling one iteration of training takes, and what the compiled program needs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from llmrl.settings.config import Config
from llmrl.settings.errors import CannotRun

MEGABYTE = 2**20


class Compiled(NamedTuple):
    """One iteration of all seeds on one device, compiled.

    Attributes:
        seconds: of tracing and compiling.
        bytes: of arguments, results and everything between them.
    """

    seconds: float
    bytes: int


def compiled(config: Config) -> Compiled:
    """Compiles one iteration in this process, and runs nothing.

    Raises:
        RuntimeError: the device's compiler does not say what a program needs.
    """
    import jax

    from llmrl.training.devices import seed_keys
    from llmrl.training.loop import make_trainer

    trainer = make_trainer(replace(config, devices=1))
    states = jax.eval_shape(jax.vmap(lambda key: trainer.init(key, trainer.numbers)), seed_keys(config))
    many: Callable = jax.vmap(lambda state: trainer.run(state, trainer.numbers, 1))
    began = time.perf_counter()
    found = jax.jit(many).lower(states).compile().memory_analysis()
    if found is None:
        raise CannotRun(f"this device's compiler does not say what {config.method.name} needs in memory")
    needed = found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
    return Compiled(time.perf_counter() - began, needed)
