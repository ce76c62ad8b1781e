"""Labelling ahead: one answer is shown before the rest is asked, the answers can be kept, and states are found where
they cannot be listed; a captioner of one's own needs no change of the library."""

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

import llmrl
from llmrl.assembly.parts import make_environment
from llmrl.cli.main import main
from llmrl.envs import captions
from llmrl.language import Provider, recorded, size
from llmrl.language.providers.recorded import find
from llmrl.language.question import Answer, questions
from llmrl.settings.config import Config, EnvConfig, LLMConfig
from llmrl.studies.label import label, visited
from llmrl.training.loop import train

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
CARTPOLE = captions.cartpole()
OFFLINE = Config(llm=LLMConfig(provider="oracle", cache=None))


def test_the_first_answer_is_shown_and_a_dry_run_asks_for_nothing_more(monkeypatch):
    asked = []

    async def answer(question):
        asked.append((question.key, question.events))
        return Answer((0.75,) * len(question.events))

    fake = Provider("fake", answer=answer, prompt=lambda *parts: ("be honest", f"Asked: {parts[1]} {parts[2]}"))
    for module in ("llmrl.language", "llmrl.studies.label"):
        monkeypatch.setattr(sys.modules[module], "make_provider", lambda *_: fake)
    told = []
    table = label(OFFLINE, told.append, dry_run=True)
    assert sorted(asked) == [(0, (0,)), (0, (1,))] and size(table) == 1
    assert "be honest" in told[0] and CARTPOLE.describe(0) in told[0]
    assert told[1].splitlines() == [f"0.750  {event}" for event in CARTPOLE.events]
    assert "525 states at 2 questions" in told[2]

    asked.clear()
    table = label(OFFLINE, told.append, limit=3, steps=640)
    assert [key for key, _ in asked[:2]] == [visited(OFFLINE, make_environment(OFFLINE), 640)[0]] * 2
    assert size(table) == 3 == len({key for key, _ in asked})
    assert told[-1] == "3 of 3 states are answered"


def test_answers_are_kept_in_a_file_that_is_read_again(tmp_path):
    path = tmp_path / "answers" / "mine.jsonl"
    table = label(OFFLINE, lambda line: None, limit=20, steps=16, out=str(path))
    first = json.loads(path.read_text().splitlines()[0])
    assert "oracle" in first["source"] and len(first["date"]) == 10
    provider = recorded(path)
    for row in range(20):
        asked = questions(provider, CARTPOLE, int(table.keys[row]))
        scores = [provider.answer_now(question).scores[0] for question in asked]
        np.testing.assert_allclose(scores, table.scores[row], rtol=1e-3)

    noisy = dataclasses.replace(OFFLINE, llm=dataclasses.replace(OFFLINE.llm, noise=0.25))
    label(noisy, lambda line: None, limit=2, steps=16, out=str(path))
    assert json.loads(path.read_text().splitlines()[0])["made_wrong"] == 0.25


def test_states_that_cannot_be_listed_are_those_an_untrained_policy_meets():
    env = make_environment(OFFLINE)
    keys = visited(OFFLINE, env, 640)
    assert 3 < len(keys) == len(set(keys)) and set(keys) <= set(CARTPOLE.keys())
    assert "in the middle of the track" in CARTPOLE.describe(keys[0])  # episodes begin there, and end soon
    unlisted = env._replace(captioner=CARTPOLE._replace(keys=None))
    assert visited(OFFLINE, unlisted, 640) == keys


def test_an_environment_without_words_says_so():
    with pytest.raises(ValueError, match=r"gridworld has no words.*captioner="):
        label(Config(env=EnvConfig(name="gridworld")), print)


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["label", "env=cartpole_continuous", "llm=recorded", "dry_run=true"])
    printed = capsys.readouterr().out
    assert CARTPOLE.describe(0) in printed and "0.970  push the cart to the left" in printed
    assert list(tmp_path.iterdir()) == []
    for words, message in (
        (["limit=0"], "limit must be positive, got 0"),
        (["limt=3"], "nearest: 'limit'"),
        (["llm.noise=2"], "llm.noise"),
        (["llm=orackle"], "'oracle'"),
        (["env=gridworld"], "captioner="),
        (["captioner=nowhere"], "captioner 'nowhere'"),
    ):
        with pytest.raises(SystemExit) as exit_:
            main(["label", *words])
        error = capsys.readouterr().err
        assert exit_.value.code == 2 and message in error and error.count("\n") == 1, error


# --- what comes with the library --------------------------------------------------------------------------------------


def test_the_shipped_answers_are_those_of_the_rules():
    spec = importlib.util.spec_from_file_location("record_cartpole_for_tests", SCRIPTS / "record_cartpole.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PATH.read_text().splitlines() == module.lines()
    header = json.loads(module.lines()[0])
    assert "no model was called" in header["source"]
    provider = recorded("handmade", "cartpole")
    for key in CARTPOLE.keys():  # noqa: SIM118
        for event, question in enumerate(questions(provider, CARTPOLE, key)):
            assert provider.answer_now(question).scores == (CARTPOLE.oracle(key, event),)


def test_the_shipped_answers_of_a_model_are_about_the_captions_of_today_and_say_where_they_come_from():
    lines = find("qwen2.5-coder-1.5b", "cartpole").read_text().splitlines()
    first, *rows = map(json.loads, lines)
    assert {"model", "quantisation", "prompt", "date"} <= first.keys()
    states = [row["state"] for row in rows]
    assert len(set(states)) == len(rows) and set(states) <= {CARTPOLE.describe(key) for key in range(525)}
    assert all(tuple(row["events"]) == CARTPOLE.events for row in rows)


def test_the_example_of_an_own_captioner_trains(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS / "examples")
    result = train(
        llmrl.compose(
            *("env=gymnax", "env.id=MountainCar-v0", "captioner=mountain_car_captioner.captioner"),
            *("aux=language", "llm=oracle", "method=add", "ppo=tiny", "total_steps=128", "seeds=1", "num_chunks=1"),
            "progress=false",
        )
    )
    assert result.metrics["language_coverage"].tolist() == [[1.0, 1.0]]
    from mountain_car_captioner import captioner

    assert len((SCRIPTS / "examples" / "mountain_car_captioner.py").read_text().splitlines()) < 60
    still = next(key for key in captioner.keys() if "stands still" in captioner.describe(key))  # noqa: SIM118
    fast_left = next(key for key in captioner.keys() if "fast to the left" in captioner.describe(key))  # noqa: SIM118
    assert [captioner.oracle(still, event) for event in range(3)] == [0.5] * 3
    assert [captioner.oracle(fast_left, event) for event in range(3)] == [0.9, 0.1, 0.1]
