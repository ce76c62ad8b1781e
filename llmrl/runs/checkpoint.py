"""Checkpoints of any pytree of arrays, written by orbax and guarded by checksums. Host only.

Orbax survives a kill or a full disk, but gives damaged numbers back without a word. So every file's SHA-256 goes into a
manifest beside it, is verified before anything is restored, and the step before is taken where it does not agree.

    checkpoints/<step>/state/      what orbax writes
    checkpoints/<step>/manifest    its own SHA-256, then as JSON: files with theirs, leaves with name, shape, dtype
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from llmrl.settings.errors import BadValue

FORMAT = 1
"""Of the manifest; another one is refused by name."""

KEPT = 2
"""Steps kept: the last, and one to fall back to."""


class Damaged(BadValue):
    """A checkpoint that is not what was written."""


def save(directory: Path, step: int, state: PyTree) -> None:
    """Writes a checkpoint atomically and removes those before the last ``KEPT``.

    Args:
        directory: all of a run's checkpoints.
        step: its number; a checkpoint of the same number is replaced.
        state: any pytree of arrays and PRNG keys.

    Raises:
        OSError: it cannot be written; the checkpoints before it are as they were.
    """
    temporary, final = directory / f".{step}.tmp", directory / str(step)
    for leftover in directory.glob(".*.tmp"):
        shutil.rmtree(leftover)
    temporary.mkdir(parents=True)
    try:
        _write(temporary, state)
        if final.exists():
            shutil.rmtree(final)
        os.rename(temporary, final)
    except Exception:
        shutil.rmtree(temporary, ignore_errors=True)  # where the disk is full, half a checkpoint is in the way
        raise
    for old in steps(directory)[:-KEPT]:
        shutil.rmtree(directory / str(old))


def _write(folder: Path, state: PyTree) -> None:
    leaves = _named_leaves(state)
    # Orbax refuses arrays without elements, which is no loss: their shape says all there is to say.
    arrays = {str(i): array for i, (_, array) in enumerate(leaves) if array.size}
    try:
        with _plain_path(folder) as plain:
            _checkpointer().save(plain / "state", arrays)
    except Exception as error:
        if not (reason := _disk_trouble(error)):
            raise
        raise OSError(reason, os.strerror(reason), str(folder)) from error
    manifest = {
        "format": FORMAT,
        "files": {file: _sha256(folder / file) for file in _files(folder)},
        "leaves": [[name, list(array.shape), array.dtype.name] for name, array in leaves],
    }
    _write_manifest(folder / "manifest", manifest)


def _disk_trouble(error: BaseException) -> int | None:
    """The number of a disk's own error: from C++, orbax brings it as words within another one."""
    if isinstance(error, OSError):
        return error.errno
    return next((number for number in errno.errorcode if f"{os.strerror(number)}" in str(error)), None)


def restore(directory: Path, like: PyTree, part: bool = False) -> tuple[PyTree, int] | None:
    """The last good checkpoint, in place of ``like``.

    Args:
        directory: all of a run's checkpoints.
        like: a pytree of the same structure, shapes and dtypes, e.g. the initial state; its devices are used.
        part: whether ``like`` may lack some of what was saved; leaves are then found by their names.

    Returns:
        The state and its step, or None where there is no checkpoint.

    Raises:
        Damaged: there are checkpoints and none is good.
        ValueError: a good checkpoint is of another structure, shape or dtype; the first such leaf is named.
    """
    damages = []
    for step in reversed(steps(directory)):
        try:
            leaves = _load(directory / str(step), like, part)
        except Damaged as damage:
            damages.append(str(damage))
            continue
        for message in damages:
            warnings.warn(f"{message}; going back to step {step}", stacklevel=2)
        return jax.tree.unflatten(jax.tree.structure(like), leaves), step
    if damages:
        raise Damaged(f"no good checkpoint: {'; '.join(damages)}")
    return None


def steps(directory: Path) -> list[int]:
    """Numbers of the complete checkpoints, in ascending order."""
    if not directory.is_dir():
        return []
    return sorted(int(entry.name) for entry in directory.iterdir() if entry.name.isdecimal())


def rewind(directory: Path, step: int) -> None:
    """Removes the checkpoints after a step."""
    for later in steps(directory):
        if later > step:
            shutil.rmtree(directory / str(later))


