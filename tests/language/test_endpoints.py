"""Laws of asking: whatever a server does, a question ends in time, as a score in [0, 1] or as an explicit failure."""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
import sys
import time
import traceback
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("openai")

from llmrl.language import Budget, Manners, fill, make_labeller, make_provider, open_cache, probe
from llmrl.language.asking import Asker
from llmrl.language.providers.network import find_proxy
from llmrl.language.providers.refusals import error_within, refusal, status_within
from llmrl.language.question import FATAL, FINAL, PASSING, UNREADABLE, Unanswered, questions
from llmrl.language.spending import Ledger
from llmrl.settings.config import LLMConfig

DEADLINE = 0.5
FAST = Manners(deadline=DEADLINE, retries=2, backoff=0.02, cooldown=0.05, max_cooldown=0.1, max_trips=3)
CALM = replace(FAST, deadline=10.0)
_callers = map(str, itertools.count())

GOOD = {"ok": 1, "busy_once": 2, "busy_until_a_date": 2}
"""Behaviours that end in an answer, and how many requests that takes."""

ALIKE = (
    "thoughts_in_text", "thoughts_without_beginning", "marks_not_among_tokens", "thoughts_in_brackets",
    "thoughts_in_channels", "reasoning", "reasoning_content", "reasoning_without_its_tokens", "long_thoughts",
    "fenced", "in_json", "parts", "parts_with_thoughts", "null_candidate", "impossible_candidate",
)  # fmt: skip
"""Behaviours that end in the same answer, at the first request."""

BAD = {
    "busy": "rate_limited",
    "busy_for_an_hour": "rate_limited",
    "busy_for_nonsense": "rate_limited",
    "broken": "server_error",
    "html": "malformed",
    "no_json": "malformed",
    "wrong_shape": "malformed",
    "a_list": "malformed",
    "empty_choices": "malformed",
    "no_message": "malformed",
    "nan_logprob": "no_logprobs",
    "string_logprob": "no_logprobs",
    "positive_logprob": "no_logprobs",
    "infinite_logprob": "no_logprobs",
    "nothing_likely": "no_logprobs",
    "huge": "malformed",
    "deep": "malformed",
    "half": "unreachable malformed",
    "hang_up": "unreachable",
    "no_logprobs": "no_logprobs",
    "chatter": "unparseable",
    "no_text": "no_logprobs",
    "cut_off_in_text": "only_thoughts",
    "cut_off_apart": "only_thoughts",
    "cut_off_unseen": "only_thoughts",
    "thoughts_alone": "only_thoughts",
    "declines": "refused",
    "filtered": "refused",
    "bad_request": "refused_request",
    "too_long": "refused_request",
    "few_candidates": "refused_request",
    "keeps_logprobs": "no_logprobs",
    "error_within": "server_error",
    "error_as_object": "refused_request",
    "no_model_within": "no_model",
    "redirect": "redirected",
    "rejects": "rejected_key",
}
"""Behaviours that end in a failure, and its kind."""


@pytest.fixture
def config(hostile, monkeypatch, key):
    """``(behaviour, **changes) -> (config, caller)``; the key is in the environment."""
    monkeypatch.setenv("OPENAI_API_KEY", key)

    def make(behaviour, **changes):
        caller = next(_callers)
        values = {"base_url": hostile.url(behaviour, caller), "deadline": CALM.deadline} | changes
        return LLMConfig(provider="openai", model="llama3.1", **values), caller

    return make


def ask(provider, question, manners=CALM):
    """``(answer or failure, lateness, ledger, asker)``. The lateness is how many seconds after 1.1 deadlines the
    question ended, by a clock that a busy machine slows down as much: a sleep in the same event loop."""

    async def timed(work):
        await asyncio.gather(work, return_exceptions=True)
        return time.monotonic()

    async def work():
        ledger = Ledger(Budget())
        asker = Asker(provider, ledger, manners)
        asking = asyncio.create_task(asker.ask(question))
        times = [asyncio.create_task(timed(asking))]
        if manners is FAST:
            times.append(asyncio.create_task(timed(asyncio.sleep(1.1 * manners.deadline))))
        ended = [await each for each in times]
        await provider.close()
        failure = asking.exception()
        return failure or asking.result(), ended[0] - ended[-1], ledger, asker

    return asyncio.run(work())


