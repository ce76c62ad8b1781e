"""How jax is started: in float32, on a CPU with how many devices and threads, and what it has compiled before."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import jax

from llmrl.settings.config import Config
from llmrl.settings.errors import BadValue

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

DEBUGGING = {
    "jax_disable_jit": "a run is one compiled program, and would take hours, operation by operation",
    "jax_debug_nans": "nan stands for what is not known yet, such as the return before an episode has ended",
    "jax_debug_infs": "inf stands for what is not known yet, such as how far the policy has moved",
}
"""Switches of jax's that no run survives, and why; each is set by the environment variable in capitals too."""


def in_float32(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The function with float32 and int32 as jax's defaults, also where JAX_ENABLE_X64 has set others.

    Everything here is computed in them; a default of 64 bits would mix with them.
    """

    @functools.wraps(function)
    def narrow(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with jax.enable_x64(False):
            return function(*args, **kwargs)

    return narrow


def refuse_debugging(*switches: str) -> None:
    """Refuses switches of jax's that a run would fail under, after minutes or with a traceback.

    Args:
        switches: keys of ``DEBUGGING``; all of them where none is named.

    Raises:
        ValueError: names the switch.
    """
    for switch in switches or DEBUGGING:
        if jax.config.values[switch]:
            raise BadValue(
                f"{switch.upper()} must be off: {DEBUGGING[switch]}. To debug an environment, call its reset and step "
                "by themselves"
            )


def use_cores(config: Config) -> None:
    """On a plain CPU machine, one simulated device per core when there are several seeds.

    XLA runs programs as small as these on one core; two devices are two programs. Where there is one device and next to
    nothing to compute in a step, XLA is given one thread: to share so little takes longer than to do it. Nothing
    happens once jax has started, or where the number of devices, or of threads, was chosen by hand.
    """
    small = 1 in (config.seeds, config.devices) and work_of_a_pass(config) < WORTH_SHARING
    # A person at a prompt may go on to something larger, in the same process.
    if small and not config.distributed and "IPython" not in sys.modules and not hasattr(sys, "ps1"):
        _start_with_one_thread()
    cores = min(os.cpu_count() or 1, config.seeds)
    by_hand = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if config.devices != "auto" or cores < 2 or by_hand or jax.config.values["jax_num_cpu_devices"] > 1:
        return
    # Too late once a backend is up: then there are the devices that there are.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", cores)


def _start_with_one_thread() -> None:
    """Starts XLA's client for CPUs, which looks at this variable once; processes started later do not inherit it."""
    if {"NPROC", "PJRT_NPROC"} & os.environ.keys():
        return
    os.environ["PJRT_NPROC"] = "1"
    try:
        jax.devices()
    finally:
        del os.environ["PJRT_NPROC"]


WORTH_SHARING = 4e6
"""Multiplications in a layer, from which on a second thread pays: 1024 samples through 64 x 64 weights; with half as
many one thread is a twentieth faster, with an eighth an eighth. An outer step on two halves of 1024 takes 1.6 ms with
two threads and 2.7 with one, and plain PPO, whose minibatches are of 512 then, as long with either."""


def work_of_a_pass(config: Config) -> float:
    """Multiplications in the widest layer of what passes through it at once, a minibatch or, in the outer level, half a
    rollout, all seeds side by side; infinite where the game itself is more work than that."""
    if config.env.name in ("craftax_classic", "crafter"):
        return math.inf
    ppo = config.ppo
    return config.seeds * ppo.batch_size / min(ppo.num_minibatches, 2) * max(ppo.hidden) ** 2


def use_compilation_cache() -> None:
    """Keep compiled programs from one run to the next, in ``~/.cache/llmrl/xla``, or where ``XDG_CACHE_HOME`` and
    ``JAX_COMPILATION_CACHE_DIR`` say; ``JAX_ENABLE_COMPILATION_CACHE=0`` switches that off.

    However quickly they were compiled: a start is made of dozens of small programs beside the large one.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "llmrl" / "xla"))
        if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
