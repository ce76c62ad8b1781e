import json
import logging
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from llmrl.language import cache as caches
from llmrl.language.cache import cache_key, open_cache
from llmrl.language.providers import recorded
from llmrl.language.question import Answer, Provider, Question


async def nobody(question):
    raise AssertionError("nobody is asked")


PROVIDER = Provider(identity="somebody", answer=nobody, model="m", endpoint="h", parameters={"temperature": 0.0})


def question(number=0, **changes):
    return Question(number, (0,), f"state {number}", ("jump",), "task", "p:1", "general", f"user {number}")._replace(
        **changes
    )


ANSWER = Answer((0.75,), '{"text": "Yes"}', 12, 1)


def test_what_was_put_is_got_also_by_the_next_run(tmp_path):
    path = tmp_path / "below" / "answers.sqlite"
    cache = open_cache(path)
    assert cache.get(PROVIDER, question()) is None
    cache.put(PROVIDER, question(), ANSWER)
    assert cache.get(PROVIDER, question()) == ANSWER
    cache.close()
    cache = open_cache(path)
    assert cache.get(PROVIDER, question()) == ANSWER
    assert (cache.size(), cache.problems()) == (1, 0)
    cache.close()


def test_who_has_answered_before_is_known():
    cache = open_cache(None)
    provider = Provider("p", model="m", endpoint="e", parameters={"a": 1, "b": 2})
    assert not cache.knows(provider)
    cache.put(provider, Question(1, (0,), "state", ("jump",)), Answer((0.5,), "null", 1, 1))
    assert cache.knows(provider._replace(parameters={"b": 2, "a": 1}))
    for other in ({"model": "n"}, {"endpoint": "f"}, {"parameters": {"a": 1}}):
        assert not cache.knows(provider._replace(**other))


def test_whatever_decides_an_answer_is_in_its_key():
    keys = {
        cache_key(PROVIDER, question()),
        cache_key(PROVIDER._replace(identity="somebody else"), question()),
        *(cache_key(PROVIDER, question(**{name: "other"})) for name in ("prompt", "system", "user", "state")),
        cache_key(PROVIDER, question(phrases=("sit",))),
    }
    assert len(keys) == 7
    assert cache_key(PROVIDER, question(key=99)) in keys  # the integer is only our name for the words


def test_an_export_is_imported_and_serves_as_a_recording(tmp_path):
    cache = open_cache(None)
    for number in range(3):
        cache.put(PROVIDER, question(number), ANSWER)
    assert cache.export(tmp_path / "answers.jsonl") == 3
    other = open_cache(tmp_path / "other.sqlite")
    other.put(PROVIDER, question(1), Answer((0.25,)))
    assert other.import_(tmp_path / "answers.jsonl") == 2  # what is there already stays
    assert other.get(PROVIDER, question(2)) == Answer((0.75,), '{"text": "Yes"}', 12, 1)
    assert other.get(PROVIDER, question(1)).scores == (0.25,)
    assert recorded(tmp_path / "answers.jsonl").answer_now(question(0)).scores == (0.75,)
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert lines[0]["format"] == "llmrl-answers"
    assert lines[1]["model"] == "m" and lines[1]["parameters"] == {"temperature": 0.0}
    other.close()


@pytest.mark.parametrize(
    "line",
    [
        "no json",
        "[1]",
        "{}",
        '{"key": "k", "events": ["a"], "scores": [2]}',
        '{"key": "k", "events": ["a"], "scores": []}',
    ],
)
def test_a_wrong_line_is_named_and_nothing_is_imported(line, tmp_path):
    cache = open_cache(None)
    cache.put(PROVIDER, question(), ANSWER)
    cache.export(tmp_path / "a.jsonl")
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write(line + "\n")
    other = open_cache(None)
    with pytest.raises(ValueError, match=r"a\.jsonl:3"):
        other.import_(tmp_path / "a.jsonl")
    assert other.size() == 0


