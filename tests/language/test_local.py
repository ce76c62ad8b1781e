"""A model of one's own in a child process: asked once it is up, gone with its parent, and whatever is wrong told in a
line. The child is the real one; its llama.cpp is a stand-in that answers "yes" with the probability 0.75."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from llmrl.language import fill, make_provider, open_cache, probe
from llmrl.settings.config import LLMConfig

STAND_IN = """
import json, os, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import log
from types import SimpleNamespace

class CommonParams(SimpleNamespace):
    def __init__(self):
        super().__init__(model=SimpleNamespace(), cpuparams=SimpleNamespace(), cpuparams_batch=SimpleNamespace())

class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        if os.path.exists(self.server.model + ".crash"):
            os.kill(os.getpid(), 9)
        yes, no = ({"token": token, "logprob": log(p)} for token, p in (("yes", 0.75), ("no", 0.25)))
        choice = {"message": {"content": "yes"}, "logprobs": {"content": [yes | {"top_logprobs": [yes, no]}]}}
        body = json.dumps({"choices": [choice], "usage": {}}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

class Server:
    def __init__(self, settings):
        with open(settings.model.path + ".started", "a") as file:
            print(os.getpid(), settings.cpuparams.__dict__, file=file)
        if os.path.exists(settings.model.path + ".broken"):
            raise RuntimeError("tensors are missing")
        print("a line of llama.cpp's own", flush=True)
        server = ThreadingHTTPServer((settings.hostnames[0], settings.port), Handler)
        server.model = settings.model.path
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.listening_address = f"http://127.0.0.1:{server.server_port}"
"""


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A file that looks like a model, where the stand-in can be imported."""
    (tmp_path / "xllamacpp.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF and some weights")
    return path


def config_of(model, **changes):
    return LLMConfig(provider="local", model=str(model), deadline=60.0, concurrency=2, **changes)


def children(model):
    """The process ids that have served a model."""
    started = Path(f"{model}.started")
    return [int(line.split()[0]) for line in started.read_text().splitlines()] if started.exists() else []


def is_gone(process, seconds=20.0):
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        state = Path(f"/proc/{process}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.02)
    return False


def test_one_child_answers_all_and_ends_with_the_labelling(model, words, tmp_path):
    cache = open_cache(tmp_path / "cache.sqlite")
    provider = make_provider(config_of(model, threads=3), words)
    assert children(model) == []  # it starts with the first question
    table = fill(words, provider, cache, range(4), capacity=4, concurrency=2)
    np.testing.assert_allclose(table.scores, 0.75)
    (child,) = children(model)
    assert "'n_threads': 3" in Path(f"{model}.started").read_text()
    assert is_gone(child)

    # What the cache holds is the file's, whatever port or path it had.
    moved = tmp_path / "elsewhere" / "model.gguf"
    moved.parent.mkdir()
    moved.write_bytes(model.read_bytes())
    fill(words, make_provider(config_of(moved), words), cache, range(4), capacity=4)
    assert children(moved) == []
    moved.write_bytes(b"GGUF and other weights")
    other = make_provider(config_of(moved), words)
    assert not cache.knows(other) and cache.knows(provider)


def test_the_child_does_not_outlive_a_parent_that_is_killed(model):
    asks = (
        "import asyncio, sys, time\n"
        "from llmrl.language import make_provider\n"
        "from llmrl.language.question import Question\n"
        "from llmrl.settings.config import LLMConfig\n"
        "async def main():\n"
        f"    provider = make_provider(LLMConfig(provider='local', model={str(model)!r}), None)\n"
        "    await provider.answer(Question(0, (0,), '', ('go',), system='a', user='b'))\n"
        "    print('answered', flush=True)\n"
        "    time.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(model.parent)])}
    with subprocess.Popen([sys.executable, "-c", asks], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout.readline() == "answered\n"
        (child,) = children(model)
        parent.send_signal(signal.SIGKILL)
    assert is_gone(child)


def test_a_probe_starts_a_child_and_ends_it(model):
    found = probe(config_of(model))
    assert found.ok and "score 0.75" in found.message, found.message
    assert is_gone(*children(model))


def test_a_server_that_does_not_come_up_or_dies_is_told_in_a_line(model, words):
    for harm, message in (
        ("broken", r"model\.gguf left with exit code 1: RuntimeError: tensors are missing$"),
        ("crash", r"model\.gguf was killed by SIGKILL: it said nothing$"),
    ):
        Path(f"{model}.{harm}").touch()
        with pytest.raises(RuntimeError, match=f"0 of 1 states were answered: the server of .*{message}"):
            fill(words, make_provider(config_of(model), words), None, [0])
        Path(f"{model}.{harm}").unlink()


def test_what_is_wrong_with_a_file_is_told_before_anything_starts(model, words, tmp_path, monkeypatch):
    (tmp_path / "text.gguf").write_text("no model")
    for name, message in (
        ("", "needs the path of a GGUF file"),
        (tmp_path / "none.gguf", r"none\.gguf': No such file"),
        (tmp_path, "Is a directory"),
        (tmp_path / "text.gguf", r"text\.gguf', which begins otherwise"),
    ):
        with pytest.raises(ValueError, match=message):
            make_provider(config_of(name), words)
        assert not probe(config_of(name)).ok
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(ValueError, match=r"needs the package xllamacpp: pip install -e '\.\[local\]'"):
        make_provider(config_of(model), words)
