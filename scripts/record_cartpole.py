"""Writes the recorded answers about CartPole that come with the library; no model is called.

    python scripts/record_cartpole.py

Each answer is the probability of "yes" to "should the agent push ...?" that the hand-made rules of CartPole's captioner
give (``llmrl.envs.captions``): sure where the pole falls, vague in the middle. Change the rules or the words there, and
write the file anew; a test compares the two.
"""

from __future__ import annotations

import json
from pathlib import Path

from llmrl.envs.captions import cartpole

PATH = Path(__file__).resolve().parent.parent / "llmrl" / "language" / "answers" / "handmade" / "cartpole.jsonl"

HEADER = {
    "format": "llmrl-answers",
    "version": 1,
    "source": "hand-made rules (python scripts/record_cartpole.py); no model was called",
}


def lines() -> list[str]:
    """The header, and a line for each state in words."""
    captioner = cartpole()
    assert captioner.keys is not None and captioner.oracle is not None
    keys, events = captioner.keys(), captioner.events
    rows = [
        {
            "state": captioner.describe(key),
            "events": list(events),
            "scores": [captioner.oracle(key, event) for event in range(len(events))],
        }
        for key in keys
    ]
    return [json.dumps(row) for row in (HEADER, *rows)]


if __name__ == "__main__":
    PATH.write_text("\n".join(lines()) + "\n")
    print(PATH)
