"""A trained policy by itself: out of a run into one file, and from there to wherever it is to act.

llmrl.save_policy("runs/x", "policy.npz", seed=3)
policy = llmrl.load_policy("policy.npz")
action = policy.act(obs)                          # the mode
action = policy.act(obs, jax.random.key(0))       # as in training
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from llmrl import runs
from llmrl.config import Config
from llmrl.ops.distributions import sampling_noise
from llmrl.train import Result, acting_policy, any_environment, make_trainer, state_shapes
from llmrl.types import EnvSpec
from llmrl.validation import from_dict

FORMAT = 1
"""Of the file; another one is refused by name."""


class TrainedPolicy(NamedTuple):
    """One seed's policy, ready to act.

    Attributes:
        act: ``(obs, key=None) -> action``; observations [*obs] or [n, *obs], one action for each. Without a key the
            distribution's mode, with one a sample. Pure jax: it may be compiled and vmapped.
        distribution: ``obs -> distribution``, for probabilities and entropies.
        params: the numbers, a pytree.
        config: the run's settings.
        spec: the environment that it knows: observations, actions, horizon.
    """

    act: Callable[..., jax.Array]
    distribution: Callable[[jax.Array], Any]
    params: PyTree
    config: Config
    spec: EnvSpec


def save_policy(source: Result | str | Path, path: str | Path, seed: int = 0) -> Path:
    """Writes one seed's policy to a file of its own: its numbers, their names, and the settings they belong to.

    Args:
        source: what ``llmrl.train`` returned, or a run's directory.
        path: the file; ``.npz`` is added where it has no such ending.
        seed: which of the run's seeds, from 0.

    Returns:
        The file.

    Raises:
        ValueError: there is no such seed, or no run.
    """
    config, states = _trained(source)
    params = _params_of(states, config, seed)
    named = _named(params)
    stored: dict[str, Any] = {f"leaf{i}": np.asarray(leaf) for i, (_, leaf) in enumerate(named)}
    header = {
        "format": FORMAT,
        "seed": seed,
        "config": asdict(config),
        "leaves": [[name, list(leaf.shape), leaf.dtype.name] for name, leaf in named],
        "sha256": _checksum(stored),
    }
    path = Path(path) if str(path).endswith(".npz") else Path(f"{path}.npz")
    buffer = io.BytesIO()
    np.savez(buffer, header=np.array(json.dumps(header)), **stored)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(buffer.getvalue())
    os.replace(temporary, path)
    return path


def load_policy(source: str | Path, seed: int = 0) -> TrainedPolicy:
    """A policy from a file of ``save_policy``, or straight from a run's directory. Nothing in a file is executed.

    Args:
        source: the file or the directory.
        seed: which of a directory's seeds; a file has one only.

    Returns:
        The policy.

    Raises:
        ValueError: it is neither, is damaged, of another format, or does not fit its settings; the field is named.
    """
    source = Path(source)
    if source.is_dir():
        config, states = _trained(source)
        return _policy(config, _params_of(states, config, seed))
    if not source.is_file():
        raise ValueError(f"{source} is neither a policy's file nor a run's directory")
    config, leaves, stored = _read(source)
    like = _template(config)
    expected = [[name, list(leaf.shape), np.dtype(leaf.dtype).name] for name, leaf in _named(like)]
    for have, want in zip(leaves, expected, strict=False):
        if have != want:
            raise ValueError(f"{source} does not fit its own settings: it holds {have} where {want} is expected")
    if len(leaves) != len(expected):
        raise ValueError(f"{source} does not fit its own settings: {len(leaves)} fields, expected {len(expected)}")
    return _policy(config, jax.tree.unflatten(jax.tree.structure(like), [jnp.asarray(leaf) for leaf in stored]))


def _policy(config: Config, params: PyTree) -> TrainedPolicy:
    spec = any_environment(config).spec
    policy = acting_policy(config, spec)

    def distribution(obs):
        return policy.distribution(params, jnp.asarray(obs))

    def act(obs, key: PRNGKeyArray | None = None):
        obs = jnp.asarray(obs)
        found = distribution(obs)
        if key is None:
            return found.mode()
        return found.sample(sampling_noise(key, spec.action, obs.shape[: obs.ndim - len(spec.obs_shape)]))

    return TrainedPolicy(act, distribution, params, config, spec)


def _trained(source: Result | str | Path) -> tuple[Config, Any]:
    """Settings and last states, [seeds]."""
    if isinstance(source, Result):
        return source.config, source.state
    run = runs.load_run(source)
    return run.config, runs.load_state(run, state_shapes(make_trainer(run.config), run.config))[0]


def _params_of(states: Any, config: Config, seed: int) -> PyTree:
    if not 0 <= seed < config.seeds:
        raise ValueError(f"seed must be one of the run's, 0 to {config.seeds - 1}, got {seed}")
    return jax.tree.map(lambda x: x[seed], (states.params.actor, states.phis))


def _template(config: Config) -> PyTree:
    trainer = make_trainer(config)
    state = jax.eval_shape(trainer.init, jax.random.key(0), trainer.numbers)
    return state.params.actor, state.phis


def _named(tree: PyTree) -> list[tuple[str, Any]]:
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]]


def _read(path: Path) -> tuple[Config, list[Any], list[np.ndarray]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(str(file["header"]))
            stored = {f"leaf{i}": file[f"leaf{i}"] for i in range(len(header["leaves"]))}
    except Exception as error:
        raise ValueError(f"{path} is no policy's file, or is damaged: {type(error).__name__}: {error}") from error
    if header.get("format") != FORMAT:
        raise ValueError(f"{path} has format={header.get('format')}, this llmrl reads format={FORMAT}")
    if _checksum(stored) != header["sha256"]:
        raise ValueError(f"{path} is damaged: its numbers are not those that were saved")
    return from_dict(header["config"]), header["leaves"], list(stored.values())


def _checksum(stored: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, array in stored.items():
        digest.update(f"{name} {array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