@pytest.mark.parametrize("scores", ["[NaN]", "[2.0]", "[0.5, 0.5]", "null", "{", '["0.5"]', "[true]"])
def test_a_row_that_somebody_broke_is_a_miss(scores, tmp_path):
    cache = open_cache(tmp_path / "a.sqlite")
    cache.put(PROVIDER, question(), ANSWER)
    with sqlite3.connect(tmp_path / "a.sqlite") as other:
        other.execute("UPDATE answers SET scores = ?", (scores,))
    assert cache.get(PROVIDER, question()) is None
    cache.close()


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["garbage", "cut", "middle"])
def test_a_damaged_file_is_set_aside_and_begun_anew(damage, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    path = tmp_path / "a.sqlite"
    cache = open_cache(path)
    for number in range(200):
        cache.put(PROVIDER, question(number), ANSWER)
    cache.close()
    content = path.read_bytes()
    middle = bytearray(content)
    middle[4096:8192] = b"\xa5" * 4096
    path.write_bytes({"garbage": b"this is no database" * 500, "cut": content[:5000], "middle": bytes(middle)}[damage])
    cache = open_cache(path)
    cache.put(PROVIDER, question(), ANSWER)
    assert cache.get(PROVIDER, question()) == ANSWER
    assert cache.size() == 1
    assert "set aside" in caplog.text
    assert len(list(tmp_path.glob("a.sqlite.corrupt-*"))) == 1
    cache.close()


def test_damage_that_comes_while_it_is_open(tmp_path, caplog):
    path = tmp_path / "a.sqlite"
    cache = open_cache(path)
    for number in range(300):
        cache.put(PROVIDER, question(number), ANSWER)
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (path.stat().st_size - 4096))
    for number in range(300, 310):
        cache.put(PROVIDER, question(number), ANSWER)
        cache.get(PROVIDER, question(number))
    cache.close()
    again = open_cache(path)
    again.put(PROVIDER, question(0), ANSWER)
    assert again.get(PROVIDER, question(0)) == ANSWER
    again.close()


def test_a_foreign_database_is_refused_and_left_alone(tmp_path):
    with sqlite3.connect(tmp_path / "mine.sqlite") as mine:
        mine.execute("CREATE TABLE thesis (chapter TEXT)")
    before = (tmp_path / "mine.sqlite").read_bytes()
    with pytest.raises(ValueError, match="another program"):
        open_cache(tmp_path / "mine.sqlite")
    assert (tmp_path / "mine.sqlite").read_bytes() == before


def test_another_version_is_set_aside(tmp_path, caplog):
    open_cache(tmp_path / "a.sqlite").close()
    with sqlite3.connect(tmp_path / "a.sqlite") as other:
        other.execute("PRAGMA user_version = 0")
    cache = open_cache(tmp_path / "a.sqlite")
    assert "another version" in caplog.text
    assert cache.size() == 0
    cache.close()


def test_a_folder_in_place_of_the_file(tmp_path):
    (tmp_path / "a.sqlite").mkdir()
    with pytest.raises(OSError, match=r"a\.sqlite"):
        open_cache(tmp_path / "a.sqlite")


def test_a_network_file_system_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(caches, "_network_file_system", lambda path: "nfs4")
    with pytest.raises(ValueError, match=r"nfs4.*llm\.cache"):
        open_cache(tmp_path / "a.sqlite")


def test_a_closed_cache_loses_answers_and_raises_nothing(tmp_path):
    cache = open_cache(tmp_path / "a.sqlite")
    cache.close()
    cache.put(PROVIDER, question(), ANSWER)
    assert cache.get(PROVIDER, question()) is None
    assert cache.problems() == 2


# --- many at once -----------------------------------------------------------------------------------------------------


def test_threads_share_a_cache(tmp_path):
    cache = open_cache(tmp_path / "a.sqlite")

    def work(first):
        for number in range(first, first + 40):
            cache.put(PROVIDER, question(number), ANSWER)
            assert cache.get(PROVIDER, question(number)) == ANSWER

    threads = [threading.Thread(target=work, args=(20 * each,)) for each in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (cache.size(), cache.problems()) == (100, 0)
    cache.close()


EIGHT = """
import multiprocessing, sys
from llmrl.language.cache import open_cache
from llmrl.language.question import Answer, Provider, Question
provider = Provider(identity="somebody")
fork = multiprocessing.get_context("fork")  # nothing here has threads yet
together = fork.Barrier(8)
def work():
    together.wait()
    cache = open_cache(sys.argv[1])
    for number in range(60):
        question = Question(number, (0,), f"state {number}", ("jump",))
        found = cache.get(provider, question)
        cache.put(provider, question, found or Answer((number / 100,)))
        assert cache.get(provider, question).scores == (number / 100,)
    assert cache.problems() == 0
workers = [fork.Process(target=work) for _ in range(8)]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
print([worker.exitcode for worker in workers])
"""


def test_eight_processes_share_a_cache_from_its_first_moment(tmp_path):
    path = tmp_path / "a.sqlite"
    root = Path(caches.__file__).parents[2]
    command = [sys.executable, "-c", EIGHT, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=200)
    assert (done.stdout, done.stderr) == (f"{[0] * 8}\n", "")
    cache = open_cache(path)
    assert cache.size() == 60
    cache.close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
