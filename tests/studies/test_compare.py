"""A method beside those that ignore and trust its source: who is told what, and what is shown, without training."""

import functools

import numpy as np
import pytest

from llmrl.analysis.comparison_plots import learning_curves
from llmrl.runs import directory as runs
from llmrl.runs import metrics
from llmrl.settings import overrides
from llmrl.studies import compare as module
from llmrl.studies.carry_out import Found
from llmrl.studies.compare import compare, told

LEVELS = {"ppo": 100.0, "add": 30.0, "implicit": 120.0}
COMPOSE = functools.cache(overrides.compose)


@pytest.fixture(autouse=True)
def composed_once(monkeypatch):
    """The tests ask for the same runs again and again, and composing is the slow part."""
    monkeypatch.setattr(overrides, "compose", COMPOSE)
    monkeypatch.setattr(module, "compose", COMPOSE)


@pytest.fixture
def fake_train():
    """Leaves what training would leave; curves at a level of the method's."""
    configs = {}

    def train(config):
        configs[config.method.name] = config
        with runs.open_run(config) as run:
            noise = np.random.default_rng(0).normal(size=(config.seeds, 20))
            curves = {"episode_length": np.float32(LEVELS[config.method.name] + noise)}
            if config.method.name == "implicit":
                source = "language" if "language" in config.aux.sources else "harmful"
                curves[f"influence/{source}"] = np.full((config.seeds, 20), -0.25, np.float32)
            if "language" in config.aux.sources:
                curves["language_coverage"] = np.ones((config.seeds, 20), np.float32)
            metrics.append(run.metrics_path, curves, 0, 2048)
            metrics.write_summary(run.summary_path, {"steps_per_second": 5.0})
            return Found(metrics.read(run.metrics_path))

    train.configs = configs
    return train


def test_each_method_is_told_what_concerns_it():
    typed = ("env=gridworld", "seeds=3", "aux=random", "+aux.options.seed=1", "llm.noise=0.5", "method=implicit")
    typed += ("method.trust.gate=false", "solver=identity", "ppo.entropy=0.02")
    assert told(typed, "ppo") == ("env=gridworld", "seeds=3", "ppo.entropy=0.02", "method=ppo", "aux=none")
    assert told(typed, "add") == (*typed[:5], "ppo.entropy=0.02", "method=add")
    for method in ("ppo", "add"):
        assert COMPOSE(*told(typed, method)).method == COMPOSE(f"method={method}").method


def test_one_table_one_picture_and_nothing_is_trained_twice(tmp_path, fake_train, capsys):
    typed = ["aux=language", "seeds=5", "total_steps=40960", "method=implicit"]
    picture = compare(typed, ("ppo", "add"), tmp_path, command="llmrl compare x", train=fake_train)
    assert list(fake_train.configs) == ["implicit", "ppo", "add"]
    assert [list(config.aux.sources) for config in fake_train.configs.values()] == [["language"], [], ["language"]]
    assert {config.seeds for config in fake_train.configs.values()} == {5}
    printed = capsys.readouterr().out
    for words in (
        "implicit",
        "ppo",
        "add",
        "-0.250",
        "(5/5)",
        "1.200",
        "100% of the states that implicit visits",
    ):
        assert words in printed
    written = (tmp_path / "comparison.md").read_text()
    assert "| yes (5/5) |" in written
    assert written.startswith("    llmrl compare x\n\n| method |")
    assert picture == tmp_path / "comparison.png"
    assert picture.stat().st_size > 10_000

    fake_train.configs.clear()
    compare(typed, ("ppo", "add"), tmp_path, train=fake_train)
    assert fake_train.configs == {}
    assert capsys.readouterr().out == printed
    compare([*typed[:-1], "method=add"], ("ppo",), tmp_path, train=fake_train)
    assert fake_train.configs == {}
    assert "implicit" not in capsys.readouterr().out


def test_the_picture_says_what_was_trained(tmp_path, fake_train, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        module, "learning_curves", lambda *given, **named: drawn.append(learning_curves(*given, **named))
    )
    compare(["env=cartpole", "aux=harmful", "seeds=5", "method=implicit"], ("ppo",), tmp_path, train=fake_train)
    assert drawn[0].get_suptitle() == "cartpole, auxiliary reward: harmful"


def test_a_run_that_fails_is_named_and_the_others_are_shown(tmp_path, fake_train, capsys, monkeypatch):
    monkeypatch.delitem(LEVELS, "add")
    with pytest.raises(ValueError, match="add"):
        compare(["aux=harmful", "seeds=3", "method=implicit"], ("ppo", "add"), tmp_path, train=fake_train)
    printed = capsys.readouterr().out
    assert "implicit" in printed
    assert "yes" not in printed  # nothing to be regretted while one of the two is missing
    assert (tmp_path / "comparison.png").exists()


@pytest.mark.parametrize(
    ("typed", "beside", "message"),
    [
        (["env=gridworld", "aux=hints"], ("ppo", "add"), "unknown auxiliary source of gridworld 'hints'"),
        (["env=cartpole", "method=add", "aux=none"], ("pbrs",), "method=pbrs"),
        (["env=gymnax", "env.id=Swimmer-misc"], ("ppo",), r"got aux=harmful: choose aux=none, or .* aux=function"),
        (["env=cartpole", "method=frozen", "reward_from=nowhere"], ("ppo",), "nowhere"),
        (["aux=language", "llm=oracle", "llm.function=nope.f"], ("ppo",), r"llm\.function"),
        (["aux=language", "llm=recorded", "llm.answers=/nope.jsonl"], ("ppo",), r"recorded answers '/nope\.jsonl'"),
    ],
)
def test_what_one_method_cannot_have_is_said_before_any_is_trained(typed, beside, message, tmp_path, fake_train):
    with pytest.raises((ValueError, ImportError), match=message):
        compare(typed, beside, tmp_path / "x", train=fake_train)
    assert fake_train.configs == {} and not (tmp_path / "x").exists()
