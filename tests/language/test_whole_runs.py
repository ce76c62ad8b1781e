"""Whole runs, from the command line to the run's directory: what is asked, what is said, and where a key goes."""

from __future__ import annotations

import itertools
import socket
import sys
import time

import numpy as np
import pytest

pytest.importorskip("openai")

from llmrl.assembly.parts import make_environment
from llmrl.cli.main import main
from llmrl.language import size
from llmrl.runs import metrics
from llmrl.settings.overrides import compose
from llmrl.training.answers import listening
from llmrl.training.loop import train

TINY = (
    *("env=cartpole", "aux=language", "method=add", "ppo=tiny", "seeds=2", "total_steps=384", "num_chunks=3"),
    *("devices=1", "progress=false"),
)
_callers = (f"run-{i}" for i in itertools.count())
_opened: list | None = None


def _listen(event, arguments):
    """Notes whatever has to do with a network. A host's name needs none, nor does a pair of sockets within a process,
    by which event loops wake each other up."""
    if _opened is None or not event.startswith("socket.") or event == "socket.gethostname":
        return
    if not (event == "socket.__new__" and arguments[1] == socket.AF_UNIX):
        _opened.append((event, arguments))


@pytest.fixture
def asked(hostile, monkeypatch, key, tmp_path):
    """``(behaviour) -> (overrides, caller)``; the key is in the environment, and the directory is empty."""
    monkeypatch.setenv("OPENAI_API_KEY", key)
    monkeypatch.chdir(tmp_path)

    def make(behaviour):
        caller = next(_callers)
        return ("llm=openai", "llm.model=llama3.1", f"llm.base_url={hostile.url(behaviour, caller)}"), caller

    return make


def test_recorded_answers_open_no_socket(tmp_path):
    global _opened
    sys.addaudithook(_listen)  # for the rest of the process: hooks cannot be taken away
    config = compose(*TINY, "llm=recorded", f"llm.cache={tmp_path / 'cache.sqlite'}", f"run_dir={tmp_path / 'run'}")
    _opened = []
    try:
        train(config)
        assert _opened == []
    finally:
        _opened = None
    assert not (tmp_path / "cache.sqlite").exists()


FEW_WORDS = """
import jax.numpy as jnp
from llmrl.envs.captions import Feature, binned

captioner = binned(
    "The pole {leans}.",
    {"leans": Feature(2, (0.0,), ("leans to the left", "leans to the right"))},
    ("push the cart to the left", "push the cart to the right"),
    lambda obs, action, next_obs: action.astype(jnp.int32),
    "Balance a pole on a cart.",
)
"""


def test_a_second_run_asks_nothing_and_the_key_is_found_nowhere(asked, hostile, key, tmp_path, capfd, monkeypatch):
    (tmp_path / "few_words_for_tests.py").write_text(FEW_WORDS)
    monkeypatch.syspath_prepend(tmp_path)
    settings, caller = asked("ok")
    settings += ("env=cartpole", "captioner=few_words_for_tests.captioner")
    main(["train", *TINY, *settings, "run_dir=first"])
    assert hostile.hits[caller] > 1
    main(["label", *settings])  # what the first run still had to ask when it ended
    labelled = hostile.hits[caller]
    main(["train", "--multirun", *TINY, *settings, "seed=1"])
    main(["label", *settings, "out=answers.jsonl"])
    assert hostile.hits[caller] == labelled
    (second,) = (metrics.read(path) for path in tmp_path.glob("runs/*/metrics.csv"))
    assert (second["language_requests"] == 0).all()
    assert (second["language_coverage"][:, -1] == 1.0).all()
    assert (second["language_cache_hits"][:, -1] == 4.0).all()

    with pytest.raises(SystemExit) as exit_:
        main(["train", *TINY, *asked("rejects")[0], "llm.cache=other.sqlite", "run_dir=third"])
    printed = capfd.readouterr()
    assert exit_.value.code == 2
    assert "OPENAI_API_KEY" in printed.err and "Traceback" not in printed.err
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"config.yaml", "metrics.csv", "multirun.yaml", "answers.sqlite"}
    assert not [path for path in files if key.encode() in path.read_bytes()]
    assert key not in printed.out + printed.err


def test_the_key_is_nowhere_where_the_endpoint_repeats_it(asked, hostile, key, tmp_path, capfd, caplog):
    settings, caller = asked("echo")
    main(["train", *TINY, *settings, "llm.score=string_similarity", "llm.deadline=10", "run_dir=runs/x"])
    printed = capfd.readouterr()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"config.yaml", "metrics.csv", "summary.json", "answers.sqlite"}
    assert hostile.hits[caller] > 1
    assert not [path for path in files if key.encode() in path.read_bytes()]
    assert key not in printed.out + printed.err + caplog.text


def test_an_endpoint_that_turns_bad_is_counted_and_its_answers_are_kept(asked):
    settings, _ = asked("sours")
    config = compose(*TINY, *settings, "llm.retries=0", "llm.cache=null")
    env = make_environment(config)
    with listening(config, env) as listener:
        table, ends = listener.table, time.monotonic() + 200
        counts = {"language_failures": 0.0}
        while counts["language_failures"] == 0.0:
            assert time.monotonic() < ends
            time.sleep(0.05)
            table, counts = listener.exchange(table, dict.fromkeys(range(60), 1))
        table, counts = listener.exchange(table, {})
    assert 0 < size(table) <= counts["language_answered"] < 20
    assert np.all((table.scores >= 0.0) & (table.scores <= 1.0))


def test_a_bad_endpoint_ends_a_run_before_it_begins_in_one_line(asked, capsys):
    for behaviour in ("html", "no_logprobs", "redirect"):
        with pytest.raises(SystemExit) as exit_:
            main(["train", *TINY, *asked(behaviour)[0], "run_dir=run"])
        printed = capsys.readouterr().err
        assert exit_.value.code == 2
        assert printed.count("\n") == 1, printed
