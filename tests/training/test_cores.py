"""With how many devices and threads XLA is started; each in a process of its own, as it is decided once."""

import math
import os
import subprocess
import sys
from dataclasses import replace

import pytest

import llmrl
from llmrl.training.cores import WORTH_SHARING, work_of_a_pass

STARTED = """
import os
import llmrl
from llmrl.training import cores

seen = []
def devices():
    seen.append(os.environ.get("PJRT_NPROC"))

import jax
jax.devices, real = devices, jax.devices
for words in {runs}:
    cores.use_cores(llmrl.compose(*words))
jax.devices = real
print(seen, os.environ.get("PJRT_NPROC"), len(jax.devices()))
"""

SMALL = ("seeds=1", "ppo.num_envs=4")


def started(*runs, **environment):
    left_out = ("NPROC", "PJRT_NPROC", "XLA_FLAGS")
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    code = STARTED.format(runs=runs)
    command = [sys.executable, "-c", code]
    process = subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=True)
    return process.stdout.strip()


def test_little_work_on_one_device_gets_one_thread_and_later_processes_their_own():
    assert started(SMALL) == "['1'] None 1"


def test_what_is_worth_sharing_keeps_all_threads():
    much, game = ("seeds=1", "ppo.num_envs=64"), (*SMALL, "env=craftax_classic")
    several_processes = (*SMALL, "distributed=true", "coordinator=localhost:1")
    assert started(much, game, several_processes).startswith("[] None")


@pytest.mark.parametrize("name", ["NPROC", "PJRT_NPROC"])
def test_threads_chosen_by_hand_stay(name):
    expected = "2" if name == "PJRT_NPROC" else "None"
    assert started(SMALL, **{name: "2"}) == f"[] {expected} 1"


def test_several_seeds_get_a_device_per_core():
    cores = min(os.cpu_count() or 1, 2)
    assert started(("seeds=2",)).endswith(f" {cores}")


def test_work_grows_with_samples_and_with_seeds_side_by_side():
    one = llmrl.compose("seeds=1", "ppo.num_envs=8")
    assert work_of_a_pass(one) < WORTH_SHARING < work_of_a_pass(replace(one, seeds=8))
    assert work_of_a_pass(replace(one, ppo=replace(one.ppo, num_envs=16))) > WORTH_SHARING  # half a rollout: 1024 steps
    assert work_of_a_pass(llmrl.compose("seeds=1", "env=craftax_classic")) == math.inf
