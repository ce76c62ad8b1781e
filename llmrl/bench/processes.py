"""The other end of ``worker.py``: programs in processes of their own, that live as long as they are measured.

One process each, also for our own: how many simulated devices there are, and so how fast a program is, is decided once
per process. And rejax needs an environment of its own, as it is written for another gymnax.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from llmrl.bench.timing import Measure
from llmrl.settings.errors import CannotRun

SCRIPT = Path(__file__).with_name("worker.py")


class Worker(NamedTuple):
    """A compiled program in another process.

    Attributes:
        measure: one more measurement of it.
        about: ``device``, ``devices``, ``versions``, ``compile_seconds``.
    """

    measure: Measure
    about: dict[str, Any]


@contextmanager
def worker(system: str, config: Mapping[str, Any], iterations: int, python: str = sys.executable) -> Iterator[Worker]:
    """Starts a process, which compiles, and ends it with the context.

    Args:
        system: a key of ``worker.PROGRAMS``.
        config: a run's settings, nested.
        iterations: of training, in one measurement.
        python: the interpreter.

    Yields:
        The worker, ready.

    Raises:
        RuntimeError: the process ended early; its last line is in the message.
    """
    request = {"system": system, "config": config, "iterations": iterations}
    with tempfile.TemporaryFile("w+") as errors:
        # -P, or the script's own folder, full of our modules, would be the first place to import from.
        process = subprocess.Popen(
            [python, "-P", str(SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=child_environment(system),
        )
        try:
            about = _asked(process, errors, json.dumps(request))
            yield Worker(lambda: _asked(process, errors, "again")["seconds"], about)
        finally:
            process.kill()
            process.communicate()


def missing(python: str, package: str) -> str | None:
    """Why a Python cannot import a package, in half a sentence; None if it can."""
    try:
        tried = subprocess.run(
            [python, "-c", f"import {package}"], capture_output=True, text=True, env=child_environment(package)
        )
    except OSError:
        return f"there is no Python at {python}"
    return None if tried.returncode == 0 else f"{python} cannot import it ({_last_line(tried.stderr)})"


def _asked(process: subprocess.Popen[str], errors: IO[str], line: str) -> dict[str, Any]:
    assert process.stdin is not None and process.stdout is not None
    answer = ""
    try:
        process.stdin.write(line + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
    except BrokenPipeError:
        pass
    if not answer:
        process.wait()
        errors.seek(0)
        raise CannotRun(f"a measured process ended with exit code {process.returncode}: {_last_line(errors.read())}")
    return json.loads(answer)


def child_environment(system: str) -> dict[str, str]:
    """Each process finds its own packages, and several of them share an accelerator's memory."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if system.startswith("llmrl"):
        ours = str(Path(__file__).resolve().parents[2])
        environment["PYTHONPATH"] = os.pathsep.join([ours, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **environment}


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[-1]
