"""A stand-in for an environment's words, and a server on this machine that does everything wrong that servers do."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

import pytest

KEY = "sk-test-0123456789abcdefSECRET"


@pytest.fixture
def words():
    """A captioner of two events."""
    from llmrl.types import Captioner  # here, after the hook that checks types

    events = "push the cart to the left", "push the cart to the right"
    return Captioner(events, lambda key: f"the pole leans by {key} degrees", "Balance a pole on a cart.")


@pytest.fixture(scope="session")
def key():
    return KEY


def completion(text="Yes", chosen=0.8, other=0.15, **changes):
    """A chat completion as a well-behaved server sends it."""
    from math import log

    first = {"token": text, "logprob": log(chosen)}
    opposite = " yes" if text == "No" else " no"
    top = [first, {"token": opposite, "logprob": log(other)}, {"token": "the", "logprob": log(0.01)}]
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "logprobs": {"content": [{**first, "top_logprobs": top}]},
        "finish_reason": "stop",
    }
    return {"choices": [choice | changes], "usage": {"prompt_tokens": 50, "completion_tokens": 1}}


def position(*candidates):
    """The log-probabilities at one position, of (token, probability) pairs, the chosen one first; None is none."""
    from math import log

    rows = [
        {"token": token, "logprob": None if p is None else log(p) if p else -float("inf")} for token, p in candidates
    ]
    return {**rows[0], "top_logprobs": rows}


def spoken(content, *positions, reason="stop", **message):
    """A completion by its content, its positions and what else the message holds."""
    said = {"role": "assistant", "content": content} | message
    return completion(message=said, logprobs={"content": list(positions)}, finish_reason=reason)


DECISION = position(("Yes", 0.8), (" no", 0.15), ("the", 0.01))
THOUGHTS = [position((token, 0.99), ("Yes", 0.01)) for token in ("No", ", Yes", ", No", ".")]
LINES = position(("\n\n", 0.99), ("Yes", 0.01))


def marks(*tokens):
    return [position((token, 1.0)) for token in tokens]


CHANNELS = marks(
    *("<|channel|>", "analysis", "<|message|>", "No", "<|end|>"),
    *("<|start|>", "assistant", "<|channel|>", "final", "<|message|>"),
)

ANSWERS = {
    # the same answer, Yes with 0.8 and no with 0.15, as servers of models that think write it
    "thoughts_in_text": spoken(
        "<think>No, Yes, No.</think>\n\nYes", *marks("<think>"), *THOUGHTS, *marks("</think>"), LINES, DECISION
    ),
    "thoughts_without_beginning": spoken("No, Yes, No.</think>Yes", *THOUGHTS, *marks("</", "think", ">"), DECISION),
    "marks_not_among_tokens": spoken("<think>No, Yes, No.</think>Yes", *THOUGHTS, LINES, DECISION),
    "thoughts_in_brackets": spoken("[THINK]No[/THINK]Yes", *marks("[THINK]", "No", "[/THINK]"), DECISION),
    "thoughts_in_channels": spoken("Yes", *CHANNELS, DECISION, reasoning="No"),
    "reasoning": spoken("Yes", *THOUGHTS, DECISION, *marks("<|im_end|>"), reasoning="No, Yes, No."),
    "reasoning_content": spoken("\n\nYes", *THOUGHTS, LINES, DECISION, reasoning_content="No, Yes, No."),
    "reasoning_without_its_tokens": spoken("Yes", DECISION, reasoning="No, Yes, No."),
    "long_thoughts": spoken("Yes", *THOUGHTS * 40, DECISION, reasoning="No, Yes, No." * 40),
    # with something around it
    "fenced": spoken("```json\nYes\n```", *marks("```", "json", "\n"), DECISION, *marks("\n", "```")),
    "in_json": spoken('{"answer": "Yes"}', *marks('{"', "answer", '":', ' "'), DECISION, *marks('"}')),
    # in parts
    "parts": spoken([{"type": "text", "text": "Ye"}, {"type": "text", "text": "s"}], DECISION),
    "parts_with_thoughts": spoken(
        [{"type": "thinking", "thinking": [{"type": "text", "text": "No"}]}, {"type": "text", "text": "Yes"}], DECISION
    ),
    # candidates without a probability
    "null_candidate": spoken("Yes", position(("Yes", 0.8), (" no", 0.15), ("maybe", None))),
    "impossible_candidate": spoken("Yes", position(("Yes", 0.8), (" no", 0.15), ("maybe", 0.0))),
    # no answer
    "cut_off_in_text": spoken("<think>\nOkay, the", *marks("<think>", "\n", "Okay"), reason="length"),
    "cut_off_apart": spoken(None, *THOUGHTS, reason="length", reasoning="No, Yes, No."),
    "cut_off_unseen": spoken("", reason="length"),
    "thoughts_alone": spoken("<think>Yes</think>\n", *marks("<think>", "Yes", "</think>", "\n")),
    "declines": spoken(None, refusal="I cannot help with that"),
    "filtered": spoken("", reason="content_filter"),
    "nothing_likely": spoken("Yes", position(("Yes", None), ("No", 0.0))),
    # errors with status 200
    "error_within": {"error": {"message": "the GPU is on fire"}},
    "error_as_text": {"error": "the GPU is on fire", "choices": None},
    "busy_within": {"error": {"message": "the GPU is on fire", "code": 429}},
    "error_in_choice": {"choices": [{"error": {"message": "the GPU is on fire", "code": 502}, "message": None}]},
    "error_as_object": {"object": "error", "message": "the GPU\nis on fire", "type": "BadRequestError", "code": 400},
    "detail_within": {"detail": "the GPU is on fire"},
    "no_model_within": {"error": {"message": "the GPU is on fire", "code": "model_not_found"}},
}
"""Behaviours that answer everything alike, by name."""


def _block(*functions):
    written = (f'def {name}(state, action, next_state):\n    """Pays."""\n    {line}\n' for name, line in functions)
    return "```python\n" + "\n\n".join(written) + "```"


FIRST = "<think>Let me see.</think>Here they are:\n" + _block(
    ("leans", "return state.theta"),
    ("fetches", "import os"),
    ("falls", "return jnp.log(0.0 * state.theta)"),
)
SECOND = _block(("leans", "return 1.0"), ("slow", "return -jnp.abs(next_state.theta_dot)"), ("more", "return 1.0"))
"""What ``writes`` answers about the CartPole."""


class Hostile(BaseHTTPRequestHandler):
    """``/<behaviour>/<caller>/v1/...``: each behaviour a method of this name, or one of ``ANSWERS``."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.sent = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self._behave()

    def do_GET(self):
        self._behave()

    def _behave(self):
        _, behaviour, caller, *rest = self.path.split("/")
        with self.server.lock:
            self.server.hits[caller] += 1
            self.nth = self.server.hits[caller]
        self.caller, self.asked = caller, rest[-1]
        try:
            self.reply(ANSWERS[behaviour]) if behaviour in ANSWERS else getattr(self, behaviour)()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def log_message(self, *_):
        pass

    def reply(self, body, status=200, kind="application/json", **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    # --- good manners

    def ok(self):
        if self.asked == "models":
            return self.reply({"data": [{"id": "llama3.1:8b"}, {"id": "qwen2.5"}]})
        if self.asked == "embeddings":
            letters = [[float(text.count(letter)) for letter in "abcdefghijkl"] for text in self.sent["input"]]
            rows = [{"index": index, "embedding": row} for index, row in enumerate(letters)]
            return self.reply({"data": rows[::-1]})
        if self.sent["model"] == "lama3.1":
            return self.reply({"error": {"message": "model not found", "code": "model_not_found"}}, 404)
        left = "the left now" in self.sent["messages"][1]["content"]
        return self.reply(completion(*(("Yes", 0.8, 0.15) if left else ("No", 0.9, 0.05))))

    def newer(self):
        """A model that knows newer names of parameters, and one temperature."""
        for name, code, why in (
            ("max_tokens", "unsupported_parameter", "is not supported with this model. Use 'max_completion_tokens'"),
            ("temperature", "unsupported_value", "does not support 0.0 with this model. Only the default is supported"),
        ):
            if name in self.sent:
                message = f"Unsupported: '{name}' {why} instead."
                return self.reply({"error": {"message": message, "param": name, "code": code}}, 400)
        return self.ok() if self.sent.get("max_completion_tokens") == 4 else self.broken()

    def strict(self):
        """A server that checks its input, and knows no parameter that others have."""
        extra = [name for name in self.sent if name not in ("model", "messages")]
        found = [{"type": "extra_forbidden", "loc": ["body", name], "msg": "Not permitted"} for name in extra]
        return self.reply({"detail": found}, 422)

    def too_long(self):
        message = "'max_tokens' is too large: 4. The context length is 2048 tokens, and you sent 2046."
        return self.reply({"error": {"message": message, "code": 400}}, 400)

    def keeps_logprobs(self):
        return self.reply({"error": {"message": "You are not allowed to request logprobs from this model"}}, 403)

    def few_candidates(self):
        return self.reply({"error": {"message": "top_logprobs must be at most 5"}}, 400)

    def goals(self):
        if self.asked == "embeddings":
            return self.ok()
        return self.reply(completion("Well:\n- Push the cart to the left.\n* dance\n"))

    def writes(self):
        """One function that is right and two that are not; the next time another one, if the reasons were sent."""
        asked = self.sent["messages"][1]["content"]
        told = "fetches: line 8: an import is not allowed" in asked and "Write 1 functions more" in asked
        return self.reply(completion(message={"role": "assistant", "content": SECOND if told else FIRST}))

    def sours(self):
        """Answers twenty questions, and then nothing but a login page."""
        return self.ok() if self.nth <= 20 else self.html()

    # --- passing failures

    def busy_once(self):
        return self.reply({"error": "busy"}, 429, retry_after="0.05") if self.nth == 1 else self.ok()

    def busy_until_a_date(self):
        date = formatdate(time.time() - 1, usegmt=True)
        return self.reply({"error": "busy"}, 429, retry_after=date) if self.nth == 1 else self.ok()

    def busy(self):
        self.reply({"error": {"message": "busy"}}, 429)

    def busy_for_an_hour(self):
        self.reply({"error": {"message": "busy"}}, 429, retry_after="3600")

    def busy_for_nonsense(self):
        self.reply({"error": {"message": "busy"}}, 429, retry_after="nan")

    def broken(self):
        self.reply(b"oh no", 500, "text/plain")

    def html(self):
        self.reply(b"<html>login</html>", kind="text/html")

    def no_json(self):
        self.reply(b"{ this is no json")

    def wrong_shape(self):
        self.reply({"hello": [1, 2]})

    def a_list(self):
        self.reply([1, 2])

    def empty_choices(self):
        self.reply({"choices": []})

    def no_message(self):
        self.reply({"choices": [{"message": "yes"}]})

    def nan_logprob(self):
        self.reply(json.dumps(completion()).replace("-0.22", "NaN ,-0.22").replace("NaN ,", 'NaN, "x": ').encode())

    def string_logprob(self):
        self.reply(completion(logprobs={"content": [{"token": "yes", "logprob": "-0.1"}]}))

    def positive_logprob(self):
        self.reply(completion(logprobs={"content": [{"token": "yes", "logprob": 3.0}]}))

    def infinite_logprob(self):
        self.reply(completion(logprobs={"content": [{"token": "yes", "logprob": float("-inf")}]}))

    def huge(self):
        self.reply(b'"' + b"x" * 6_000_000 + b'"')

    def deep(self):
        self.reply(b"[" * 200_000)

    def stall(self):
        self.server.over.wait(20)

    def drip(self):
        body = json.dumps(completion()).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self._slowly(body)

    def drip_headers(self):
        self._slowly(b"HTTP/1.1 200 OK\r\n" + b"x-filler: 1\r\n" * 1000)

    def _slowly(self, data):
        for byte in data:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            if self.server.over.wait(0.02):
                return

    def half(self):
        self.send_response(200)
        self.send_header("content-length", "1000")
        self.end_headers()
        self.wfile.write(b'{"choices": [')
        self.close_connection = True

    def hang_up(self):
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    # --- answers of no use

    def no_logprobs(self):
        self.reply(completion(logprobs=None))

    def chatter(self):
        self.reply(completion("Perhaps", 0.97, 0.001))

    def no_text(self):
        self.reply(completion(message={"role": "assistant", "content": None}, logprobs={"content": []}))

    def bad_request(self):
        self.reply({"error": {"message": "context too long"}}, 400)

    # --- for good

    def redirect(self):
        self.send_response(307)
        self.send_header("location", f"/ok/{self.caller}-followed/v1/chat/completions")
        self.send_header("content-length", "0")
        self.end_headers()

    def rejects(self):
        sent = self.headers.get("authorization", "")
        self.reply({"error": {"message": f"Incorrect API key provided: {sent}", "code": "invalid_api_key"}}, 401)

    def echo(self):
        """An answer that repeats the key, as a careless proxy does."""
        self.reply(completion(f"Yes {self.headers.get('authorization', '')}"))

    def half_a_pair(self):
        """Half a surrogate pair: allowed in JSON, forbidden in UTF-8."""
        self.reply(completion("Yes \ud800"))


class Server(NamedTuple):
    """The hostile server.

    Attributes:
        url: ``(behaviour, caller) -> base_url``.
        hits: requests by caller.
    """

    url: object
    hits: Counter


@pytest.fixture(scope="session")
def hostile():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hostile)
    server.daemon_threads, server.block_on_close = True, False
    server.hits, server.lock, server.over = Counter(), threading.Lock(), threading.Event()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield Server(
        lambda behaviour, caller: f"http://127.0.0.1:{server.server_port}/{behaviour}/{caller}/v1", server.hits
    )
    server.over.set()
    server.shutdown()
    server.server_close()
