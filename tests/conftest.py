"""All tests run with shapes and dtypes checked: jaxtyping and beartype on the library, no silent dtype promotion."""

from __future__ import annotations

import gc
import os
import signal

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "agg")

import jax

# The suite compiles far longer than it computes: without LLVM's optimisations and with XLA's older CPU code generator
# it takes half the time. A flag that a later XLA does not know would abort it, hence the version.
if jax.__version_info__ < (0, 11):
    quick = "backend_optimization_level=0", "cpu_use_fusion_emitters=false", "cpu_parallel_codegen_split_count=1"
    os.environ.setdefault("XLA_FLAGS", " ".join(f"--xla_{flag}" for flag in quick))

import flax.linen
import jax.numpy as jnp
import jinja2
import matplotlib.pyplot
import numpy as np
import optax
import pytest
import rich.progress
from jaxtyping import install_import_hook

# What is first imported below the hook, Python reads from its sources and not as bytecode.
_ = flax.linen, jinja2, matplotlib.pyplot, optax, rich.progress

# Rooms without arrays are left out, and settings too: their floats may be traced, by design.
CHECKED = (
    "analysis",
    "assembly",
    "bench",
    "bilevel",
    "envs",
    "language",
    "learner",
    "nets",
    "ops",
    "results",
    "rewards",
    "runs",
    "studies.carry_out",
    "studies.compare",
    "studies.figures",
    "studies.suite",
    "studies.suite_page",
    "studies.suite_plan",
    "studies.sweeps",
    "training",
    "trust",
    "types",
)
install_import_hook([f"llmrl.{room}" for room in CHECKED], "beartype.beartype")


# Tracing makes hundreds of thousands of small objects that stay, and Python's default of a collection every 700 of them
# is a third of its time.
gc.set_threshold(100_000, 20, 20)


def pytest_collection_finish():
    """What was imported stays, and need not be looked at in every collection."""
    gc.collect()
    gc.freeze()


def pytest_configure(config):
    # A job in the background of a shell ignores Ctrl-C, and so would the processes that tests interrupt.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    # Where the suite runs on a GPU, what it compares with is not to be rounded to 10 bits either.
    jax.config.update("jax_default_matmul_precision", "highest")
    # Most of the suite's time is compilation; what the last run compiled is kept with pytest's own cache.
    if hasattr(config, "cache"):
        jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("jax")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


@pytest.fixture(scope="session")
def random_rollout():
    """``(spec, num_steps, num_envs, seed, **fields) -> Rollout`` of random numbers, the named fields replaced."""
    # Imported here, after the hook.
    from llmrl.types import Discrete, Rollout, Transition

    def make(spec, num_steps=6, num_envs=4, seed=0, **fields):
        random = np.random.default_rng(seed)
        shape = (num_steps, num_envs)

        def floats(*more):
            return random.normal(size=(*shape, *more)).astype(np.float32)

        discrete = isinstance(spec.action, Discrete)
        actions = random.integers(spec.action.num, size=shape) if discrete else floats(spec.action.dim)
        steps = {
            "obs": floats(*spec.obs_shape),
            "action": actions,
            "log_prob": -np.abs(floats()),
            "reward": floats(),
            "terminated": random.random(shape) < 0.1,
            "truncated": random.random(shape) < 0.1,
            "success": random.random(shape) < 0.1,
            "next_obs": floats(*spec.obs_shape),
            "aux": floats(len(spec.aux_names)),
            "state_key": np.zeros(shape, np.uint32),
            "event": np.zeros(shape, np.int32),
        }
        steps |= fields
        return jax.tree.map(jnp.asarray, Rollout(Transition(**steps), steps["action"][-1]))

    return make
