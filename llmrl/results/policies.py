"""A trained policy by itself: out of a run into one file, and from there to wherever it is to act.

llmrl.save_policy("runs/x", "policy.npz", seed=3)
policy = llmrl.load_policy("policy.npz")
action = policy.act(obs)                          # drawn, as in training
action = policy.act(obs, deterministic=True)      # the most probable one
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree

from llmrl.assembly.methods import make_method
from llmrl.assembly.parts import any_environment, policy_of
from llmrl.learner.problem import viewing
from llmrl.ops.distributions import sampling_noise
from llmrl.runs import directory as runs
from llmrl.settings.config import Config
from llmrl.settings.errors import BadValue
from llmrl.settings.validation import from_dict
from llmrl.training.arms import leaders
from llmrl.training.cores import in_float32
from llmrl.training.devices import state_shapes
from llmrl.training.loop import Result, make_trainer
from llmrl.types import Box, Codes, Discrete, EnvSpec, View

FORMAT = 1
"""Of the file; another one is refused by name."""


class TrainedPolicy(NamedTuple):
    """One seed's policy, ready to act.

    Attributes:
        act: ``(obs, key=None, *, deterministic=False) -> action``: one action for an observation [*obs], n for a batch
            [n, *obs]. An action is drawn from the policy's distribution, as in training: with ``key``, or without one
            by the policy's own generator, which goes on with every call. ``deterministic=True`` takes the most probable
            action. Compiled at its first use for each shape. Inside ``jit``, ``vmap`` or ``scan`` a draw needs ``key``.
        distribution: ``obs -> distribution``, for probabilities and entropies; shapes as for ``act``.
        params: the numbers, a pytree: the actor's, and what the policy sees of the learned reward, where it sees it.
        config: the run's settings.
        spec: the environment that it knows: observations, actions, horizon.
    """

    act: Callable[..., jax.Array]
    distribution: Callable[[Any], Any]
    params: PyTree
    config: Config
    spec: EnvSpec

    def __repr__(self) -> str:
        size, spec = sum(np.size(leaf) for leaf in jax.tree.leaves(self.params)), self.spec
        return (
            f"TrainedPolicy({spec.name}, method={self.config.method.name}: observations {list(spec.obs_shape)} to "
            f"{spec.action}, {size} numbers)"
        )


@in_float32
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
    spec = any_environment(config).spec
    named = _named(_params_of(states, config, seed))
    stored: dict[str, Any] = {f"leaf{i}": np.asarray(leaf) for i, (_, leaf) in enumerate(named)}
    header = {
        "format": FORMAT,
        "seed": int(seed),
        "config": asdict(config),
        "spec": asdict(spec),
        "sees_reward": make_method(config, spec).view is not None,
        "leaves": [[name, list(leaf.shape), leaf.dtype.name] for name, leaf in named],
        "sha256": _checksum(stored),
    }
    path = Path(path) if str(path).endswith(".npz") else Path(f"{path}.npz")
    buffer = io.BytesIO()
    np.savez(buffer, header=np.array(json.dumps(header, default=_plain)), **stored)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(buffer.getvalue())
    os.replace(temporary, path)
    return path


@in_float32
def load_policy(source: str | Path, seed: int | None = None, draw_seed: int = 0) -> TrainedPolicy:
    """A policy from a file of ``save_policy``, or straight from a run's directory. Nothing in a file is executed.

    A file is enough by itself. A directory's run needs its environment, and so the module of an environment of your
    own.

    Args:
        source: the file or the directory.
        seed: which of a directory's seeds, None takes the first; a file has one only, and None takes that.
        draw_seed: of the actions that ``act`` draws without a key; equal ones draw alike.

    Returns:
        The policy.

    Raises:
        ValueError: it is neither, is damaged, of another format, or does not fit its settings, the field is named; or
            it does not have that seed.
    """
    source = Path(source)
    if not (_is_int(draw_seed) and 0 <= draw_seed < 2**32):
        raise BadValue(f"draw_seed must be a whole number from 0 to {2**32 - 1}, got {draw_seed!r}")
    if source.is_dir():
        config, states = _trained(source)
        spec = any_environment(config).spec
        view = make_method(config, spec).view
        return _policy(config, spec, view, _params_of(states, config, 0 if seed is None else seed), draw_seed)
    if not source.is_file():
        raise BadValue(f"{source} is neither a policy's file nor a run's directory")
    header, stored = _read(source)
    if seed is not None and not (_is_int(seed) and seed == header["seed"]):
        raise BadValue(f"{source} holds the policy of seed {header['seed']} alone, got seed={seed!r}")
    config = from_dict(header["config"])
    # The first files had neither: there the environment and the method have to say it.
    spec = _spec_of(header["spec"]) if "spec" in header else any_environment(config).spec
    method = make_method(config, spec) if header.get("sees_reward", True) else None
    view = None if method is None else method.view
    like = jax.eval_shape(policy_of(config, spec, view).init, jax.random.key(0)), ()
    if method is not None and view is not None:
        like = like[0], tuple(jax.eval_shape(stream.transform.init, jax.random.key(0))[0] for stream in method.streams)
    return _policy(config, spec, view, _fitted(source, header["leaves"], stored, like), draw_seed)


def _fitted(source: Path, leaves: list[Any], stored: list[np.ndarray], like: tuple[PyTree, Any]) -> PyTree:
    """The stored numbers in the structure of ``like``; without the learned reward's where ``like`` has no place for
    them."""
    expected = [[name, list(leaf.shape), np.dtype(leaf.dtype).name] for name, leaf in _named(like)]
    if not like[1]:
        kept = [i for i, (name, *_) in enumerate(leaves) if not name.startswith("[1]")]
        leaves, stored = [leaves[i] for i in kept], [stored[i] for i in kept]
    for have, want in zip(leaves, expected, strict=False):
        if have != want:
            raise BadValue(f"{source} does not fit its own settings: it holds {have} where {want} is expected")
    if len(leaves) != len(expected):
        raise BadValue(f"{source} does not fit its own settings: {len(leaves)} fields, expected {len(expected)}")
    return jax.tree.unflatten(jax.tree.structure(like), [jnp.asarray(leaf) for leaf in stored])


def _policy(
    config: Config, spec: EnvSpec, view: View | None, params: tuple[PyTree, Any], draw_seed: int
) -> TrainedPolicy:
    actor, phis = params
    policy = viewing(policy_of(config, spec, view), view, phis)

    def drawn(actor, obs, key):
        batch = obs.shape[: obs.ndim - len(spec.obs_shape)]
        return policy.distribution(actor, obs).sample(sampling_noise(key, spec.action, batch))

    # Compiled here once: outside of ``jit`` every operation would be sent to the device by itself.
    likeliest = jax.jit(lambda actor, obs: policy.distribution(actor, obs).mode())
    with_key = jax.jit(drawn)
    numbered = jax.jit(
        lambda actor, obs, seed, count: drawn(actor, obs, jax.random.fold_in(jax.random.key(seed), count))
    )
    counts = itertools.count()

    def act(obs, key=None, *, deterministic: bool = False):
        obs = _observations(obs, spec.obs_shape)
        if deterministic:
            return likeliest(actor, obs)
        if key is not None:
            _check_key(key)
            return with_key(actor, obs, key)
        if isinstance(obs, Tracer):
            raise BadValue(
                "policy.act(obs) inside jit, vmap or scan would draw the same action at every call: pass a key, or "
                "deterministic=True"
            )
        return numbered(actor, obs, np.uint32(draw_seed), np.uint32(next(counts) % 2**32))

    def distribution(obs):
        return policy.distribution(actor, _observations(obs, spec.obs_shape))

    return TrainedPolicy(act, distribution, params if view is not None else (actor, ()), config, spec)


def _observations(obs: Any, shape: tuple[int, ...]) -> jax.Array:
    """An observation [*shape], or a batch of them, [n, *shape]."""
    batch = ", ".join(["n", *map(str, shape)])
    expected = f"the policy knows observations of shape {list(shape)}, or [{batch}] for a batch"
    try:
        obs = jnp.asarray(obs)
    except (TypeError, ValueError) as error:
        raise BadValue(f"{expected}; got {type(obs).__name__}, which is no array") from error
    if shape not in (obs.shape, obs.shape[1:]):
        raise BadValue(f"{expected}; got shape {list(obs.shape)}")
    if obs.size == 0:
        raise BadValue(f"{expected}; got shape {list(obs.shape)}, an empty batch")
    if not any(jnp.issubdtype(obs.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)):
        raise BadValue(f"the policy knows observations of real numbers; got dtype {obs.dtype.name}")
    return obs


def _check_key(key: Any) -> None:
    """Refuses what is no random key: one of ``jax.random.key``, or the numbers of one of ``jax.random.PRNGKey``."""
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    is_typed = dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) and shape == ()
    if not is_typed and (dtype != jnp.uint32 or shape != jax.eval_shape(jax.random.PRNGKey, 0).shape):
        got = repr(key) if dtype is None else f"{dtype}{list(key.shape)}"
        raise BadValue(f"policy.act(obs, key) needs one random key, as jax.random.key(0) makes it; got {got}")


def _trained(source: Result | str | Path) -> tuple[Config, Any]:
    """Settings and last states, [seeds]."""
    if isinstance(source, Result):
        return source.config, source.state
    run = runs.load_trained(source)
    return run.config, runs.load_state(run, state_shapes(make_trainer(run.config), run.config))[0]


def _params_of(states: Any, config: Config, seed: int) -> PyTree:
    _check_seed(seed, config.seeds)
    states = leaders(states)
    return jax.tree.map(lambda x: x[seed], (states.params.actor, states.phis))


def _check_seed(seed: Any, num_seeds: int) -> None:
    if not (_is_int(seed) and 0 <= seed < num_seeds):
        raise BadValue(f"seed must be one of the run's, 0 to {num_seeds - 1}, got {seed!r}")


def _is_int(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _named(tree: PyTree) -> list[tuple[str, Any]]:
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]]


def _plain(value: Any) -> Any:
    """What JSON has no word for: numpy's numbers, and arrays as lists."""
    return np.asarray(value).tolist()


