"""Small runs to do harm to. What takes minutes is marked ``slow``, as elsewhere: `make test-faults` has all of it."""

import os
import subprocess
import sys
import textwrap

import jax
import pytest
from small import RUN, TWELVE

TINY = (*RUN, *TWELVE, "seeds=2", "method=add", "devices=1")
"""As in tests/test_train.py, so that what was compiled there serves here."""


@pytest.fixture(scope="session")
def tiny():
    return TINY


@pytest.fixture(scope="session")
def child():
    """``(script, *arguments, status=0, **environment) -> stdout``: another process, with our compiled programs."""

    def run(script, *arguments, status=0, **environment):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
        if (cache := jax.config.jax_compilation_cache_dir) is not None:
            environment |= {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
        command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
        process = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert process.returncode == status, process.stderr[-3000:]
        return process.stdout

    return run
