"""How long it takes from a command to its first result, in a process of its own that has not imported anything yet.

Run as a script: a run's settings come in as one line of JSON, and the seconds of every phase go out as another.
"""

from __future__ import annotations

import json
import os
import sys
import time


def main() -> None:
    """Do what ``llmrl train`` does up to the end of its first iteration."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    settings = json.loads(sys.stdin.readline())
    seconds, began = {}, time.perf_counter()

    def passed(phase: str) -> None:
        nonlocal began
        now = time.perf_counter()
        seconds[phase] = now - began
        began = now

    import jax
    import numpy as np

    from llmrl.settings.validation import from_dict
    from llmrl.training.cores import use_compilation_cache, use_cores
    from llmrl.training.devices import seed_mesh
    from llmrl.training.loop import compiled_run, initial_states, make_trainer

    config = from_dict(settings)
    use_compilation_cache()
    use_cores(config)
    jax.devices()
    passed("import")
    trainer, mesh = make_trainer(config), seed_mesh(config)
    states = jax.block_until_ready(initial_states(trainer, config, mesh))
    passed("initial state")
    program = compiled_run(trainer, states, mesh, 1)
    passed("trace and compile")
    jax.block_until_ready(program(states, np.int32(0)))
    passed("first iteration")
    print(json.dumps(seconds), file=answers)


if __name__ == "__main__":
    main()
