"""Labelling ahead of time: a language model is asked about states before anything is trained, and the answers kept."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from llmrl.assembly.parts import any_environment, policy_of
from llmrl.language import (
    Provider,
    Table,
    empty,
    fill_table,
    fill_table_from,
    make_provider,
    questions_for,
    size,
)
from llmrl.language.lines import header
from llmrl.language.question import questions
from llmrl.language.table import as_dict
from llmrl.learner.rollout import collect, reset_all
from llmrl.learner.rollout_host import play_rollouts
from llmrl.runs.metrics import replace_file
from llmrl.settings.config import AuxConfig, Config, LLMConfig
from llmrl.settings.errors import BadValue
from llmrl.training.answers import check_endpoint, recorded_as
from llmrl.training.cores import in_float32
from llmrl.training.progress import plural
from llmrl.types import Captioner, Environment, HostEnvironment

EXPLORERS = 16
"""Environments that look for states side by side."""

Show = Callable[[str], None]
"""Tells the user, one line or paragraph at a time."""


@in_float32
def label(
    config: Config,
    show: Show,
    *,
    limit: int | None = None,
    steps: int = 16_384,
    dry_run: bool = False,
    out: str | None = None,
    questions: str | None = None,
    results: str | None = None,
) -> Table:
    """Shows the first prompt and its answer, and then asks about all other states.

    Everything that is answered goes into ``config.llm.cache`` at once, so nothing is lost by an interruption, and
    nothing is paid for twice; training finds it there.

    Args:
        config: environment, captioner and language model.
        show: tells the user.
        limit: states to ask about at most; None asks about all.
        steps: where not all states can be listed, or not all are wanted: environment steps of an untrained policy; the
            states that it meets most often are asked about first.
        dry_run: stop after the first state.
        out: file for the answers, which ``llm=recorded llm.answers=...`` reads.
        questions: file for the questions that the cache cannot answer, as batch runners read them; nothing is asked.
        results: file of a batch runner's results, which are read in place of asking.

    Returns:
        The answers; none with ``questions``.

    Raises:
        ValueError: the environment has no words for its states, it runs in Python and they cannot be listed, or a
            setting is wrong.
        RuntimeError: the endpoint cannot be asked, or none of the results can be used.
    """
    _check(dry_run=dry_run, questions=questions, results=results, out=out)
    env = any_environment(replace(config, aux=AuxConfig()))
    captioner: Any = env.captioner  # whose callable fields pyright takes for methods
    if captioner is None:
        raise BadValue(f"{env.spec.name} has no words for its states: give captioner=my_module.captioner")
    name = recorded_as(config, captioner)
    if not (questions or results):
        check_endpoint(config.llm, captioner, name)
    keys = _states(config, env, captioner, steps, limit)
    llm = replace(_without_key(config.llm) if questions or results else config.llm, capacity=len(keys))
    if questions:
        rows = questions_for(llm, captioner, keys, name)
        _write_lines(Path(questions), rows)
        show(f"{plural(len(rows), 'question')} about {len(keys):,} states in {questions}; nothing was asked")
        return empty(len(keys), len(captioner.events))
    if results:
        table, summary = fill_table_from(results, llm, captioner, keys, name)
        show(summary)
    else:
        table = _ask(llm, captioner, keys, name, show, dry_run)
    if dry_run:
        return table
    where = "" if out is None else f"; answers in {out}"
    if out is not None:
        _write(Path(out), captioner, make_provider(llm, captioner, name), config, table)
    show(f"{size(table):,} of {len(keys):,} states are answered{where}")
    return table


def _check(*, dry_run: bool, questions: str | None, results: str | None, out: str | None) -> None:
    one_of = {"dry_run": dry_run, "questions": questions, "results": results}
    given = [name for name, value in one_of.items() if value]
    if len(given) > 1:
        raise BadValue(f"give one of dry_run, questions and results, got {' and '.join(given)}")
    if questions and out:
        raise BadValue("questions=... asks nothing, so there are no answers for out=...: give it with results=...")


def _without_key(llm: LLMConfig) -> LLMConfig:
    """Settings for a batch: of an endpoint it asks embeddings at most, which may need a key."""
    return llm if llm.score == "embedding_similarity" else replace(llm, key_variable=None)


def _ask(llm: LLMConfig, captioner: Any, keys: list[int], name: str, show: Show, dry_run: bool) -> Table:
    """Asks about one state, shows the prompt and the answer, and asks about the others."""
    provider = make_provider(llm, captioner, name)
    first = questions(provider, captioner, keys[0])
    show(_prompt(first[0].system, first[0].user) or f"state: {first[0].state}")
    table = fill_table(llm, captioner, keys[:1], None, name)
    show(_scores(captioner, table, keys[0]))
    if dry_run:
        asked = plural(len(first) * len(keys), "question")
        each = plural(len(first), "question")
        show(f"{len(keys):,} states at {each} each, {asked} in all; nothing more was asked (dry_run=true)")
        return table
    return fill_table(llm, captioner, keys, None, name, _now_and_then(show, len(keys)))


def _states(
    config: Config, env: Environment | HostEnvironment, captioner: Any, steps: int, limit: int | None
) -> list[int]:
    listed = [] if captioner.keys is None else list(captioner.keys())
    if listed and (limit is None or limit >= len(listed)):
        return listed
    if isinstance(env, HostEnvironment) and captioner.state_key is None:
        raise BadValue(
            f"{env.spec.name} runs in Python and puts its states into words itself: label a compiled environment "
            "with the same captions, such as craftax_classic for crafter"
        )
    met = visited(config, env, steps)
    return [*met, *sorted(set(listed) - set(met))][:limit]


def visited(config: Config, env: Environment | HostEnvironment, steps: int) -> list[int]:
    """Keys of the states that an untrained policy meets, most frequent first."""
    policy = policy_of(config, env.spec)
    actor_key, env_key, act_key = jax.random.split(jax.random.key(config.seed), 3)
    num_steps = -(-steps // EXPLORERS)
    actor = policy.init(actor_key)
    if isinstance(env, HostEnvironment):
        alone = jax.tree.map(lambda x: x[None], actor)
        rollout = play_rollouts(env, policy, alone, act_key[None], num_steps, EXPLORERS)
    else:
        acting = reset_all(env, env_key, EXPLORERS, num_steps)
        rollout = jax.jit(lambda actor: collect(env, policy, actor, acting, act_key, num_steps)[1])(actor)
    keys, counts = np.unique(np.asarray(rollout.steps.state_key), return_counts=True)
    return [int(key) for key in keys[np.argsort(-counts, kind="stable")]]


def _prompt(system: str, user: str) -> str:
    return f"--- system\n{system}\n--- user\n{user}\n---" if user else ""


def _scores(captioner: Captioner, table: Table, key: int) -> str:
    answers = as_dict(table)
    if key not in answers:
        return "no usable answer"
    return "\n".join(f"{score:.3f}  {event}" for event, score in zip(captioner.events, answers[key], strict=True))


def _now_and_then(show: Show, states: int, seconds: float = 5.0) -> Callable[[dict[str, float]], None]:
    """How far labelling is, in a line every few seconds."""
    shown = [time.monotonic()]

    def progress(stats: dict[str, float]) -> None:
        if time.monotonic() - shown[0] < seconds:
            return
        shown[0] = time.monotonic()
        told = {"from cache": "cache_hits", "failures": "failures", "tokens": "tokens"}
        rest = "".join(f", {stats[name]:,.0f} {word}" for word, name in told.items() if stats[name])
        rest += f", cost {stats['cost']:.3g}" if stats["cost"] else ""
        show(f"{stats['answered']:.0f} of {states} states{rest}")

    return progress


def _write(path: Path, captioner: Captioner, provider: Provider, config: Config, table: Table) -> None:
    first = header(f"llmrl label, {provider.identity}") | {"date": time.strftime("%Y-%m-%d")}
    if provider.model:
        first |= {"model": provider.model, "prompt": provider.prompt_identity}
    if config.llm.noise or config.llm.adversarial:
        first["made_wrong"] = 1.0 if config.llm.adversarial else config.llm.noise
    rows: Sequence[dict[str, Any]] = [
        {
            "state": captioner.describe(key),
            "events": list(captioner.events),
            "scores": [float(f"{s:.4g}") for s in scores],
        }
        for key, scores in as_dict(table).items()
    ]
    _write_lines(path, [first, *rows])


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, "".join(json.dumps(row) + "\n" for row in rows))
