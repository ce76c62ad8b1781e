"""What a language model costs training: a slow one that is asked in the background, and a large table of answers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import log
from typing import Any, NamedTuple

from llmrl.bench.report import Row, Table
from llmrl.bench.throughput import AIDED, Contestant, compared, sized
from llmrl.settings.config import AuxConfig, Config, LLMConfig
from llmrl.settings.errors import CannotRun
from llmrl.settings.requests import Bench
from llmrl.training.progress import plural

OFFLINE = Config(aux=AuxConfig(sources={"language": 1.0}))
"""Every answer is in the table before training begins; no model is asked."""

ROWS = 65_536
SECONDS = 2.0
"""What the slow model takes for an answer."""


def language(request: Bench) -> Table:
    """Training while a slow server is asked, against the same run with all answers at hand; and with a large table of
    answers, against a source that needs none."""
    rows: list[Row] = []
    for seeds in request.seeds:
        where = f"{plural(seeds, 'seed')} x {OFFLINE.ppo.num_envs} envs"
        with slow_server(SECONDS) as server:
            online = replace(OFFLINE, llm=asking(server.url))
            contestants = [
                Contestant("no model is asked", "llmrl_chunks", sized(OFFLINE, seeds)),
                Contestant(f"{SECONDS:g} s an answer", "llmrl_chunks", sized(online, seeds)),
            ]
            reference, slowed = compared(contestants, request, where)
            if not server.answers():
                raise CannotRun("the slow server was not asked anything, so this measured nothing")
            rows += [reference, slowed._replace(note=f"{server.answers()} answers meanwhile, {slowed.note}")]
        large = replace(OFFLINE, llm=replace(OFFLINE.llm, capacity=ROWS))
        contestants = [
            Contestant("no table", "llmrl", sized(AIDED, seeds)),
            Contestant(f"a table of {ROWS:,} rows", "llmrl_table", sized(large, seeds)),
        ]
        rows += compared(contestants, request, where)
    return Table("implicit on CartPole with a language model", "steps/s", "the row before", rows)


def asking(url: str) -> LLMConfig:
    """Settings that ask the slow server, and remember nothing from one measurement to the next."""
    return LLMConfig(provider="openai", base_url=url, key_variable=None, model="slow", cache=None)


# --- a slow model -----------------------------------------------------------------------------------------------------


class SlowServer(NamedTuple):
    """An OpenAI-compatible server on this machine, that thinks for a while and says yes.

    Attributes:
        url: for ``llm.base_url``.
        answers: ``() -> how many it has given``.
    """

    url: str
    answers: Any


@contextmanager
def slow_server(seconds: float) -> Iterator[SlowServer]:
    """Serves on the loopback interface, every request in a thread of its own."""
    given: list[None] = []

    class Slow(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            time.sleep(seconds)
            try:
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(_YES)))
                self.end_headers()
                self.wfile.write(_YES)
                given.append(None)
            except OSError:  # the client has closed the connection
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    server.daemon_threads, server.block_on_close = True, False
    threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
    try:
        yield SlowServer(f"http://127.0.0.1:{server.server_port}/v1", lambda: len(given))
    finally:
        server.shutdown()
        server.server_close()


def _completion() -> dict[str, Any]:
    top = [{"token": word, "logprob": log(chance)} for word, chance in (("Yes", 0.8), ("No", 0.15))]
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "Yes"},
        "logprobs": {"content": [{**top[0], "top_logprobs": top}]},
        "finish_reason": "stop",
    }
    return {"choices": [choice], "usage": {"prompt_tokens": 50, "completion_tokens": 1}}


_YES = json.dumps(_completion()).encode()
