"""The child process of ``llm=local``: llama.cpp's own server for one GGUF file, on a free port of this machine.

    python -P llama_server.py model.gguf [threads]

Says where it listens, and serves until standard input ends. The pipe to standard input closes however the parent ends,
so the child does not outlive it. Run as a file, so that nothing of llmrl is imported.
"""

from __future__ import annotations

import os
import sys

LISTENS = "listening at "
"""How the line begins that says where."""

CONTEXT = 8192
"""Tokens of the longest question with its answer; the default, a model's own limit, can take gigabytes of memory."""

_ERRORS_ONLY = 1


def serve(model: str, threads: int | None) -> None:
    """Serves one model.

    Args:
        model: path of a GGUF file.
        threads: of computation; None takes llama.cpp's choice.
    """
    import xllamacpp  # type: ignore[import-not-found]

    settings = xllamacpp.CommonParams()
    settings.model.path = model
    settings.hostnames = ["127.0.0.1"]
    settings.port = 0
    # One question after the other: they begin alike, and what they have in common is computed once.
    settings.n_parallel = 1
    settings.n_ctx = CONTEXT
    settings.use_jinja = True
    settings.warmup = False
    settings.verbosity = _ERRORS_ONLY
    if threads is not None:
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
    try:
        server = xllamacpp.Server(settings)
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}")  # after llama.cpp's own words on it
    print(f"{LISTENS}{server.listening_address}", flush=True)
    os.dup2(2, 1)  # the parent reads no further line
    sys.stdin.read()


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None)
