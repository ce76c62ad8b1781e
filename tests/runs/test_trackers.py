"""Dashboards get the rows of ``metrics.csv``, each seed by itself, all of them once, whatever happens in between."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

import llmrl
from llmrl.runs import directory as runs
from llmrl.runs import metrics, trackers
from llmrl.settings.config import Config, PPOConfig, TrackConfig


def config(path, **track):
    return Config(ppo=PPOConfig(num_envs=4, num_steps=4), seeds=2, run_dir=str(path), track=TrackConfig(**track))


def chunk(first, iterations=2):
    curve = np.arange(first, first + iterations, dtype=np.float32) + 10 * np.arange(2, dtype=np.float32)[:, None]
    return {"episode_return": curve, "meta_residual": np.full_like(curve, np.nan)}


def grow(run, first):
    metrics.append(run.metrics_path, chunk(first), first, 16)


@pytest.fixture
def told(monkeypatch):
    """Rows that a stand-in for a tracker was given."""
    import contextlib

    rows = []

    @contextlib.contextmanager
    def stand_in(path, seeds, sent, track, settings):
        assert settings["seeds"] == seeds
        yield lambda seed, steps, row: rows.append((seed, steps, row))

    monkeypatch.setitem(trackers.TRACKERS, "tensorboard", stand_in)
    return rows


def test_every_seeds_rows_are_sent_once_under_the_fields_names(tmp_path, told):
    with runs.open_run(config(tmp_path, tensorboard=True)) as run, trackers.tracking(run.config) as track:
        track()
        grow(run, 0)
        track()
        track()
        grow(run, 2)
        track()
    assert told == [
        (seed, (i + 1) * 16, {"charts/episodic_return": 10.0 * seed + i}) for i in range(4) for seed in range(2)
    ]


def test_a_run_that_goes_on_sends_what_is_missing(tmp_path, told):
    with runs.open_run(config(tmp_path, tensorboard=True)) as run:
        with trackers.tracking(run.config) as track:
            grow(run, 0)
            track()
        grow(run, 2)  # and then the process was killed
    del told[:]
    with runs.open_run(config(tmp_path, tensorboard=True)) as run, trackers.tracking(run.config) as track:
        track()
    assert [steps for _, steps, _ in told] == [48, 48, 64, 64]


def test_a_tracker_may_be_changed_while_a_run_rests(tmp_path):
    with runs.open_run(config(tmp_path)) as run:
        runs.record(run, {"w": jnp.ones((2, 3))}, chunk(0), 0)
    with runs.open_run(config(tmp_path, wandb=True, project="other")) as run:
        assert not run.finished


def test_every_metric_has_a_name():
    for name, expected in (
        ("episode_return", "charts/episodic_return"),
        ("clip_fraction", "losses/clipfrac"),
        ("weight_mean_active/helpful", "trust/weight_mean_active/helpful"),
        ("influence/helpful", "trust/influence/helpful"),
        ("meta_residual", "meta/meta_residual"),
        ("language_cost", "language/language_cost"),
        ("anything", "other/anything"),
    ):
        assert trackers.dashboard_name(name) == expected


def test_trackers_are_chosen_like_everything_else():
    assert llmrl.compose().track == TrackConfig()
    assert llmrl.compose("track=tensorboard").track.tensorboard
    both = llmrl.compose("track=[tensorboard,wandb]", "track.project=mine").track
    assert (both.tensorboard, both.wandb, both.project, both.mode) == (True, True, "mine", "offline")
    with pytest.raises(ValueError, match="nearest: 'offline'"):
        llmrl.compose("track=wandb", "track.mode=ofline")
    with pytest.raises(ValueError, match="unknown tracker 'tensorbord'; nearest: 'tensorboard'"):
        llmrl.compose("track=tensorbord")
    with pytest.raises(ValueError, match="needs a run_dir"):
        llmrl.train(dataclasses.replace(llmrl.compose("ppo=tiny", "seeds=1"), track=TrackConfig(tensorboard=True)))


def test_a_tracker_that_is_not_installed_says_what_to_install(tmp_path, monkeypatch):
    import sys

    for name, package in (("tensorboard", "tensorboardX"), ("wandb", "wandb")):
        monkeypatch.setitem(sys.modules, package, None)
        with (
            runs.open_run(config(tmp_path / name, **{name: True})) as run,
            pytest.raises(ValueError, match=rf"track={name} needs the package {package}: pip install -e '.\[track\]'"),
            trackers.tracking(run.config),
        ):
            pass


def test_tensorboard_has_a_directory_for_every_seed(tmp_path):
    pytest.importorskip("tensorboardX")
    for first in (0, 2):
        with runs.open_run(config(tmp_path, tensorboard=True)) as run, trackers.tracking(run.config) as track:
            grow(run, first)
            track()
    for seed in range(2):
        written = b"".join(file.read_bytes() for file in (tmp_path / "tensorboard" / f"seed{seed}").iterdir())
        assert written.count(b"charts/episodic_return") == 4
        assert b"num_envs" in written  # the settings
    assert json.loads((tmp_path / "tracked.json").read_text()) == {"tensorboard": 4}


@pytest.mark.slow
def test_weights_and_biases_keeps_a_run_for_every_seed_and_no_key(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    key = "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789abcdefSECRET")
    with runs.open_run(config(tmp_path, wandb=True)) as run, trackers.tracking(run.config) as track:
        grow(run, 0)
        track()
    kept = list((tmp_path / "wandb").glob("offline-run-*"))
    assert len(kept) == 2
    everything = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert b"charts/episodic_return" in everything
    assert key.encode() not in everything and b"SECRET" not in everything
