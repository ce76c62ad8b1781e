"""One question before a long run: does the endpoint do what will be asked of it? The answer is in plain words."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple, TypeVar

from llmrl.language.prompts import load_prompt, render
from llmrl.language.providers.local import local
from llmrl.language.providers.openai import Endpoint, Sender, connect, make_sender, request_parameters
from llmrl.language.question import Provider, Question, Unanswered
from llmrl.language.scoring import probability_of_yes, read_completion, unwrapped
from llmrl.language.secrets import read_key
from llmrl.settings.config import LLMConfig
from llmrl.settings.validation import validate_llm

_T = TypeVar("_T")


class Probe(NamedTuple):
    """What one question showed.

    Attributes:
        ok: whether labelling can begin.
        message: what is wrong and what helps, or how it went.
        seconds: the question's own time.
    """

    ok: bool
    message: str
    seconds: float = 0.0


def probe(config: LLMConfig) -> Probe:
    """Asks an endpoint one question, once, without cache or retries.

    Args:
        config: the settings; providers other than ``openai`` and ``local`` need no probe.
    """
    if config.provider not in ("openai", "local"):
        return Probe(True, f"llm.provider={config.provider} sends no request")
    try:
        validate_llm(config)
        prompt = load_prompt(config.prompt)
        phrases = ("walk through the door", "close the door")[: 1 if prompt.inquiry_kind == "yes_no" else 2]
        system, user = render(prompt, "The agent is to leave the house.", "The door is open.", phrases)
        if config.provider == "local":
            question = Question(0, tuple(range(len(phrases))), "", phrases, system=system, user=user)
            return in_a_thread(_ask_a_child(config, local(config), question))
        endpoint = connect(config.base_url, read_key(config.key_variable, config.base_url), config.deadline)
    except (ValueError, OSError) as error:
        return Probe(False, str(error))
    return in_a_thread(_ask(config, endpoint, make_sender(endpoint, request_parameters(config, prompt)), system, user))


async def _ask_a_child(config: LLMConfig, provider: Provider, question: Question) -> Probe:
    """One question to a server that starts for it and ends after it."""
    assert provider.answer is not None
    begun = time.monotonic()
    try:
        async with asyncio.timeout(config.deadline):
            scores = (await provider.answer(question)).scores
        seconds = time.monotonic() - begun
        shown = ", ".join(f"{score:.2f}" for score in scores)
        return Probe(True, f"{config.model} answers in {seconds:.1f} s, its loading included (score {shown})", seconds)
    except TimeoutError:
        failure = Unanswered("timeout", f"no answer within {config.deadline:g} s")
    except Unanswered as error:
        failure = error
    finally:
        await provider.close()
    return Probe(False, explain(failure, config, "llm=local"), time.monotonic() - begun)


async def _ask(config: LLMConfig, endpoint: Endpoint, send: Sender, system: str, user: str) -> Probe:
    try:
        return await _ask_once(config, endpoint, _until_accepted(send, system, user))
    finally:
        await endpoint.close()


async def _until_accepted(send: Sender, system: str, user: str) -> Any:
    while True:
        try:
            return await send(system, user)
        except Unanswered as failure:
            if failure.kind != "adapted":
                raise


async def _ask_once(config: LLMConfig, endpoint: Endpoint, answer: Coroutine[Any, Any, Any]) -> Probe:
    begun = time.monotonic()
    where = f"{config.model} at {config.base_url}"
    try:
        async with asyncio.timeout(config.deadline):
            completion = read_completion(await answer, config.score == "token_probability")
        seconds = time.monotonic() - begun
        if config.score == "token_probability":
            score = probability_of_yes(unwrapped(completion))
            return Probe(True, f"{where} answers in {seconds:.1f} s (P(yes) = {score:.2f})", seconds)
        return Probe(True, f"{where} answers in {seconds:.1f} s: {completion.text[:60]!r}", seconds)
    except TimeoutError:
        failure = Unanswered("timeout", f"no answer within {config.deadline:g} s")
    except Unanswered as error:
        failure = error
    models = await _models(endpoint, config.deadline) if failure.kind == "no_model" else []
    return Probe(False, explain(failure, config, where, models), time.monotonic() - begun)


async def _models(endpoint: Endpoint, deadline: float) -> list[str]:
    """Names of models that the endpoint knows; none if it does not say."""
    try:
        async with asyncio.timeout(deadline):
            body = await endpoint.models()
    except (Unanswered, TimeoutError):
        return []
    data = body.get("data") if isinstance(body, dict) else None
    entries = data if isinstance(data, list) else []
    names = [entry.get("id") for entry in entries if isinstance(entry, dict)]
    return [name[:100] for name in names if isinstance(name, str)]


def explain(failure: Unanswered, config: LLMConfig, where: str, models: Sequence[str] = ()) -> str:
    """Why an endpoint has not answered, and what helps.

    Args:
        failure: what it said.
        config: how it was asked.
        where: the model and its address.
        models: names that it knows.
    """
    advice = {
        "unreachable": "nothing answers there: is the server running, and llm.base_url right?",
        "timeout": "the server accepts questions but is too slow: raise llm.deadline, or choose a smaller model",
        "rejected_key": f"check the key in the environment variable {config.key_variable}"
        if config.key_variable
        else "the endpoint wants a key: put it into an environment variable and name that with llm.key_variable",
        "no_model": _near(config.model, models),
        "no_logprobs": "this endpoint gives no log-probabilities (Ollama does from 0.12.11 on; vLLM and llama.cpp's "
        "server do): choose llm.score=string_similarity, or another server",
        "only_thoughts": "turn its thinking off, as with +llm.extra.reasoning_effort=none (vLLM: "
        "+llm.extra.chat_template_kwargs.enable_thinking=false), or leave room for it: +llm.extra.max_tokens=2000",
        "refused_request": "some servers give fewer candidates: llm.top_logprobs=5"
        if "top_logprobs" in str(failure)
        else "",
        "unparseable": "the model says neither yes nor no: choose one that follows instructions",
        "refused": "the model refuses to answer: choose another one",
        "malformed": "this is no OpenAI-compatible endpoint: does llm.base_url end in /v1?",
        "redirected": "",
    }.get(failure.kind, "")
    return f"{where}: {failure}" + (f"; {advice}" if advice else "")


def _near(model: str, models: Sequence[str]) -> str:
    if not models:
        return "does llm.base_url end in /v1, and llm.model name a model that is there?"
    close = get_close_matches(model, models, n=3, cutoff=0.4)
    if close:
        return "nearest models there: " + ", ".join(close)
    return "models there: " + ", ".join(models[:10])


def in_a_thread(work: Coroutine[Any, Any, _T]) -> _T:
    """Runs a coroutine to its end, in a notebook too, whose own event loop is running already."""
    results: list[_T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(asyncio.run(work))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="llmrl-probe", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
