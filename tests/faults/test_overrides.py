"""Whatever is typed ends in a config, or in a few lines that name what is wrong; none of it is executed (F21, F23)."""

import copy
import string
from dataclasses import fields, is_dataclass

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrl.cli import main as cli
from llmrl.runs import directory as runs
from llmrl.settings.config import Config
from llmrl.settings.overrides import config_dir, explain, register_schemas, to_config

MOST_LINES = 10


def keys(section=None, prefix=""):
    """Dotted key -> default, of everything that can be set."""
    found = {}
    for entry in fields(section or Config()):
        value = getattr(section or Config(), entry.name)
        nested = keys(value, f"{prefix}{entry.name}.") if is_dataclass(value) else {f"{prefix}{entry.name}": value}
        found |= nested
    return found


KEYS = keys()
NUMBERS = sorted(key for key, value in KEYS.items() if isinstance(value, int | float) and not isinstance(value, bool))
SWITCHES = sorted(key for key, value in KEYS.items() if isinstance(value, bool))
SECTIONS = sorted({key.rpartition(".")[0] for key in KEYS} - {""})


@pytest.fixture(scope="module")
def typed():
    """``overrides -> (config, message)``: Hydra's own parser and merge on a config composed once, then our validation;
    one of the two is None."""
    register_schemas()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        composed = compose("train")

    def result(*overrides):
        try:
            parsed = OverridesParser.create().parse_overrides(list(overrides))
            node = copy.deepcopy(composed)
            ConfigLoaderImpl._apply_overrides_to_config(parsed, node)
            return to_config(node), None
        except Exception as error:
            assert cli._is_for_user(error), f"{overrides} would end in a traceback of {error!r}"
            message = explain(error)
            assert message.strip() and message.count("\n") < MOST_LINES
            assert "Traceback" not in message
            return None, message

    return result


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_misspelt_key_is_named_with_the_nearest_right_one(typed, data):
    key = data.draw(st.sampled_from(sorted(KEYS)))
    section, _, name = key.rpartition(".")
    at = data.draw(st.integers(0, len(name) - 1))
    letter = data.draw(st.sampled_from(string.ascii_lowercase))
    kind = data.draw(st.sampled_from(("drop", "add", "change", "swap", "capital")))
    wrong = {
        "drop": name[:at] + name[at + 1 :],
        "add": name[:at] + letter + name[at:],
        "change": name[:at] + letter + name[at + 1 :],
        "swap": name[:at] + name[at + 1 : at + 2] + name[at] + name[at + 2 :],
        "capital": name[:at] + name[at].upper() + name[at + 1 :],
    }[kind]
    siblings = {other.rpartition(".")[2] for other in KEYS if other.rpartition(".")[0] == section}
    typo = f"{section}.{wrong}" if section else wrong
    if not wrong or wrong in siblings or typo in SECTIONS or any(k.startswith(f"{typo}.") for k in KEYS):
        return
    config, message = typed(f"{typo}=1")
    assert config is None
    assert typo in message
    if len(name) > 4:
        assert key in message


@settings(max_examples=60, deadline=None)
@given(key=st.sampled_from(NUMBERS + SWITCHES), value=st.sampled_from(("abc", "[1,2]", "{a: 1}", "''", "1.5.2", "1e")))
def test_a_value_of_another_type_is_named(typed, key, value):
    config, message = typed(f"{key}={value}")
    if isinstance(KEYS[key], float) or key in ("solver.damping", "aux.center"):
        assert config is None
    assert message is None or key in message


@settings(max_examples=80, deadline=None)
@given(key=st.sampled_from(NUMBERS), value=st.sampled_from(("nan", "inf", "-inf", "-1", "0", "1e30", "-1e-9")))
def test_a_value_out_of_range_is_named_and_no_config_holds_what_is_no_number(typed, key, value):
    config, message = typed(f"{key}={value}")
    assert message is None or key.rpartition(".")[2] in message
    if value in ("nan", "inf", "-inf"):
        assert config is None


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30))
def test_any_text_ends_in_a_few_lines(typed, text):
    typed(text)
    typed(f"run_dir={text}")
    typed(f"{text}=1")


@settings(max_examples=40, deadline=None)
@given(overrides=st.lists(st.tuples(st.sampled_from(sorted(KEYS)), st.sampled_from(("0", "1", "true", "x", "null")))))
def test_any_combination_ends_in_a_config_or_a_few_lines(typed, overrides):
    typed(*(f"{key}={value}" for key, value in overrides))


CODE = (
    "_target_=os.system",
    "+_target_=os.system",
    "+env._target_=os.system",
    "+env.params._target_=os.system",
    "+aux.options._target_=os.system",
    "env={_target_: os.system, command: echo}",
    "seed=!!python/object/apply:os.system ['echo']",
    "run_dir=${os.system:echo}",
    "run_dir=${hydra:runtime.cwd}${oc.create:{_target_:os.system}}",
)


@pytest.mark.parametrize("override", CODE)
def test_nothing_typed_is_executed(typed, override, monkeypatch):
    import os

    monkeypatch.setattr(os, "system", lambda *_: pytest.fail("executed"))
    config, message = typed(override)
    assert config is None and message


def test_tags_in_a_runs_settings_are_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: !!python/object/apply:os.system ['touch executed']\n")
    with pytest.raises(ValueError, match=r"config\.yaml"):
        runs.load_run(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_settings_of_another_version_name_the_field(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 1\nlearning_speed: 3\n")
    with pytest.raises(ValueError, match=r"unknown key 'learning_speed'"):
        runs.load_run(tmp_path)
    (tmp_path / "config.yaml").write_text("- no\n- settings\n")
    with pytest.raises(ValueError, match=r"config\.yaml"):
        runs.load_run(tmp_path)


PATHS = (
    ("aux.function=nowhere", "aux_function 'nowhere'"),
    ("aux.function=no_such_module.hint", "importing no_such_module failed"),
    ("aux.function=math.sinn", "unknown function in math 'sinn'; nearest: 'sin'"),
    ("captioner=no_such_module.captions", "importing no_such_module failed"),
    ("env.size=0", "size must be a positive integer, got 0"),
    ("env.horizon=-3", "horizon must be a positive integer, got -3"),
    ("env.name=gridwrld", "nearest: 'gridworld'"),
    ("+aux.sources.harmfull=1", "nearest: 'harmful'"),
)


@pytest.mark.parametrize(("override", "says"), PATHS)
def test_what_only_building_shows_is_as_short(typed, override, says):
    from llmrl.training.loop import make_trainer

    config, message = typed("env.name=gridworld", "aux.sources={}", override)
    assert message is None
    with pytest.raises((ValueError, TypeError, ImportError)) as error:
        make_trainer(config)
    assert cli._is_for_user(error.value)
    assert says in explain(error.value) and explain(error.value).count("\n") == 0
