"""``llmrl evaluate video=true``: an episode as a GIF, with what was said about it and what was made of it beside it."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from jaxtyping import Array, Float, PyTree
from PIL import Image, ImageDraw, ImageFont

from llmrl.assembly.parts import Parts, acting_policy, any_environment, build_to_play
from llmrl.envs import GOALS
from llmrl.envs.base import key_of_seed
from llmrl.language import Table
from llmrl.learner.rollout import with_captions
from llmrl.learner.streams import stream_states
from llmrl.nets import Policy
from llmrl.ops.distributions import sampling_noise
from llmrl.results.evaluate import same_task, trained_states
from llmrl.results.pictures import DRAWN_BY_ITSELF, PICTURES, SIZE, of_pixels
from llmrl.rewards import SourceMemory, frozen
from llmrl.runs import directory as runs
from llmrl.settings.config import Config, EnvConfig
from llmrl.settings.errors import unknown
from llmrl.training.cores import in_float32
from llmrl.training.iteration import TrainState
from llmrl.types import Environment, HostEnvironment, Rollout, TimeStep, Transition

MOST_FRAMES = 1000
"""Longer episodes are shown up to here."""
MILLISECONDS = 160
PANEL = 470
"""Width of the text, in pixels."""


class Shown(NamedTuple):
    """An episode, and what is told of each step; arrays [t] or [t, m].

    Attributes:
        rollout: the episode as a rollout of one environment, sources filled in.
        names: the sources' names.
        weight: how far each source was trusted; None where that is not learned.
        advice: share of advice of each source, from 0 to 1; 0 where advice is off.
        captions, events: the state acted in and what was done, in words; "" where there are none.
        goals: what was suggested in the state and not done yet in this episode, in words.
    """

    rollout: Rollout
    names: tuple[str, ...]
    weight: Float[np.ndarray, "t m"] | None
    advice: Float[np.ndarray, " m"]
    captions: Sequence[str]
    events: Sequence[str]
    goals: Sequence[Sequence[str]]


@in_float32
def film(run_dir: str | Path, env: EnvConfig | None = None, seed: int = 0, out: str | Path | None = None) -> Path:
    """Plays one episode with the first seed's policy, actions sampled as in training, and writes it as a GIF.

    Args:
        run_dir: the run's directory; an unfinished run is shown as far as it is.
        env: where to play; None plays in the run's own environment.
        seed: of the episode.
        out: the file; ``video.gif`` in the run's directory where not given.

    Returns:
        The file.

    Raises:
        ValueError: as ``evaluate``, or this environment has no pictures.
    """
    run = runs.load_trained(run_dir)
    chosen = run.config.env if env is None else same_task(env, run.config.env)
    if chosen.name not in (*PICTURES, *DRAWN_BY_ITSELF) or chosen.observation == "one_hot":
        raise unknown("environment with pictures", f"{chosen.name} {chosen.observation or ''}".strip(), PICTURES)
    # A single environment stands for all of a rollout's; no network's shape depends on their number.
    config = replace(run.config, env=chosen)
    place = any_environment(config)
    states, iterations = trained_states(run)
    state = jax.tree.map(lambda x: x[0], states)
    table, _ = runs.restore_language(run, iterations)
    policy = acting_policy(run.config, any_environment(run.config).spec)
    pictures: list[Any] | None = [] if chosen.name in DRAWN_BY_ITSELF else None
    steps = played(place, policy, (state.params.actor, state.phis), seed, pictures)
    shown = told(config, place, state, steps, table)
    path = Path(out or run.path / "video.gif")
    in_order = iter(pictures or ())
    write_gif(path, frames(shown, PICTURES[chosen.name] if pictures is None else lambda _: next(in_order)))
    return path


# --- the episode ------------------------------------------------------------------------------------------------------


def played(
    place: Environment | HostEnvironment,
    policy: Policy,
    params: PyTree,
    seed: int,
    pictures: list[Image.Image] | None = None,
) -> Transition:
    """One episode, at most ``MOST_FRAMES`` steps of it, [t, 1]; ``pictures`` is filled with what a game that draws
    itself showed at first and after each step."""
    reset_key, act_key, step_key = jax.random.split(key_of_seed(seed), 3)

    @jax.jit
    def act(obs, number):
        distribution = policy.distribution(params, obs)
        action = distribution.sample(sampling_noise(jax.random.fold_in(act_key, number), place.spec.action, ()))
        return action, distribution.log_prob(action)

    if isinstance(place, HostEnvironment):
        opened = place.opened(place.sources) if pictures is None else place.opened(place.sources, drawn=True)
        with opened as worlds:
            first = worlds.reset([0], [seed])[0]

            def look() -> None:
                if pictures is not None and worlds.picture is not None:
                    pictures.append(of_pixels(worlds.picture(0)))

            def on_host(number: int, action: Array) -> TimeStep:
                result = worlds.step([0], np.asarray(action)[None])
                look()
                return jax.tree.map(lambda x: np.asarray(x)[0], result)

            look()

            return _followed(first, act, on_host, place.spec.horizon)
    state, first = jax.jit(place.reset)(reset_key)
    step = jax.jit(lambda state, action, number: place.step(jax.random.fold_in(step_key, number), state, action))
    now = [state]

    def compiled(number: int, action: Array) -> TimeStep:
        now[0], result = step(now[0], action, number)
        return result

    return _followed(first, act, compiled, place.spec.horizon)


def _followed(obs: Any, act: Callable, step: Callable[[int, Array], TimeStep], horizon: int) -> Transition:
    steps: list[Transition] = []
    while len(steps) < min(horizon, MOST_FRAMES):
        action, log_prob = act(obs, len(steps))
        result = step(len(steps), action)
        given: dict[str, Any] = {**result._asdict(), "obs": obs, "action": action, "log_prob": log_prob}
        steps.append(Transition(**given, next_obs=result.obs))
        obs = result.obs
        if result.terminated or result.truncated:
            break
    return jax.tree.map(lambda *x: jnp.stack(x)[:, None], *steps)


def told(
    config: Config, place: Environment | HostEnvironment, state: TrainState, steps: Transition, table: Table | None
) -> Shown:
    """What a trained run makes of an episode: its sources filled in, its weights, and the words."""
    steps = with_captions(place, steps)
    parts = build_to_play(config, place, num_envs=1)
    memory = parts.sources.restarted(SourceMemory(state.heard, state.late))
    rollout, _, _ = parts.sources.annotate(memory, Rollout(steps, steps.action[-1]), table)
    names, weight = place.spec.aux_names, _weights(parts, state, rollout)
    advice = _advice_share(parts, state, rollout, names)
    keys, happened = rollout.steps.state_key[:, 0].tolist(), rollout.steps.event[:, 0].tolist()
    words = place.captioner
    if words is None:
        return Shown(rollout, names, weight, advice, [""] * len(keys), [""] * len(keys), [()] * len(keys))
    goals = list(_goals(config, parts, words.events, keys, happened, table))
    captions = [words.describe(key) for key in keys]
    return Shown(rollout, names, weight, advice, captions, [words.events[event] for event in happened], goals)


def _weights(parts: Parts, state: TrainState, rollout: Rollout) -> Float[np.ndarray, "t m"] | None:
    for stream, phi, noted in stream_states(parts.inner.streams, state.phis, state.transform_states):
        weights = frozen(stream.transform).weights  # a solved task's own units would leave nothing to see
        if weights is not None:
            return np.asarray(weights(phi, noted, rollout).weight)[:, 0]
    return None


def _advice_share(parts: Parts, state: TrainState, rollout: Rollout, names: Sequence[str]) -> Float[np.ndarray, " m"]:
    streams = stream_states(parts.inner.streams, state.phis, state.transform_states)
    reports = [stream.transform.report(phi, noted, rollout) for stream, phi, noted in streams]
    of = {name: value for report in reports for name, value in report.items()}
    return np.array([float(of.get(f"advice_share/{name}", 0.0)) for name in names])


def _goals(
    config: Config,
    parts: Parts,
    events: Sequence[str],
    keys: Sequence[int],
    happened: Sequence[int],
    table: Table | None,
) -> Iterator[list[str]]:
    """What is suggested before each step, without what this episode has been paid for already."""
    suggested = parts.sources.suggestions(table)
    if GOALS not in config.aux.sources:
        yield from ([] for _ in keys)
        return
    every = jnp.broadcast_to(jnp.arange(len(events), dtype=jnp.int32), (len(keys), len(events)))
    asked = jnp.broadcast_to(jnp.asarray(keys, jnp.uint32)[:, None], every.shape)
    wanted = np.asarray(suggested(asked, every)[0]) > config.method.goals.threshold
    done: set[int] = set()
    for t, event in enumerate(happened):
        yield [events[e] for e in np.flatnonzero(wanted[t]).tolist() if e not in done]
        if wanted[t, event]:
            done.add(event)


# --- the frames -------------------------------------------------------------------------------------------------------


def frames(shown: Shown, draw: Callable[[np.ndarray], Image.Image]) -> Iterator[Image.Image]:
    """Each step: the picture it was taken in, and what there is to say beside it; last what it led to."""
    steps = jax.tree.map(lambda x: np.asarray(x)[:, 0], shown.rollout.steps)
    paid = np.cumsum(steps.reward)
    length = len(steps.reward)
    for t in range(length):
        yield _frame(draw(steps.obs[t]), _lines(shown, steps, paid, t))
    end = "the task is done" if steps.success[-1] else "the time is up" if steps.truncated[-1] else "the end"
    said = [(f"after {length} steps: {end}", ""), ("task reward, summed", f"{paid[-1]:g}")]
    yield _frame(draw(steps.next_obs[-1]), said)


def _lines(shown: Shown, steps: Any, paid: np.ndarray, t: int) -> list[tuple[str, str]]:
    """(heading, text) of each paragraph."""
    said = [(f"step {t + 1} of {len(steps.reward)}", "")]
    if shown.captions[t]:
        said += [("caption", shown.captions[t]), ("event", shown.events[t])]
    if GOALS in shown.names:
        said.append(("suggested goals", ", ".join(shown.goals[t]) or "none left"))
    said.append(("task reward", f"{steps.reward[t]:g}   (sum {paid[t]:g})"))
    for m, name in enumerate(shown.names):
        weight = "" if shown.weight is None else f"   x weight {shown.weight[t, m]:.3f}"
        advice = f", as advice x {shown.advice[m]:.3f}" if shown.advice[m] else ""
        said.append((f"auxiliary reward: {name}", f"{steps.aux[t, m]:.3g}{weight}{advice}"))
    return said


def _frame(picture: Image.Image, lines: Sequence[tuple[str, str]]) -> Image.Image:
    frame = Image.new("RGB", (SIZE[0] + PANEL, SIZE[1]), "white")
    frame.paste(picture, (0, 0))
    draw, left, top = ImageDraw.Draw(frame), SIZE[0] + 16, 12
    for heading, text in lines:
        draw.text((left, top), heading, fill="#777777", font=_font(13))
        top += 19
        for line in textwrap.wrap(text, 52):
            draw.text((left, top), line, fill="black", font=_font(15))
            top += 20
        top += 7
    return frame


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def write_gif(path: Path, pictures: Iterator[Image.Image]) -> None:
    """All pictures in order, the last for two seconds; then again from the first."""
    # One palette for all: the first picture's may lack what comes later, so it is taken from a mixture of some.
    every = list(pictures)
    mixture = Image.new("RGB", (every[0].width, every[0].height * min(len(every), 8)))
    for place, index in enumerate(np.linspace(0, len(every) - 1, min(len(every), 8)).astype(int).tolist()):
        mixture.paste(every[index], (0, place * every[0].height))
    palette = mixture.quantize(256)
    flat = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in every]
    durations = [MILLISECONDS] * (len(flat) - 1) + [2000]
    path.parent.mkdir(parents=True, exist_ok=True)
    flat[0].save(path, save_all=True, append_images=flat[1:], duration=durations, loop=0, optimize=False)
