"""Frames of Gymnasium's CartPole-v1 per second and per second of processor time, in PPO with llmrl's default sizes.

    python scripts/gymnasium_speed.py llmrl
    python scripts/gymnasium_speed.py stable_baselines3    # by a Python that has it

Run both in turns: the share of the processor that each gets differs from minute to minute.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

ENVS, STEPS, EPOCHS, MINIBATCHES, HIDDEN = 16, 128, 4, 4, (64, 64)
ITERATIONS, ROUNDS = 4, 3
FRAMES = ITERATIONS * ENVS * STEPS


def ours(measured: Callable[[Callable[[], None]], None]) -> None:
    """llmrl, one seed."""
    import jax
    import numpy as np

    import llmrl
    from llmrl.training.devices import seed_mesh
    from llmrl.training.loop import make_trainer, opened_pieces

    sizes = f"ppo.num_envs={ENVS}", f"ppo.num_steps={STEPS}", f"ppo.num_epochs={EPOCHS}"
    nets = f"ppo.num_minibatches={MINIBATCHES}", f"ppo.hidden={list(HIDDEN)}"
    game = "env=gymnasium", "env.id=CartPole-v1", "aux=none", "method=ppo", "seeds=1"
    config = llmrl.compose(*game, *sizes, *nets)
    trainer = make_trainer(config)
    with opened_pieces(config, trainer, seed_mesh(config)) as pieces:
        states = pieces.initial(None)
        run = pieces.program(states, ITERATIONS, None)

        def learn() -> None:
            nonlocal states
            states, _ = jax.block_until_ready(run(states, np.int32(0), None))

        measured(learn)


def theirs(measured: Callable[[Callable[[], None]], None]) -> None:
    """Stable-Baselines3, on one thread."""
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    torch.set_num_threads(1)
    games, batch = make_vec_env("CartPole-v1", ENVS), ENVS * STEPS // MINIBATCHES
    sizes = {"n_steps": STEPS, "batch_size": batch, "n_epochs": EPOCHS, "policy_kwargs": {"net_arch": list(HIDDEN)}}
    model = PPO("MlpPolicy", games, device="cpu", **sizes)
    measured(lambda: model.learn(FRAMES, reset_num_timesteps=False))


def main() -> None:
    """Measures one of them; the first round, in which programs are compiled, is not shown."""
    name = sys.argv[1]

    def measured(learn: Callable[[], None]) -> None:
        learn()
        for _ in range(ROUNDS):
            processor, clock = time.process_time(), time.perf_counter()
            learn()
            spent = time.process_time() - processor, time.perf_counter() - clock
            each, whole = (FRAMES / seconds for seconds in spent)
            print(f"{name}: {each:,.0f} frames per second of processor time, {whole:,.0f} per second", flush=True)

    {"llmrl": ours, "stable_baselines3": theirs}[name](measured)


if __name__ == "__main__":
    main()
