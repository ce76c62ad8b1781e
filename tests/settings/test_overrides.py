"""What is typed after each command becomes the same settings in all of them."""

import pytest
from hydra import compose as compose_with_hydra
from omegaconf import OmegaConf

import llmrl
from llmrl.settings.overrides import _own_hydra, config_dir, register_schemas, to_comparison

METHODS = sorted(file.stem for file in (config_dir() / "method").glob("*.yaml"))
SHARED = {"label": ("env", "llm"), "evaluate": ()}
"""Sections that start as they do in a training; ``evaluate`` takes its environment from the run."""


def composed(command, *words):
    """What ``--cfg job`` prints."""
    register_schemas()
    with _own_hydra():
        return OmegaConf.to_container(compose_with_hydra(command, list(words)))


@pytest.mark.parametrize("method", METHODS)
def test_compare_trains_a_method_with_the_settings_of_train(method):
    trained, compared = (composed(command, f"method={method}") for command in ("train", "compare"))
    assert compared.pop("beside") == ["ppo", "add"]
    assert compared == trained


@pytest.mark.parametrize(
    "words", [(), ("experiment=half_right",), ("track=[tensorboard]",), ("solver=dense", "aux=none")]
)
def test_compare_understands_what_train_does(words):
    trained, compared = (composed(command, *words) for command in ("train", "compare"))
    del compared["beside"]
    assert compared == trained


@pytest.mark.parametrize("words", [(), ("env=gridworld", "method=twin", "ppo=tiny")])
def test_check_understands_what_train_does_and_takes_no_source_by_itself(words):
    trained, checked = composed("train", "aux=none", *words), composed("check", *words)
    assert (checked.pop("steps"), checked.pop("seconds")) == (300, 60.0)
    assert checked == trained


@pytest.mark.parametrize("command", SHARED)
def test_other_commands_start_from_the_same_choices(command):
    trained, asked = composed("train"), composed(command)
    assert {name: asked[name] for name in SHARED[command]} == {name: trained[name] for name in SHARED[command]}


def test_a_comparison_of_an_experiment_is_of_its_runs():
    register_schemas()
    with _own_hydra():
        config, beside = to_comparison(compose_with_hydra("compare", ["experiment=reward_hacking", "seeds=2"]))
    assert config == llmrl.compose("experiment=reward_hacking", "seeds=2") and beside == ("ppo", "add")
