"""Where a model's thoughts end and its answer begins, in the ways in which servers write that."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate

_TAGS = r"(?:[\w-]+:)?(?:think|thinking|thought|reasoning)"
_BEGINS = re.compile(rf"\s*(?:<{_TAGS}>|\[THINK\]|\u25c1think\u25b7|<\|channel\|>analysis)", re.IGNORECASE)
_ENDS = re.compile(rf"</{_TAGS}>|\[/THINK\]|\u25c1/think\u25b7|<\|channel\|>final<\|message\|>", re.IGNORECASE)


def answer_begins(text: str) -> int | None:
    """Index of the first letter after the thoughts: 0 for a text without thoughts, None where they have no end.

    The mark of their beginning may be missing: some servers put it into the prompt.
    """
    end = max((match.end() for match in _ENDS.finditer(text)), default=0)
    return None if end == 0 and _BEGINS.match(text) else end


def answer_token(chosen: Sequence[str], answer: str, thought: bool) -> int:
    """Index of the token with which the answer begins; the number of tokens where none of them belongs to it.

    Args:
        chosen: all tokens that came, thoughts included.
        answer: the text after the thoughts.
        thought: whether there were thoughts, though perhaps not among the tokens.
    """
    said = "".join(chosen)
    begins = answer_begins(said) or 0
    if thought and not begins:
        begins = said.rfind(answer.strip())
    if begins < 0:
        return len(chosen)
    ends = list(accumulate(map(len, chosen)))
    # A token may hold the mark's last letters and an empty line after them: the answer is not in it.
    starts = (end - len(token) for end, token in zip(ends, chosen, strict=True))
    spans = enumerate(zip(starts, ends, strict=True))
    holds = (i for i, (start, end) in spans if end > begins and (start >= begins or said[begins:end].strip()))
    return next(holds, len(chosen))
