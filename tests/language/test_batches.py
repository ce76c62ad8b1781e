"""Laws of batches: a batch that a model has answered leaves what asking the model leaves, in cache and file."""

from __future__ import annotations

import itertools
import json
from urllib.request import Request, urlopen

import numpy as np
import pytest

pytest.importorskip("openai")

from llmrl.cli.main import main
from llmrl.language import fill, make_provider, open_cache
from llmrl.language.batches import fill_from, requests
from llmrl.language.table import as_dict
from llmrl.settings.config import LLMConfig

KEYS = (3, 5, 8)
_callers = (f"batch-{i}" for i in itertools.count())

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


def runner(url, lines):
    """What a batch runner makes of questions, last ones first, with the fake model of the tests of endpoints."""

    def result(line):
        sent = Request(f"{url}/chat/completions", json.dumps(line["body"]).encode())
        with urlopen(sent) as response:
            body = json.loads(response.read())
        return {
            "id": "x",
            "custom_id": line["custom_id"],
            "error": None,
            "response": {"status_code": 200, "body": body},
        }

    assert all((line["method"], line["url"]) == ("POST", "/v1/chat/completions") for line in lines)
    return [result(line) for line in reversed(lines)]


@pytest.fixture
def write(tmp_path):
    def write(*rows, name="results.jsonl"):
        path = tmp_path / name
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return path

    return write


@pytest.fixture
def provider(hostile, words):
    """A provider at an endpoint of which no question is asked, but by the runner."""
    url = hostile.url("ok", next(_callers))
    return make_provider(LLMConfig(provider="openai", model="llama3.1", key_variable=None, base_url=url), words)


def test_a_batch_leaves_what_asking_leaves(hostile, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "batch_words_for_tests.py").write_text(FEW_WORDS)
    caller = next(_callers)
    url = hostile.url("ok", caller)
    # The live way needs no key here; a batch reads none, though the settings name one.
    settings = ("env=cartpole", "captioner=batch_words_for_tests.captioner", "llm=openai", f"llm.base_url={url}")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    main(["label", *settings, "llm.key_variable=null", "llm.cache=live.sqlite", "out=live.jsonl"])
    asked = hostile.hits[caller]

    main(["label", *settings, "llm.cache=batch.sqlite", "questions=prompts.jsonl"])
    lines = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    assert len(lines) == 4 and hostile.hits[caller] == asked
    rows = runner(url, lines)
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = hostile.hits[caller]
    main(["label", *settings, "llm.cache=batch.sqlite", "results=results.jsonl", "out=batch.jsonl"])
    assert "4 of 4 questions are answered\n" in capsys.readouterr().out

    assert (tmp_path / "batch.jsonl").read_text() == (tmp_path / "live.jsonl").read_text()
    assert held("batch.sqlite") == held("live.sqlite")
    main(["label", *settings, "llm.key_variable=null", "llm.cache=batch.sqlite"])
    assert hostile.hits[caller] == asked

    for given, message in (
        (["questions=a", "results=b"], "got questions and results"),
        (["questions=a", "out=b"], "no answers for out="),
        (["llm=recorded", "questions=a"], "answers at once"),
        (["results=nowhere.jsonl"], "nowhere.jsonl"),
    ):
        with pytest.raises(SystemExit):
            main(["label", *settings[:2], *(given if "llm=recorded" in given else [*settings[2:], *given])])
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error


def held(path):
    """The rows of a cache, without the time of each."""
    cache = open_cache(path)
    cache.export("export.jsonl")
    cache.close()
    with open("export.jsonl") as file:
        return [{**json.loads(line), "time": None} for line in file]


def test_what_has_no_answer_is_counted_and_asked_again(provider, words, hostile, write):
    lines = requests(provider, words, open_cache(None), KEYS)
    assert len(lines) == len({line["custom_id"] for line in lines}) == 6
    assert max(len(line["custom_id"]) for line in lines) <= 64
    rows = runner(hostile.url("ok", next(_callers)), lines)[::-1]
    declines = {"choices": [{"message": {"content": None, "refusal": "I cannot help with that"}}]}
    chats = {"choices": [{"message": {"content": "Perhaps"}, "logprobs": rows[0]["response"]["body"]["choices"]}]}
    rows[1] |= {"response": {"status_code": 200, "body": declines}}
    rows[2] |= {"response": None, "error": {"code": "batch_expired", "message": "The window has passed."}}
    rows[3] |= {"response": {"status_code": 200, "body": chats}}

    cache = open_cache(None)
    table, said = fill_from(write(*rows[:5]), words, provider, cache, KEYS, 0.5)
    assert said.startswith(
        "2 of 6 questions are answered, 1 refused, 1 failed, 1 unreadable, 1 without a line (the first"
    )
    # A refusal is the model's last word, and neutral; an error and a missing line are not.
    assert {key: row.tolist() for key, row in as_dict(table).items()} == {3: pytest.approx([0.8 / 0.95, 0.5])}
    left = requests(provider, words, cache, KEYS)
    assert [line["custom_id"] for line in left] == [rows[i]["custom_id"] for i in (1, 2, 3, 5)]

    with pytest.raises(RuntimeError, match=r"results.jsonl: 0 of 6 .*, 5 without a line, 1 refused .*I cannot help"):
        fill_from(write(rows[1]), words, provider, open_cache(None), KEYS, 0.5)

    again = runner(hostile.url("ok", next(_callers)), left)
    table, said = fill_from(write(*again), words, provider, cache, KEYS, 0.5)
    assert said == "6 of 6 questions are answered"
    live = fill(words, provider, None, KEYS, capacity=len(KEYS))
    for ours, theirs in zip(table, live, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name: "nothing", "results.jsonl:2: no result of a batch"),
        (lambda name: "[" * 100_000, "no result of a batch"),
        (lambda name: {"response": {}}, "no result of a batch"),
        (lambda name: {"custom_id": 3}, "no result of a batch"),
        (lambda name: {"custom_id": "request-1"}, "'request-1' is of no question"),
        (lambda name: {"custom_id": name[:-4] + "beef"}, "is of no question.*limit"),
        (lambda name: {"custom_id": name.replace(":", ":0", 1)}, "asked with the prompt .*questions="),
    ],
)
def test_a_line_that_is_no_result_is_named(change, message, provider, words, write):
    (first, *_) = requests(provider, words, open_cache(None), KEYS)
    name = first["custom_id"]
    with pytest.raises(ValueError, match=message):
        fill_from(write({"custom_id": name}, change(name)), words, provider, open_cache(None), KEYS, 0.5)