@pytest.mark.parametrize("behaviour", GOOD)
def test_an_answer_is_a_score(behaviour, config, words, hostile):
    settings, caller = config(behaviour)
    provider = make_provider(settings, words)
    left, right = questions(provider, words, 3)
    answer, *_ = ask(provider, left)
    assert answer.scores == pytest.approx((0.8 / 0.95,))
    assert (answer.prompt_tokens, answer.answer_tokens) == (50, 1)
    assert hostile.hits[caller] == GOOD[behaviour]
    assert ask(provider, right)[0].scores == pytest.approx((0.05 / 0.95,))


@pytest.mark.parametrize("behaviour", ALIKE)
def test_thoughts_parts_and_impossible_candidates_change_no_answer(behaviour, config, words, hostile):
    settings, caller = config(behaviour)
    provider = make_provider(settings, words)
    answer, *_ = ask(provider, questions(provider, words, 3)[0])
    assert answer.scores == pytest.approx((0.8 / 0.95,))
    assert "Infinity" not in answer.raw
    provider = make_provider(replace(settings, score="string_similarity"), words)
    assert ask(provider, questions(provider, words, 3)[0])[0].scores == (1.0,)
    assert hostile.hits[caller] == 2


@pytest.mark.parametrize(
    ("behaviour", "kind"),
    [
        ("error_within", "server_error"),
        ("error_as_text", "server_error"),
        ("error_in_choice", "server_error"),
        ("detail_within", "server_error"),
        ("busy_within", "rate_limited"),
        ("error_as_object", "refused_request"),
        ("no_model_within", "no_model"),
    ],
)
def test_an_error_with_status_200_is_shown(behaviour, kind, config, words):
    provider = make_provider(config(behaviour)[0], words)
    failure, *_ = ask(provider, questions(provider, words, 3)[0], replace(CALM, retries=0))
    assert failure.kind == kind
    assert "the GPU is on fire" in str(failure)


FIRE = "the GPU is on fire"


@pytest.mark.parametrize(
    "body",
    [
        {"errors": FIRE},
        {"errors": [FIRE]},
        {"errors": [{"message": FIRE}]},
        {"errors": {"message": FIRE}},
        [{"error": {"message": FIRE}}],
        [{"error": FIRE}],
        {"detail": [{"loc": ["body"], "msg": FIRE}]},
        {"detail": [FIRE]},
        {"message": None, "detail": FIRE},
    ],
)
def test_an_error_is_recognised_wherever_it_stands(body):
    error = error_within(body)
    assert error is not None and FIRE in refusal(status_within(error), error, {}, str).args[0]
    assert FIRE in refusal(500, body, {}, str).args[0]


@pytest.mark.parametrize("body", [None, [], {}, {"errors": []}, {"errors": None}, {"detail": []}, [1], {"data": [{}]}])
def test_what_is_no_error_is_none(body):
    assert error_within(body) is None


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("top_logprobs not supported", "no_logprobs"),
        ("Unsupported parameter: 'top_logprobs'", "no_logprobs"),
        ("logprobs is not supported", "no_logprobs"),
        ("top_logprobs must be at most 5", "refused_request"),
        ("top_logprobs=20 is not supported, the maximum is 5", "refused_request"),
    ],
)
def test_no_log_probabilities_are_told_from_too_many(message, kind):
    assert refusal(400, {"error": {"message": message}}, {}, str).kind == kind


