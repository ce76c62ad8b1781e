"""The program that is measured, in a process of its own: ours as ``llmrl train`` runs it, or rejax's PPO.

Run as a script, by a Python that has the measured library and need not have the other one; nothing else is imported
until the request says which. One JSON object per line: the request comes in, and ``{"device", "devices", "versions",
"compile_seconds"}`` goes out once compiled; then every line that comes in asks for one more ``{"seconds"}``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple


class Program(NamedTuple):
    """A compiled piece of training.

    Attributes:
        run: ``state -> (state, seconds that it took)``.
        state: where it starts.
        devices: devices it runs on.
    """

    run: Callable[[Any], tuple[Any, float]]
    state: Any
    devices: int


def llmrl_program(config: dict[str, Any], iterations: int, table: Any = None) -> Program:
    """Training as ``llmrl train`` compiles it: seeds sharded over the devices that there are, and so many of each side
    by side."""
    import numpy as np

    from llmrl.training.devices import everywhere, seeds_at_once
    from llmrl.training.loop import compiled_run, initial_states

    settings, trainer, mesh = _llmrl(config)
    table = everywhere(table, mesh)
    states = initial_states(trainer, settings, mesh, table)
    at_once = seeds_at_once(settings, trainer.env.spec, mesh)
    program = compiled_run(trainer, states, mesh, iterations, table, at_once)
    return Program(_timed(lambda states: program(states, np.int32(0), table)[0]), states, mesh.size)


def llmrl_with_table(config: dict[str, Any], iterations: int) -> Program:
    """The same with a language model's answers, as many rows of them as the table can have."""
    import numpy as np

    from llmrl.language import build

    rows = config["llm"]["capacity"]
    scores = np.random.default_rng(0).uniform(size=(rows, 2)).astype(np.float32)
    # CartPole's captions are the first numbers; no state has one of the others, but a look-up searches them too.
    return llmrl_program(config, iterations, build(dict(enumerate(scores)), rows, 2))


def llmrl_in_chunks(config: dict[str, Any], iterations: int) -> Program:
    """The loop of ``llmrl train``: chunks, and between two of them the exchange with a language model. A measurement
    opens and closes its own connection, so that no model is asked while another program is measured."""
    import jax
    import numpy as np

    from llmrl.training.answers import listening, misses_of
    from llmrl.training.loop import chunk_lengths, opened_pieces

    settings, trainer, mesh = _llmrl(config)
    pieces = opened_pieces(settings, trainer, mesh).__enter__()  # a compiled environment's stay open
    lengths = chunk_lengths(iterations, settings.num_chunks)
    with listening(settings, trainer.env) as listener:
        states = pieces.initial(listener.table)
        programs = {length: pieces.program(states, length, listener.table) for length in set(lengths)}

    def run(states: Any) -> tuple[Any, float]:
        with listening(settings, trainer.env) as listener:
            table, done, began = listener.table, 0, time.perf_counter()
            for length in lengths:
                states, _ = jax.block_until_ready(programs[length](states, np.int32(done), table))
                table, _ = listener.exchange(table, misses_of(states.heard))
                done += length
            return states, time.perf_counter() - began

    return Program(run, states, mesh.size)


def _llmrl(config: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Settings, trainer and devices."""
    from llmrl.settings.validation import from_dict
    from llmrl.training.cores import use_compilation_cache, use_cores
    from llmrl.training.devices import seed_mesh
    from llmrl.training.loop import make_trainer

    settings = from_dict(config)
    use_compilation_cache()
    use_cores(settings)
    return settings, make_trainer(settings), seed_mesh(settings)


def rejax_program(config: dict[str, Any], iterations: int) -> Program:
    """rejax's PPO of the same sizes and numbers as its readme runs it, jit(vmap(train)), without its evaluations."""
    import jax
    import rejax  # pyright: ignore[reportMissingImports]

    ppo = config["ppo"]
    steps = iterations * ppo["num_envs"] * ppo["num_steps"]
    algorithm = rejax.PPO.create(
        env="CartPole-v1",
        agent_kwargs={"activation": "tanh", "hidden_layer_sizes": ppo["hidden"]},
        num_envs=ppo["num_envs"],
        num_steps=ppo["num_steps"],
        num_epochs=ppo["num_epochs"],
        num_minibatches=ppo["num_minibatches"],
        learning_rate=ppo["learning_rate"],
        gamma=ppo["discount"],
        gae_lambda=ppo["gae_lambda"],
        clip_eps=ppo["clip"],
        ent_coef=ppo["entropy"],
        vf_coef=ppo["value_coefficient"],
        max_grad_norm=ppo["max_gradient_norm"],
        total_timesteps=steps,
        eval_freq=steps,
        skip_initial_evaluation=True,
    ).replace(eval_callback=lambda *_: ())
    keys = jax.random.split(jax.random.key(config["seed"]), config["seeds"])
    states = jax.jit(jax.vmap(algorithm.init_state))(keys)
    train = jax.jit(jax.vmap(lambda state: algorithm.train(train_state=state)[0]))
    return Program(_timed(train.lower(states).compile()), states, 1)


def _timed(run: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, float]]:
    import jax

    def timed(state: Any) -> tuple[Any, float]:
        began = time.perf_counter()
        state = jax.block_until_ready(run(state))
        return state, time.perf_counter() - began

    return timed


PROGRAMS: dict[str, Callable[[dict[str, Any], int], Program]] = {
    "llmrl": llmrl_program,
    "llmrl_table": llmrl_with_table,
    "llmrl_chunks": llmrl_in_chunks,
    "rejax": rejax_program,
}


def main() -> None:
    """Serve one request until the other end closes."""
    # Only answers may go to where they are read from, whatever a library prints.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    request = json.loads(sys.stdin.readline())
    began = time.perf_counter()
    program = PROGRAMS[request["system"]](request["config"], request["iterations"])
    about = {"compile_seconds": time.perf_counter() - began, "devices": program.devices, **_about(request["system"])}
    print(json.dumps(about), file=answers)

    state = program.state
    for _ in sys.stdin:
        state, seconds = program.run(state)
        print(json.dumps({"seconds": seconds}), file=answers)


def _about(system: str) -> dict[str, Any]:
    from importlib.metadata import PackageNotFoundError, version

    import jax

    versions = {}
    for name in (system.partition("_")[0], "jax", "gymnax"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {"device": jax.devices()[0].platform, "versions": versions}


if __name__ == "__main__":
    main()