def _load(folder: Path, like: PyTree, part: bool) -> list[Any]:
    manifest = _verified_manifest(folder)
    templates = _named_leaves(like, shapes_only=True)
    numbered = list(enumerate(manifest["leaves"]))
    if part:
        by_name = {leaf[0]: (i, leaf) for i, leaf in numbered}
        numbered = [by_name[name] for name, _ in templates if name in by_name]
    _check_structure(folder, [leaf for _, leaf in numbered], templates)
    try:
        with _plain_path(folder) as plain:
            arrays = _checkpointer().restore(plain / "state")
    except Exception as error:
        raise Damaged(f"{folder} cannot be read: {str(error).strip().splitlines()[0]}") from error
    loaded = []
    for (i, _), template, (_, shape) in zip(numbered, jax.tree.leaves(like), templates, strict=True):
        array = arrays[str(i)] if str(i) in arrays else np.zeros(shape.shape, shape.dtype)
        loaded.append(_placed(array, template))
    return loaded


def _verified_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest"
    checksum, _, text = (path.read_bytes() if path.is_file() else b"").partition(b"\n")
    if hashlib.sha256(text).hexdigest().encode() != checksum:
        raise Damaged(f"{path} is damaged" if path.is_file() else f"{path} is missing")
    manifest = json.loads(text)
    found = manifest.get("format", FORMAT)  # the first version did not say
    if found != FORMAT:
        raise BadValue(
            f"{path} has format={found}, this llmrl reads and writes format={FORMAT}: go on with the version that "
            "wrote it, or choose another run_dir"
        )
    for file, checksum in manifest["files"].items():
        if not (folder / file).is_file():
            raise Damaged(f"{folder / file} is missing")
        if _sha256(folder / file) != checksum:
            raise Damaged(f"{folder / file} is damaged")
    return manifest


def _check_structure(folder: Path, stored: list[Any], templates: list[tuple[str, Any]]) -> None:
    expected = [[name, list(leaf.shape), np.dtype(leaf.dtype).name] for name, leaf in templates]
    for have, want in zip(stored, expected, strict=False):
        if have != want:
            raise BadValue(f"{folder} does not fit: it holds {_describe(have)} where {_describe(want)} is expected")
    if len(stored) != len(expected):
        longer = max(stored, expected, key=len)
        owner = "only the checkpoint has" if longer is stored else "the checkpoint lacks"
        raise BadValue(f"{folder} does not fit: {owner} {_describe(longer[min(len(stored), len(expected))])}")


def _describe(leaf: list[Any]) -> str:
    name, shape, dtype = leaf
    return f"{name} {dtype}{shape}"


def _named_leaves(tree: PyTree, shapes_only: bool = False) -> list[tuple[str, Any]]:
    """Leaves with their paths; a PRNG key as its data."""

    def plain(leaf: Any) -> Any:
        if _is_key(leaf):
            leaf = jax.eval_shape(jax.random.key_data, leaf) if shapes_only else jax.random.key_data(leaf)
        return leaf if shapes_only and hasattr(leaf, "dtype") else np.asarray(leaf)

    return [(jax.tree_util.keystr(path), plain(leaf)) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]]


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _placed(array: np.ndarray, template: Any) -> jax.Array:
    sharding = getattr(template, "sharding", None)
    if _is_key(template):
        impl = jax.random.key_impl(jnp.empty((), template.dtype))
        keys = jax.random.wrap_key_data(jax.device_put(array), impl=impl)
        return jax.device_put(keys, sharding)
    return jax.device_put(array, sharding)


def _files(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """The first line is the checksum of the rest: the manifest guards the other files and must be guarded too."""
    text = json.dumps(manifest, indent=1) + "\n"
    with path.open("w") as file:
        file.write(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _plain_path(folder: Path) -> Iterator[Path]:
    """A path of a folder that orbax takes literally: its own, or a link's while it is in use.

    Orbax globs below the path it is given and tensorstore takes a backslash for a slash, so what is written in
    ``runs/a[x]`` is not found again.
    """
    folder = folder.resolve()
    if re.fullmatch(r"[\w/., =+@-]*", str(folder)):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="llmrl-") as temporary:
        link = Path(temporary) / "checkpoint"
        link.symlink_to(folder, target_is_directory=True)
        yield link


@cache
def _checkpointer() -> Any:
    import orbax.checkpoint as ocp  # costs half a second, so only those pay who save

    # Of a run's processes one alone writes and reads here, so orbax must not wait for the others.
    alone = ocp.options.MultiprocessingOptions(jax.process_index(), {jax.process_index()})
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)