def test_what_a_model_does_not_support_is_refused_once_and_then_asked_otherwise(config, words, hostile, caplog):
    settings, caller = config("newer", retries=0)
    provider = make_provider(settings, words)
    for requests in (3, 4):
        answer, _, ledger, _ = ask(provider, questions(provider, words, 3)[0])
        assert answer.scores == pytest.approx((0.8 / 0.95,))
        assert hostile.hits[caller] == requests
        assert ledger.counts()["requests"] == (3 if requests == 3 else 1)
    assert "max_completion_tokens from now on" in caplog.text


def test_questions_on_their_way_when_a_parameter_is_refused_are_all_answered(config, words, hostile):
    settings, caller = config("newer")
    table = fill(words, make_provider(settings, words), None, range(20), capacity=20, manners=CALM, concurrency=4)
    assert np.all(table.keys != 0xFFFFFFFF)
    assert 40 + 2 <= hostile.hits[caller] <= 40 + 2 * 8


def test_parameters_that_nobody_takes_are_each_given_up_once(config, words, hostile):
    settings, caller = config("strict", score="string_similarity")
    provider = make_provider(settings, words)
    failure, *_ = ask(provider, questions(provider, words, 3)[0])
    assert failure.kind == "refused_request"
    assert "max_completion_tokens" in str(failure)
    assert hostile.hits[caller] == 3


@pytest.mark.parametrize("behaviour", BAD)
def test_a_failure_is_explicit_and_without_the_key(behaviour, config, words, hostile, key):
    settings, caller = config(behaviour)
    provider = make_provider(settings, words)
    failure, _, ledger, asker = ask(provider, questions(provider, words, 3)[0])
    assert isinstance(failure, Unanswered)
    assert failure.kind in BAD[behaviour].split()
    attempts = 1 if failure.kind in FINAL + FATAL or behaviour == "busy_for_an_hour" else CALM.retries + 1
    assert hostile.hits[caller] == ledger.counts()["requests"] == attempts
    assert (asker.stopped is not None) == (failure.kind in FATAL)
    assert hostile.hits[f"{caller}-followed"] == 0
    assert key not in "".join(traceback.format_exception(failure))
    assert failure.__context__ is None  # which would hold the request, and the key in its headers


@pytest.mark.parametrize("behaviour", ["stall", "drip", "drip_headers"])
def test_the_deadline_holds_whatever_comes_or_does_not(behaviour, config, words, key):
    settings, _ = config(behaviour, deadline=DEADLINE)
    provider = make_provider(settings, words)
    failure, lateness, *_ = ask(provider, questions(provider, words, 3)[0], FAST)
    assert failure.kind == "timeout"
    assert lateness < 0.1
    assert key not in "".join(traceback.format_exception(failure))


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_nobody_at_the_address(words, config):
    provider = make_provider(config("ok", base_url=f"http://127.0.0.1:{free_port()}/v1")[0], words)
    failure, *_ = ask(provider, questions(provider, words, 3)[0])
    assert failure.kind == "unreachable"


def test_every_kind_of_failure_is_classified():
    kinds = {kind for row in BAD.values() for kind in row.split()}
    assert kinds <= {*PASSING, *FINAL, *FATAL}
    assert not {*PASSING} & {*FINAL} and not {*FINAL} & {*FATAL} and not {*PASSING} & {*FATAL}


# --- labelling --------------------------------------------------------------------------------------------------------


def test_labelling_asks_once_and_a_second_run_not_at_all(config, words, hostile, tmp_path):
    settings, caller = config("ok")
    tables = []
    for run in range(2):
        cache = open_cache(tmp_path / "answers.sqlite")
        tables.append(fill(words, make_provider(settings, words), cache, [5, 3, 3, 9], capacity=4, manners=CALM))
        cache.close()
        assert hostile.hits[caller] == 6, f"run {run}"
    assert tables[0].keys.tolist() == [3, 5, 9, 0xFFFFFFFF]
    np.testing.assert_array_equal(tables[0].scores, tables[1].scores)
    np.testing.assert_allclose(tables[0].scores[0], [0.8 / 0.95, 0.05 / 0.95], rtol=1e-6)