def _spec_of(values: dict[str, Any]) -> EnvSpec:
    """An ``EnvSpec`` from what ``asdict`` made of it, and JSON of that."""
    action = Discrete(**values["action"]) if "num" in values["action"] else Box(**values["action"])
    encoding = tuple(Codes(code["count"], _tuples(code["rows"])) for code in values["encoding"])
    others = {name: _tuples(value) for name, value in values.items() if name not in ("action", "encoding")}
    return EnvSpec(**others, action=action, encoding=encoding)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _read(path: Path) -> tuple[dict[str, Any], list[np.ndarray]]:
    """A file's header and its numbers, in their order."""
    try:
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(str(file["header"]))
            stored = {f"leaf{i}": file[f"leaf{i}"] for i in range(len(header["leaves"]))}
    except Exception as error:
        raise BadValue(f"{path} is no policy's file, or is damaged: {type(error).__name__}: {error}") from error
    if header.get("format") != FORMAT:
        raise BadValue(f"{path} has format={header.get('format')}, this llmrl reads format={FORMAT}")
    if _checksum(stored) != header["sha256"]:
        raise BadValue(f"{path} is damaged: its numbers are not those that were saved")
    return header, list(stored.values())


def _checksum(stored: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, array in stored.items():
        digest.update(f"{name} {array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
