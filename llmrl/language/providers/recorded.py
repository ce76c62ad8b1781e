"""Answers from a file, see ``llmrl.language.lines``: a run without a network, a key or a cost."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from llmrl.language.lines import is_score, read_lines
from llmrl.language.prompts import CONTEXT_LIMIT, PHRASE_LIMIT, STATE_LIMIT, clean
from llmrl.language.question import Answer, Provider, Question, Unanswered
from llmrl.settings.errors import BadValue, unknown

SHIPPED = Path(__file__).resolve().parent.parent / "answers"
"""Files of answers that come with the library: a folder for who has given them, a file in it for each environment."""


def recorded(path: str | Path, environment: str = "") -> Provider:
    """A provider that looks answers up; it opens no connection of any kind.

    Args:
        path: the file, or who has given answers that are shipped.
        environment: what shipped answers are about.

    Raises:
        ValueError: there is no such file, or a line of it is wrong; the message names the line.
    """
    path = find(path, environment)
    scores: dict[tuple[str | None, str, str], float] = {}
    for number, row in read_lines(path):
        context, state, each = _read(row, f"{path}:{number}")
        scores |= {(context, state, phrase): score for phrase, score in each}

    def answer_now(question: Question) -> Answer:
        found = []
        for phrase in question.phrases:
            score = scores.get((question.context, question.state, phrase))
            score = scores.get((None, question.state, phrase)) if score is None else score
            if score is None:
                raise Unanswered(
                    "unknown_state", f"{path.name} has no answer about {phrase!r} in the state {question.state!r}"
                )
            found.append(score)
        return Answer(tuple(found), json.dumps(found))

    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return Provider(identity=f"recorded:{path.name}:{digest}", answer_now=answer_now)


def find(path: str | Path, environment: str = "") -> Path:
    """A file of answers by its path, or one that is shipped by who has given them and the environment."""
    if Path(path).is_file():
        return Path(path)
    shipped = {(file.parent.name, file.stem): file for file in sorted(SHIPPED.glob("*/*.jsonl"))}
    given = dict.fromkeys(who for who, _ in shipped)
    if str(path) not in given:
        raise unknown("file of recorded answers", str(path), given)
    if (str(path), environment) not in shipped:
        known = [name for who, name in shipped if who == str(path)]
        raise unknown(f"environment of the answers {str(path)!r}", environment, known)
    return shipped[str(path), environment]


def _read(row: dict[str, Any], where: str) -> tuple[str | None, str, list[tuple[str, float]]]:
    state, context = row.get("state"), row.get("context")
    phrases = row.get("events", [row.get("event")])
    scores = row.get("scores", [row.get("score")])
    if not isinstance(state, str) or not (context is None or isinstance(context, str)):
        raise BadValue(f"{where}: state must be text, and context too where there is one")
    if not isinstance(phrases, list) or not phrases or not all(isinstance(phrase, str) for phrase in phrases):
        raise BadValue(f"{where}: event must be text, or events a list of texts")
    if not isinstance(scores, list) or len(scores) != len(phrases) or not all(map(is_score, scores)):
        raise BadValue(f"{where}: needs a score in [0, 1] per event")
    words = [clean(phrase, PHRASE_LIMIT) for phrase in phrases]
    told = None if context is None else clean(context, CONTEXT_LIMIT, keep_lines=True)
    return told, clean(state, STATE_LIMIT), list(zip(words, map(float, scores), strict=True))