def test_answers_at_hand_are_there_at_once(config, words):
    settings, _ = config("ok")
    cache = open_cache(None)
    fill(words, make_provider(settings, words), cache, [1, 2], manners=CALM)
    labeller = make_labeller(make_provider(settings, words), words, cache, manners=CALM)
    labeller.ask({1: 1, 2: 5})
    assert set(labeller.collect()) == {1, 2}
    stats = labeller.stats()
    assert (stats["requests"], stats["cache_hits"], stats["pending"]) == (0, 4, 0)
    labeller.close()


@pytest.mark.parametrize("behaviour", [*sorted(BAD.keys() - {"busy_for_an_hour"}), "stall", "drip", "nobody"])
def test_nothing_bad_is_cached_and_failures_are_counted(behaviour, config, words):
    slow = behaviour in ("stall", "drip")
    nowhere = {"base_url": f"http://127.0.0.1:{free_port()}/v1"} if behaviour == "nobody" else {}
    settings, _ = config(behaviour, deadline=DEADLINE if slow else CALM.deadline, **nowhere)
    cache, manners = open_cache(None), FAST if slow else CALM
    labeller = make_labeller(make_provider(settings, words), words, cache, manners=manners)
    labeller.ask({7: 1})
    wait(lambda: not labeller.stats()["pending"])
    stats = labeller.stats()
    labeller.close()
    assert labeller.collect() == {}
    assert cache.size() == 0
    assert stats["failures"] > 0
    assert stats["answered"] == 0
    assert (stats["unparseable"] > 0) == (BAD.get(behaviour) in UNREADABLE)
    assert (stats["stopped"] > 0) == (labeller.problem() is not None)
    with pytest.raises(RuntimeError):
        fill(words, make_provider(settings, words), cache, [7], manners=manners)


def wait(done, seconds=200.0):
    ends = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_closing_does_not_wait_for_a_silent_server(config, words):
    labeller = make_labeller(make_provider(config("stall")[0], words), words, manners=replace(CALM, deadline=60.0))
    labeller.ask(dict.fromkeys(range(20), 1))
    wait(lambda: labeller.stats()["requests"] > 0)
    begun = time.monotonic()
    labeller.close()
    assert time.monotonic() - begun < 1.5
    labeller.ask({99: 1})  # after closing nothing happens, and nothing is raised
    labeller.close()


def test_a_budget_of_requests_is_exact(config, words, hostile):
    settings, caller = config("ok")
    provider = make_provider(settings, words)
    table = fill(words, provider, open_cache(None), range(20), budget=Budget(requests=10), manners=CALM)
    assert hostile.hits[caller] == 10
    assert 0 < np.sum(table.keys != 0xFFFFFFFF) <= 5


def test_a_budget_of_tokens_and_money_holds(config, words):
    for budget, prices in ((Budget(tokens=2000), (0.0, 0.0)), (Budget(cost=0.002), (1.0, 1.0))):
        settings, _ = config("ok", prompt_price=prices[0], answer_price=prices[1])
        labeller = make_labeller(make_provider(settings, words), words, open_cache(None), budget, manners=CALM)
        labeller.ask(dict.fromkeys(range(40), 1))
        wait(lambda labeller=labeller: labeller.stats()["stopped"] or not labeller.stats()["pending"])
        labeller.close()
        stats = labeller.stats()
        assert stats["stopped"]
        assert stats["failures"] == 0  # a spent budget is no failure
        assert 0 < stats["tokens"] <= 2000
        assert stats["cost"] == pytest.approx(stats["tokens"] * prices[0] / 1e6)


def test_a_rate_is_kept(config, words, hostile):
    settings, caller = config("ok")
    begun = time.monotonic()
    fill(words, make_provider(settings, words), None, [1, 2], manners=replace(CALM, requests_per_minute=600.0))
    assert time.monotonic() - begun >= 3 * 0.1
    assert hostile.hits[caller] == 4


