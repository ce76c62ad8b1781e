"""An episode as a GIF: a frame per step, and beside it what the run itself would say."""

import numpy as np
import pytest
from PIL import Image

import llmrl
from llmrl.results import video
from llmrl.runs import directory as runs
from llmrl.settings.config import EnvConfig
from llmrl.training.answers import listening
from llmrl.training.devices import seed_mesh
from llmrl.training.loop import initial_states, make_trainer

TINY = ("env=cartpole", "env.horizon=30", "ppo=tiny", "seeds=1", "total_steps=64", "progress=false", "devices=1")
ADDED = ("aux=[harmful,goals]", "llm=oracle", "llm.cache=null", "method=add", "method.goals.threshold=0.6")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run as its first checkpoint leaves it, of agents that have learned nothing: training would be compiled longer
    than all else here."""
    path = tmp_path_factory.mktemp("filmed")
    config = llmrl.compose(*TINY, *ADDED, f"run_dir={path}")
    trainer = make_trainer(config)
    with runs.open_run(config) as run, listening(config, trainer.env) as listener:
        states = initial_states(trainer, config, seed_mesh(config))
        runs.record(run, states, {"episode_return": np.zeros((1, 1), np.float32)}, 0, listener.table)
    return path


def test_a_run_is_filmed(run_dir, monkeypatch):
    shown = []
    monkeypatch.setattr(video, "told", lambda *given, told=video.told: shown.append(told(*given)) or shown[0])
    path = video.film(run_dir, seed=3)
    assert path == run_dir / "video.gif"
    (episode,) = shown
    steps = episode.rollout.steps
    length = steps.reward.shape[0]
    with Image.open(path) as gif:
        assert gif.format == "GIF" and gif.n_frames == length + 1
        assert gif.size == (video.SIZE[0] + video.PANEL, video.SIZE[1])
    ended = np.asarray(steps.terminated | steps.truncated)[:, 0]
    assert ended[-1] and not ended[:-1].any()
    assert episode.names == ("harmful", "goals")
    np.testing.assert_array_equal(episode.weight, np.ones((length, 2)))  # adding is full trust
    assert len(episode.captions) == len(episode.events) == len(episode.goals) == length
    assert {word.rpartition(" ")[2] for word in episode.events} <= {"left", "right"}
    paid = np.asarray(steps.aux)[:, 0, 1] > 0
    for t in np.flatnonzero(paid):
        assert episode.events[t] in episode.goals[t]  # what pays was suggested, and is so no more
        assert all(episode.events[t] not in later for later in episode.goals[t + 1 :])


def test_the_text_of_a_frame_has_everything(run_dir, monkeypatch):
    """The weight of the very step, too, where sources have weights."""
    shown, written = [], []
    monkeypatch.setattr(video, "told", lambda *given, told=video.told: shown.append(told(*given)) or shown[0])
    monkeypatch.setattr(video, "_frame", lambda picture, lines: written.append(dict(lines)) or picture)
    monkeypatch.setattr(video, "write_gif", lambda path, pictures: list(pictures))
    video.film(run_dir, seed=3)
    assert {"caption", "event", "suggested goals", "task reward"} < set(written[0])
    assert written[0]["auxiliary reward: harmful"].endswith("x weight 1.000")
    length = len(written) - 1
    assert next(iter(written[-1])).startswith(f"after {length} steps")
    weight = np.linspace(0.0, 1.0, 2 * length, dtype=np.float32).reshape(length, 2)
    written.clear()
    list(video.frames(shown[0]._replace(weight=weight), video.PICTURES["cartpole"]))
    assert written[0]["auxiliary reward: harmful"].endswith("x weight 0.000")
    assert written[length - 1]["auxiliary reward: goals"].endswith("x weight 1.000")
    written.clear()
    list(video.frames(shown[0]._replace(weight=None), video.PICTURES["cartpole"]))
    assert "weight" not in written[0]["auxiliary reward: goals"]


def test_who_has_no_picture_is_told_who_has(run_dir):
    with pytest.raises(ValueError, match=r"unknown environment with pictures 'gridworld'.*cartpole"):
        video.film(run_dir, EnvConfig(name="gridworld"))
