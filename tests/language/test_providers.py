import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import llmrl
from llmrl.language import fill, make_labeller, make_provider, noisy, open_labeller, oracle, recorded
from llmrl.language.question import Provider, Question, Unanswered, questions
from llmrl.settings.config import LLMConfig

HEADER = {"format": "llmrl-answers", "version": 1, "source": "written by hand"}


def parity(key, event):
    return float((key + event) % 2)


@pytest.fixture
def file(tmp_path):
    """``(*rows, header) -> path`` of recorded answers."""

    def write(*rows, header=HEADER):
        path = tmp_path / "answers.jsonl"
        path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in (header, *rows)))
        return path

    return write


# --- recorded ---------------------------------------------------------------------------------------------------------


def rows_of(words, keys):
    return [
        {"state": words.describe(key), "event": phrase, "score": parity(key, event)}
        for key in keys
        for event, phrase in enumerate(words.events)
    ]


def test_recorded_answers_are_found_by_their_words(words, file):
    provider = recorded(file(*rows_of(words, range(4))))
    table = fill(words, provider, None, range(4), capacity=4)
    np.testing.assert_array_equal(table.scores, [[parity(key, event) for event in (0, 1)] for key in range(4)])


def test_scores_follow_the_words_whatever_the_order_and_however_many_states_share_them(words, file):
    alike = words._replace(describe=lambda key: words.describe(key // 2))  # the same words for two keys in a row
    provider = recorded(file(*rows_of(words, range(4))))
    forwards = fill(alike, provider, None, range(8), capacity=8)
    backwards = fill(alike, provider, None, [7, 3, 5, 1, 0, 2, 6, 4], capacity=8)
    np.testing.assert_array_equal(forwards.scores, [[parity(key // 2, event) for event in (0, 1)] for key in range(8)])
    np.testing.assert_array_equal(forwards.scores, backwards.scores)
    turned = alike._replace(events=words.events[::-1])
    np.testing.assert_array_equal(fill(turned, provider, None, range(8), capacity=8).scores, forwards.scores[:, ::-1])


def test_several_events_in_a_line_and_one_task_only(words, file):
    mine = {"state": words.describe(1), "events": list(words.events), "scores": [0.1, 0.9]}
    path = file(
        mine, mine | {"scores": [0.3, 0.7], "context": words.context}, mine | {"scores": [0, 1], "context": "x"}
    )
    scores = [recorded(path).answer_now(question).scores[0] for question in questions(recorded(path), words, 1)]
    assert scores == [0.3, 0.7]
    others = words._replace(context="another task")
    scores = [recorded(path).answer_now(question).scores[0] for question in questions(recorded(path), others, 1)]
    assert scores == [0.1, 0.9]


def test_what_is_not_recorded_is_a_counted_miss(words, file):
    labeller = make_labeller(recorded(file(*rows_of(words, [1]))), words)
    labeller.ask({1: 1, 2: 1})
    assert set(labeller.collect()) == {1}
    stats = labeller.stats()
    assert (stats["answered"], stats["given_up"], stats["failures"]) == (1, 1, 2)
    assert labeller.problem() is None
    with pytest.raises(RuntimeError, match="the pole leans by 9 degrees"):
        fill(words, recorded(file(*rows_of(words, [1]))), None, [9])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", ":2: no JSON object"),
        ({"state": 1, "event": "a", "score": 0}, ":2: state must be text"),
        ({"state": "s", "score": 0}, ":2: event must be text"),
        ({"state": "s", "event": "a"}, ":2: needs a score"),
        ({"state": "s", "event": "a", "score": 1.5}, ":2: needs a score"),
        ({"state": "s", "event": "a", "score": float("nan")}, ":2: needs a score"),
        ({"state": "s", "event": "a", "score": True}, ":2: needs a score"),
        ({"state": "s", "events": ["a", "b"], "scores": [0.5]}, ":2: needs a score"),
    ],
)
def test_a_wrong_line_is_named(row, message, file):
    with pytest.raises(ValueError, match=message):
        recorded(file(row))


def test_a_byte_order_mark_is_no_part_of_a_file(words, file):
    path = file(*rows_of(words, [1]))
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    assert fill(words, recorded(path), None, [1])


def test_a_file_without_its_header_and_no_file_at_all(file, tmp_path):
    with pytest.raises(ValueError, match=":1: must read"):
        recorded(file(header={"state": "s", "event": "a", "score": 0}))
    with pytest.raises(ValueError, match="unknown file of recorded answers"):
        recorded(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match=r"unknown environment of the answers 'handmade' 'pole'.*'cartpole'"):
        recorded("handmade", "pole")


SILENT = """
import sys
opened = []
sys.addaudithook(lambda event, arguments: opened.append(event) if event.startswith("socket.") else None)
from llmrl.settings.config import LLMConfig
from llmrl.language import fill_table, open_labeller
class Words:  # an llmrl.types.Captioner would load jax
    events = ("push the cart to the left", "push the cart to the right")
    context, history = "", None
    def describe(self, key):
        return f"the pole leans by {key} degrees"
config = LLMConfig(answers=sys.argv[1], noise=0.5)
labeller = open_labeller(config, Words())
labeller.ask({1: 1, 2: 1})
assert len(labeller.collect()) == 2
labeller.close()
fill_table(config, Words(), [1, 2])
import threading
heavy = {"jax", "flax", "optax", "openai", "httpx2"} & {name.partition(".")[0] for name in sys.modules}
print(opened, sorted(heavy), threading.active_count())
"""


def test_recorded_answers_open_no_socket_and_this_room_imports_no_jax(words, file):
    command = [sys.executable, "-c", SILENT, str(file(*rows_of(words, [1, 2])))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(llmrl.__file__).parents[1], timeout=200)
    assert (done.stdout, done.stderr) == ("[] [] 1\n", "")


# --- oracle -----------------------------------------------------------------------------------------------------------


def test_an_oracle_answers_at_once(words):
    labeller = make_labeller(oracle(parity), words)
    labeller.ask({3: 1, 4: 2})
    answers = labeller.collect()
    assert {key: row.tolist() for key, row in answers.items()} == {4: [0, 1], 3: [1, 0]}
    assert all(row.dtype == np.float32 for row in answers.values())
    labeller.ask({3: 1})
    assert labeller.collect() == {}


@pytest.mark.parametrize("score", [lambda key, event: 1 / 0, lambda key, event: 2.0, lambda key, event: float("nan")])
def test_a_broken_oracle_stops_labelling_and_not_training(score, words):
    labeller = make_labeller(oracle(score, "mine"), words)
    labeller.ask({1: 1})
    labeller.ask({2: 1})
    assert labeller.collect() == {}
    assert "the oracle mine" in labeller.problem()
    assert labeller.stats()["stopped"] == 1
    with pytest.raises(RuntimeError, match="the oracle mine"):
        fill(words, oracle(score, "mine"), None, [1])


def test_an_oracle_by_its_dotted_path_or_the_environments_own(words, tmp_path, monkeypatch):
    (tmp_path / "hints_for_tests.py").write_text("def parity(key, event):\n    return float((key + event) % 2)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for path in ("hints_for_tests.parity", "hints_for_tests:parity"):
        table = fill(words, make_provider(LLMConfig(provider="oracle", function=path), words), None, [1], capacity=1)
        assert table.scores.tolist() == [[1, 0]]
    for path, message in (("hints_for_tests.parit", "parit"), ("no_such_module.f", "no_such"), ("f", "dotted path")):
        with pytest.raises((ValueError, ImportError), match=message):
            make_provider(LLMConfig(provider="oracle", function=path), words)
    with pytest.raises(ValueError, match=r"llm\.function"):
        make_provider(LLMConfig(provider="oracle"), words)

    knowing = words._replace(oracle=lambda key, event: 0.25)
    table = fill(words, make_provider(LLMConfig(provider="oracle"), knowing), None, [1], capacity=1)
    assert table.scores.tolist() == [[0.25, 0.25]]


# --- noise ------------------------------------------------------------------------------------------------------------


def wrong_ones(keys, **options):
    """[keys, events] booleans: which answers an oracle's noise has made wrong."""
    provider = noisy(oracle(parity), **options)
    wrong = []
    for key in keys:
        right = (parity(key, 0), parity(key, 1))
        given = provider.distort(Question(key, (0, 1), "", ("a", "b")), right)
        assert all(score in (truth, 1.0 - truth) for score, truth in zip(given, right, strict=True))
        wrong.append([score != truth for score, truth in zip(given, right, strict=True)])
    return np.asarray(wrong)


@pytest.mark.parametrize("unit", ["state", "answer"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_noise_has_the_share_asked_for(share, unit):
    wrong = wrong_ones(range(1500), share=share, seed=1, unit=unit)
    deviation = (share * (1.0 - share) / 1500) ** 0.5
    assert abs(wrong.mean() - share) <= 4.0 * deviation
    if unit == "state":
        assert np.all(wrong[:, 0] == wrong[:, 1])
    elif 0.0 < share < 1.0:
        assert np.any(wrong[:, 0] != wrong[:, 1])


def test_noise_depends_on_seed_and_state_only():
    once = wrong_ones(range(200), share=0.3, seed=5)
    np.testing.assert_array_equal(once[::-1], wrong_ones(range(199, -1, -1), share=0.3, seed=5))
    np.testing.assert_array_equal(once[50:60], wrong_ones(range(50, 60), share=0.3, seed=5))
    assert np.any(once != wrong_ones(range(200), share=0.3, seed=6))


def test_one_question_or_several_make_no_difference_to_noise(words):
    provider = noisy(oracle(parity), 0.5, unit="answer")
    several = fill(words, provider, None, range(50), capacity=50)
    one = fill(words, provider._replace(open_question=True), None, range(50), capacity=50)
    np.testing.assert_array_equal(several.scores, one.scores)


def test_more_noise_spoils_more_of_the_same():
    few, many = (wrong_ones(range(300), share=share) for share in (0.2, 0.6))
    assert np.all(many[few])


def test_an_adversary_is_always_wrong_and_undoes_another(words):
    assert np.all(wrong_ones(range(50), share=0.0, adversarial=True))
    twice = noisy(noisy(oracle(parity), 0.0, adversarial=True), 0.0, adversarial=True)
    np.testing.assert_array_equal(fill(words, twice, None, [1], capacity=1).scores, [[1.0, 0.0]])


@pytest.mark.parametrize(("share", "unit"), [(1.5, "state"), (0.5, "event")])
def test_wrong_noise_is_refused(share, unit):
    with pytest.raises(ValueError, match="got"):
        noisy(oracle(parity), share, unit=unit)


# --- settings ---------------------------------------------------------------------------------------------------------


def test_a_labeller_from_settings(words, file):
    settings = LLMConfig(answers=str(file(*rows_of(words, [1]))), adversarial=True)
    labeller = open_labeller(settings, words)
    labeller.ask({1: 1})
    assert labeller.collect()[1].tolist() == [0.0, 1.0]
    labeller.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"provider": "opnai"}, "nearest: 'openai'"),
        ({"provider": "openai"}, "needs a model"),
        ({"score": "token_probabilty"}, "nearest: 'token_probability'"),
        ({"prompt": "goal"}, "nearest: 'goals'"),
        ({"prompt": "goals"}, "needs llm.prompt=yes_no"),
        ({"noise": 1.5}, "llm.noise"),
        ({"deadline": 0.0}, "llm.deadline"),
        ({"max_requests": -1}, "llm.max_requests"),
        ({"max_cost": 1.0}, "llm.prompt_price"),
        ({"base_url": "localhost:8000"}, "https://host/v1"),
    ],
)
def test_wrong_settings_are_refused(changes, message, words):
    with pytest.raises(ValueError, match=message):
        make_provider(LLMConfig(**changes), words)


LEAKS = (
    "llm.api_key=S",
    "+llm.api_key=S",
    "+llm.extra.api_key=S",
    "llm.key_variable=S",
    "api_key=S",
    "llm.base_url=https://u:S@host/v1",
    "llm.base_url='https://host/v1?key=S'",
    "llm.api_key=[S,S",
    "llm.api_key=S,S",
)


@pytest.mark.parametrize("override", LEAKS)
def test_a_key_among_the_settings_is_refused_and_not_repeated(override, key):
    with pytest.raises(ValueError, match="written to disk") as error:
        llmrl.compose(override.replace("S", key))
    assert key not in str(error.value)


def test_a_value_that_cannot_be_read_is_not_repeated(key):
    with pytest.raises(ValueError, match=r"cannot read the value of llm\.extra") as error:
        llmrl.compose(f"llm.extra={{a: [{key}")
    assert key not in str(error.value)


def test_a_wrong_answer_is_told_from_a_bug():
    failure = Unanswered("timeout", "no answer", 3.0)
    assert (str(failure), failure.kind, failure.retry_after) == ("no answer", "timeout", 3.0)


# --- questions --------------------------------------------------------------------------------------------------------


def test_what_led_to_a_state_is_part_of_its_question(words):
    provider = Provider("any", prompt=lambda context, state, phrases, history: ("", f"{state}, after {history}"))
    met = words._replace(history=lambda key: [(words.describe(key - 1), "push")])
    assert questions(provider, met, 3)[0].user == (
        "the pole leans by 3 degrees, after (('the pole leans by 2 degrees', 'push'),)"
    )