def test_the_most_frequent_come_first(config, words):
    labeller = make_labeller(
        make_provider(config("ok")[0], words), words, manners=replace(CALM, requests_per_minute=1200.0), concurrency=2
    )
    labeller.ask({1: 1, 2: 9, 3: 5})
    order = []
    while len(order) < 3:
        order += labeller.collect()
        time.sleep(0.01)
    labeller.close()
    assert order == [2, 3, 1]


def test_a_dead_endpoint_is_left_alone_and_then_given_up(config, words, hostile):
    settings, caller = config("broken")
    manners = replace(CALM, retries=0, patience=3)
    with pytest.raises(RuntimeError, match="the endpoint failed"):
        fill(words, make_provider(settings, words), None, range(200), manners=manners)
    assert hostile.hits[caller] < 40


def test_noise_is_not_cached(config, words, hostile):
    settings, caller = config("ok")
    cache = open_cache(None)
    right = fill(words, make_provider(settings, words), cache, [1, 2], capacity=2, manners=CALM)
    wrong = fill(
        words, make_provider(replace(settings, adversarial=True), words), cache, [1, 2], capacity=2, manners=CALM
    )
    np.testing.assert_allclose(wrong.scores, 1.0 - right.scores, rtol=1e-6)
    assert hostile.hits[caller] == 4


@pytest.mark.parametrize("score", ["string_similarity", "embedding_similarity"])
def test_goals_are_one_question_about_all_events(score, config, words, hostile):
    settings, caller = config("goals", prompt="goals", score=score, embedding_model="letters", threshold=0.95)
    table = fill(words, make_provider(settings, words), None, [1], capacity=1, manners=CALM)
    assert hostile.hits[caller] == (1 if score == "string_similarity" else 2)
    assert table.scores[0, 0] >= 0.95
    assert table.scores[0, 1] < table.scores[0, 0]


def test_text_answers_serve_without_log_probabilities(config, words):
    settings, _ = config("no_logprobs", score="string_similarity")
    assert fill(words, make_provider(settings, words), None, [1], capacity=1, manners=CALM).scores.tolist() == [[1, 1]]


def test_an_answer_that_no_file_can_hold_is_kept_all_the_same(config, words, tmp_path):
    settings, _ = config("half_a_pair", score="string_similarity")
    cache = open_cache(tmp_path / "answers.sqlite")
    assert fill(words, make_provider(settings, words), cache, [1], capacity=1, manners=CALM).scores.tolist() == [[1, 1]]
    assert (cache.size(), cache.export(tmp_path / "a.jsonl"), cache.problems()) == (2, 2, 0)
    cache.close()
    assert open_cache(None).import_(tmp_path / "a.jsonl") == 2


# --- the key ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("behaviour", ["rejects", "echo", "ok", "redirect"])
def test_the_key_is_found_nowhere(behaviour, config, words, key, tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    settings, _ = config(behaviour, score="string_similarity")
    cache = open_cache(tmp_path / "answers.sqlite")
    labeller = make_labeller(make_provider(settings, words), words, cache, manners=CALM)
    labeller.ask({7: 1})
    wait(lambda: not labeller.stats()["pending"])
    labeller.close()
    said = probe(settings)
    cache.export(tmp_path / "export.jsonl")
    everything = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    cache.close()
    assert cache.size() == 0 or behaviour in ("echo", "ok")
    assert key.encode() not in everything
    printed = capfd.readouterr()
    for text in (caplog.text, str(labeller.problem()), str(said), printed.out, printed.err, repr(settings)):
        assert key not in text


def test_a_missing_key_is_an_error_and_a_key_over_plain_http_too(monkeypatch, words, key):
    settings = LLMConfig(provider="openai", model="m")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ValueError, match="export OPENAI_API_KEY"):
        make_provider(settings, words)
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(ValueError, match="plain http") as error:
        make_provider(replace(settings, base_url="http://example.org/v1"), words)
    assert key not in str(error.value)


# --- the way there ----------------------------------------------------------------------------------------------------

REMOTE = "https://api.example.org/v1"


