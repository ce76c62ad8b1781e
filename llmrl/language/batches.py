"""Batches: questions as lines of a file that OpenAI's and vLLM's batch runners answer, and the lines of results."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from llmrl.language.cache import Cache, cache_key
from llmrl.language.labeller import fill
from llmrl.language.probe import in_a_thread
from llmrl.language.providers.openai import messages
from llmrl.language.providers.refusals import error_within, refusal, status_within
from llmrl.language.question import FINAL, UNREADABLE, Answer, Captioner, Provider, Question, Unanswered, questions
from llmrl.language.table import Table
from llmrl.settings.errors import BadValue, CannotRun, brief

Outcome: TypeAlias = Answer | Unanswered
"""What became of a question."""


def custom_id(provider: Provider, question: Question) -> str:
    """A question's name in a batch: the prompt and its version, and a digest of all that decides the answer. It has at
    most 64 letters for the prompts that are shipped."""
    return f"{question.prompt}:{cache_key(provider, question)[:32]}"


def requests(provider: Provider, captioner: Captioner, cache: Cache, keys: Sequence[int]) -> list[dict[str, Any]]:
    """The lines of a batch: a request for each question that the cache cannot answer.

    Args:
        provider: who would be asked.
        captioner: the environment's words.
        cache: answers given before.
        keys: states to ask about.
    """
    return [
        {
            "custom_id": name,
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {**provider.parameters, "messages": messages(question.system, question.user)},
        }
        for name, question in _named(provider, captioner, keys).items()
        if cache.get(provider, question) is None
    ]


def fill_from(
    path: Path, captioner: Captioner, provider: Provider, cache: Cache, keys: Sequence[int], neutral: float
) -> tuple[Table, str]:
    """Reads a batch's results into the cache, and the states' answers from there, as if they had been asked live.

    A state whose question failed for a passing reason, or has no line, stays without an answer.

    Args:
        path: the results, JSON lines in any order.
        captioner: the environment's words.
        provider: who would have been asked.
        cache: answers given before; those of the results are added.
        keys: states that were asked about.
        neutral: as for ``make_labeller``.

    Returns:
        The answers, and how many questions have one and why the others have none, in one line.

    Raises:
        ValueError: a line is no result of a question about these states; the message names the line.
        RuntimeError: no answer can be used.
    """
    asked = _named(provider, captioner, keys)
    found = in_a_thread(_read(provider, asked, _lines(path, provider, asked)))
    for name, outcome in found.items():
        if isinstance(outcome, Answer):
            cache.put(provider, asked[name], outcome)
    missing = Unanswered("unreachable", "the results have no line for it")
    outcomes = {name: cache.get(provider, asked[name]) or found.get(name, missing) for name in asked}
    summary = _summary(outcomes.values(), missing)
    if not any(isinstance(outcome, Answer) for outcome in outcomes.values()):
        raise CannotRun(f"{path}: {summary}")

    def outcome_of(question: Question) -> Outcome:
        return outcomes[custom_id(provider, question)]

    def answer_now(question: Question) -> Answer:
        outcome = outcome_of(question)
        if isinstance(outcome, Unanswered):
            raise outcome
        return outcome

    settled = [key for key in keys if all(_is_final(outcome_of(each)) for each in questions(provider, captioner, key))]
    at_once = provider._replace(answer=None, answer_now=answer_now)
    return fill(captioner, at_once, None, settled, capacity=len(keys), neutral=neutral), summary


def _named(provider: Provider, captioner: Captioner, keys: Sequence[int]) -> dict[str, Question]:
    """The questions about some states by their names; states of the same words share theirs."""
    return {custom_id(provider, each): each for key in keys for each in questions(provider, captioner, key)}


def _lines(path: Path, provider: Provider, asked: Mapping[str, Question]) -> dict[str, dict[str, Any]]:
    """The results by their questions' names; of several lines about a question the last one counts."""
    rows: dict[str, dict[str, Any]] = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                row = _row(line, f"{path}:{number}")
                if row["custom_id"] not in asked:
                    raise _stranger(row["custom_id"], provider, f"{path}:{number}")
                rows[row["custom_id"]] = row
    return rows


def _row(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict) or not isinstance(row.get("custom_id"), str):
        raise BadValue(f"{where}: no result of a batch, which is a JSON object with a custom_id")
    return row


def _stranger(name: str, provider: Provider, where: str) -> BadValue:
    prompt = name.rpartition(":")[0]
    if prompt.count(":") == 2 and prompt != provider.prompt_identity:
        return BadValue(
            f"{where}: was asked with the prompt {brief(prompt)}, and today's is {provider.prompt_identity}: "
            "write the questions anew with questions=..., or choose the prompt with llm.prompt=..."
        )
    return BadValue(
        f"{where}: the custom_id {brief(name)!r} is of no question that these settings ask: give the same env, "
        "captioner, llm, limit, steps and seed as for questions=..."
    )


async def _read(
    provider: Provider, asked: Mapping[str, Question], rows: Mapping[str, Mapping[str, Any]]
) -> dict[str, Outcome]:
    try:
        return {name: await _outcome(provider, asked[name], row) for name, row in rows.items()}
    finally:
        await provider.close()


async def _outcome(provider: Provider, question: Question, row: Mapping[str, Any]) -> Outcome:
    assert provider.read is not None
    try:
        return await provider.read(_body(row), question)
    except Unanswered as failure:
        return failure


def _body(row: Mapping[str, Any]) -> Any:
    """The chat completion of a result.

    Raises:
        Unanswered: it is an error.
    """
    response = row.get("response")
    response = response if isinstance(response, dict) else {}
    body, status = response.get("body"), response.get("status_code")
    error = row.get("error") or error_within(body)
    if not error and status in (None, 200):
        return body
    said: Any = error or body
    failed = status if isinstance(status, int) and status != 200 else status_within(said)
    raise refusal(failed, said, {}, str)


def _is_final(outcome: Outcome) -> bool:
    return isinstance(outcome, Answer) or outcome.kind in FINAL


def _summary(outcomes: Collection[Outcome], missing: Unanswered) -> str:
    failures = [outcome for outcome in outcomes if isinstance(outcome, Unanswered)]
    kinds = Counter(_kind(failure, missing) for failure in failures)
    why = "".join(f", {count:,} {kind}" for kind, count in kinds.items())
    reason = next((f" (the first reason: {failure})" for failure in failures if failure is not missing), "")
    return f"{len(outcomes) - len(failures):,} of {len(outcomes):,} questions are answered{why}{reason}"


def _kind(failure: Unanswered, missing: Unanswered) -> str:
    if failure is missing:
        return "without a line"
    if failure.kind == "refused":
        return "refused"
    return "unreadable" if failure.kind in UNREADABLE else "failed"
