"""What is typed is what is meant: paths and text to the letter, whole numbers in any notation."""

import os

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st

import llmrl
from llmrl.cli.main import keyed
from llmrl.settings.requests import SCHEMAS
from llmrl.settings.words import as_hydra_reads, literal, quoted

PATHS = r"""runs/lr=0.1
runs/(1)
a#b
a&b
ünïcode/日本
a b
 a
a,b
[a]
{a}
f(x)
range(3)
a:b
1e-3
007
1_000
true
it's
say "hi"
back\slash
ends\
a\'b
a=b,c=d
a;b!
$HOME
~""".splitlines()


def read(word):
    return OverridesParser.create().parse_override(word)


@pytest.mark.parametrize("path", PATHS)
def test_a_path_is_read_to_the_letter(path):
    (word,) = as_hydra_reads([f"run_dir={path}"], "train")
    assert read(word).value() == os.path.expanduser(path)
    assert as_hydra_reads([word], "train") == [word]  # a command passes on what it was told


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\0")))
@example("\\'\\\\'")
def test_any_text_is_read_to_the_letter(text):
    assert read(f"run_dir={quoted(text)}").value() == text
    if text[:1] not in ("~", "'", '"') and text.lower() != "null":
        assert read(f"run_dir={literal(text)}").value() == text


@pytest.mark.parametrize(
    "key", ["llm.answers", "llm.cache", "method.goals.table", "captioner", "llm.model", "aux.function"]
)
def test_every_text_key_is_literal(key):
    assert read(as_hydra_reads([f"++{key}=a=b (c)"], "train")[0]).value() == "a=b (c)"


@pytest.mark.parametrize("command", SCHEMAS)
def test_other_words_stay_as_they_are(command):
    words = [
        "--multirun",
        "env=cartpole",
        "ppo.entropy=1e-3,1e-2",
        "aux=[harmful,random]",
        "+aux.sources.a=1e0",
        "run_dir=x",
    ]
    assert as_hydra_reads(words, command, multirun=True) == words
    for text in ("null", "", "''", "'a, b'", '"a=b"', "${seed}", "runs/x-${seed}", "runs/x_1.5"):
        assert literal(text) == text


def test_a_comma_separates_texts_in_a_sweep_only():
    for typed in ("run_dir=a=1,b=2", "run_dir='a=1','b=2'"):
        (word,) = as_hydra_reads([typed], "train", multirun=True)
        assert [element.text for element in read(word).sweep_iterator()] == ["a=1", "b=2"]
    assert not read(as_hydra_reads(["run_dir=a,b"], "train")[0]).is_sweep_override()
    with pytest.raises(ValueError, match=r"method\.outer\.data=fresh,past is several values: add --multirun"):
        llmrl.compose("method.outer.data=fresh,past")


def test_a_tilde_is_the_home_directory(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    for typed in ("~/runs", "'~/runs'", '"~/runs"'):
        assert read(f"run_dir={literal(typed)}").value() == "/home/me/runs"
    assert keyed("report", ["~/runs"]) == ["runs=['/home/me/runs']"]


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("total_steps=1e5", "total_steps=100000"),
        ("total_steps=2.5E+3", "total_steps=2500"),
        ("total_steps=1_000.0", "total_steps=1000"),
        ("total_steps=1e5,2e5", "total_steps=100000,200000"),
        ("ppo.hidden=[6.4e1,32]", "ppo.hidden=[64,32]"),
        ("llm.max_tokens=1e6", "llm.max_tokens=1000000"),
        ("seed=-1e0", "seed=-1"),
        ("seeds=1.5", "seeds=1.5"),
        ("seeds=many1e3", "seeds=many1e3"),
        ("seeds=null", "seeds=null"),
        ("ppo.clip=1e0", "ppo.clip=1e0"),
    ],
)
def test_a_whole_number_may_be_written_in_any_way(typed, expected):
    assert as_hydra_reads([typed], "train") == [expected]


def test_what_is_composed_has_them():
    config = llmrl.compose("total_steps=1e5", "seeds=2.0", "ppo.hidden=[1.6e1]", "run_dir=lr=0.1 #1", "llm.cache=a&b")
    assert (config.total_steps, config.seeds, config.ppo.hidden) == (100_000, 2, (16,))
    assert (type(config.total_steps), config.run_dir, config.llm.cache) == (int, "lr=0.1 #1", "a&b")


def test_a_folder_may_look_like_an_override(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=0.1").mkdir()
    assert keyed("report", ["lr=0.1", "runs/lr=*", "rüns/(1)", "out=there", "lr=0.2"]) == [
        "runs=['lr=0.1','runs/lr=*','rüns/(1)']",
        "out=there",
        "lr=0.2",
    ]
    assert keyed("status", ["+runs=x", "hydra/launcher=basic", "-m"]) == ["+runs=x", "hydra/launcher=basic", "-m"]