@pytest.fixture
def surroundings(monkeypatch):
    """``(**variables)`` sets environment variables; no other proxy or certificates are named."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setitem(sys.modules, "socksio", None)  # as where it is not installed

    def put(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))

    return put


PROXIES = (
    "socks5://u:secret@127.0.0.1:1",
    "http://u:secret@127.0.0.1:1",
    "gopher://127.0.0.1:1",
    "http://secret:port",
    ":::",
)


@pytest.mark.parametrize("proxy", PROXIES)
@pytest.mark.parametrize("variable", ["ALL_PROXY", "http_proxy"])
def test_a_server_on_this_machine_is_asked_without_a_proxy(variable, proxy, config, words, surroundings):
    surroundings(**{variable: proxy})
    provider = make_provider(config("ok")[0], words)
    assert ask(provider, questions(provider, words, 3)[0])[0].scores == pytest.approx((0.8 / 0.95,))


@pytest.mark.parametrize("proxy", PROXIES)
def test_a_proxy_is_used_or_the_error_names_its_variable(proxy, config, words, surroundings):
    settings, _ = config("ok", base_url=REMOTE)
    surroundings(ALL_PROXY=proxy)
    if proxy.startswith("http://u"):
        make_provider(settings, words)
        assert find_proxy(REMOTE) == (proxy, "ALL_PROXY")
    else:
        with pytest.raises(ValueError, match="ALL_PROXY names") as error:
            make_provider(settings, words)
        assert ("pip install socksio" in str(error.value)) == proxy.startswith("socks5")
        assert "secret" not in "".join(traceback.format_exception(error.value))
        assert str(error.value) == probe(settings).message
    for exempt in ("api.example.org", "localhost,.example.org", "*"):
        surroundings(NO_PROXY=exempt)
        make_provider(settings, words)


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
@pytest.mark.parametrize("content", [None, "no certificate"])
def test_certificates_that_cannot_be_read_are_named(variable, content, config, words, surroundings, tmp_path):
    path = tmp_path / "certificates"
    if content is not None:
        path.write_text(content)
    surroundings(**{variable: path})
    with pytest.raises(ValueError, match=rf"{variable} must name .*, got '{path}'"):
        make_provider(config("ok", base_url=REMOTE)[0], words)
    provider = make_provider(config("ok")[0], words)  # where nothing is encrypted they do not matter
    assert ask(provider, questions(provider, words, 3)[0])[0].scores == pytest.approx((0.8 / 0.95,))


# --- the probe --------------------------------------------------------------------------------------------------------

PROBES = {
    "ok": "answers in",
    "newer": "answers in",
    "reasoning": "answers in",
    "null_candidate": "answers in",
    "cut_off_apart": "+llm.extra.reasoning_effort=none",
    "cut_off_in_text": "+llm.extra.max_tokens=2000",
    "keeps_logprobs": "llm.score=string_similarity",
    "nan_logprob": "llm.score=string_similarity",
    "few_candidates": "llm.top_logprobs=5",
    "error_within": "the GPU is on fire",
    "no_logprobs": "llm.score=string_similarity",
    "rejects": "environment variable OPENAI_API_KEY",
    "html": "<html>login</html>; this is no OpenAI-compatible endpoint: does llm.base_url end in /v1",
    "stall": "raise llm.deadline",
    "hang_up": "is the server running",
    "redirect": "redirects",
    "chatter": "follows instructions",
    "busy": "asks to wait",
}


@pytest.mark.parametrize("behaviour", PROBES)
def test_the_probe_says_what_is_wrong(behaviour, config):
    found = probe(config(behaviour, deadline=DEADLINE if behaviour == "stall" else CALM.deadline)[0])
    assert found.ok == (PROBES[behaviour] == "answers in")
    assert PROBES[behaviour] in found.message
    assert "\n" not in found.message


def test_the_probe_names_near_models(config):
    found = probe(replace(config("ok")[0], model="lama3.1"))
    assert not found.ok
    assert "nearest models there: llama3.1:8b" in found.message
