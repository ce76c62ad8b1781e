import json
import os
import shutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llmrl.runs import checkpoint
from llmrl.runs.checkpoint import Damaged, restore, save, steps


class State(NamedTuple):
    key: jax.Array
    params: dict
    opt_state: optax.OptState
    aux: jax.Array
    done: jax.Array
    iteration: jax.Array


def make_state(number=0, width=3):
    params = {"w": jnp.full((2, width), number, jnp.float32), "b": jnp.zeros(width, jnp.bfloat16)}
    return State(
        key=jax.random.split(jax.random.key(number), 4),
        params=params,
        opt_state=optax.adam(1e-3).init(params),
        aux=jnp.zeros((5, 0)),
        done=jnp.array([True, False]),
        iteration=jnp.asarray(number, jnp.int32),
    )


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def files(directory, step):
    return sorted(path for path in (directory / str(step)).rglob("*") if path.is_file())


class Part(NamedTuple):
    iteration: jax.Array
    params: dict


def test_a_part_comes_back_by_its_names(tmp_path):
    save(tmp_path, 7, make_state(7))
    like = make_state(0)
    part, step = restore(tmp_path, Part(like.iteration, like.params), part=True)
    assert step == 7
    assert_same(part, Part(make_state(7).iteration, make_state(7).params))
    wider = make_state(0, width=4).params
    with pytest.raises(ValueError, match=r"\.params\['b'\] bfloat16\[3\] where .*bfloat16\[4\]"):
        restore(tmp_path, Part(like.iteration, wider), part=True)
    with pytest.raises(ValueError, match=r"checkpoint lacks \.params\['z'\]"):
        restore(tmp_path, Part(like.iteration, {**like.params, "z": like.aux}), part=True)
    with pytest.raises(ValueError, match="does not fit"):
        restore(tmp_path, Part(like.iteration, like.params))


def test_any_state_comes_back_exactly(tmp_path):
    save(tmp_path, 7, make_state(7))
    restored, step = restore(tmp_path, make_state(0))
    assert step == 7
    assert_same(restored, make_state(7))


def test_a_path_is_taken_literally_whatever_is_in_it(tmp_path):
    for step, name in enumerate(("a[x]", "[!a]", "a*", "a?", "{a,b}", "a\\b", "gs:", "%2F~$#'|", "x\udcff")):
        (tmp_path / "ab").mkdir(exist_ok=True)  # what a pattern would find
        save(tmp_path / name / "checkpoints", step, {"w": jnp.full(2, step)})
        restored, found = restore(tmp_path / name / "checkpoints", {"w": jnp.zeros(2, jnp.int32)})
        assert found == step
        np.testing.assert_array_equal(restored["w"], step)
        assert [path.name for path in (tmp_path / name).iterdir()] == ["checkpoints"]


def test_shapes_alone_are_enough_to_restore(tmp_path):
    save(tmp_path, 7, make_state(7))
    assert_same(restore(tmp_path, jax.eval_shape(lambda: make_state(0)))[0], make_state(7))


def test_nothing_to_restore(tmp_path):
    assert restore(tmp_path / "none", make_state()) is None
    assert steps(tmp_path / "none") == []


def test_the_last_two_are_kept(tmp_path):
    for step in (5, 10, 15):
        save(tmp_path, step, make_state(step))
    assert steps(tmp_path) == [10, 15]
    assert int(restore(tmp_path, make_state())[0].iteration) == 15


def test_leftovers_of_a_killed_save_do_no_harm(tmp_path):
    save(tmp_path, 5, make_state(5))
    (tmp_path / ".10.tmp" / "state").mkdir(parents=True)
    (tmp_path / ".10.tmp" / "state" / "half").write_bytes(b"half")
    assert restore(tmp_path, make_state())[1] == 5
    save(tmp_path, 10, make_state(10))
    assert restore(tmp_path, make_state())[1] == 10
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["10", "5"]


def test_the_same_step_can_be_saved_again(tmp_path):
    save(tmp_path, 5, make_state(1))
    save(tmp_path, 5, make_state(2))
    assert_same(restore(tmp_path, make_state())[0], make_state(2))


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {"flip": flip, "truncate": lambda path: os.truncate(path, path.stat().st_size // 2), "delete": os.remove}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_any_file_is_named_and_the_step_before_is_taken(tmp_path, damage):
    save(tmp_path / "good", 5, make_state(5))
    save(tmp_path / "good", 10, make_state(10))
    for number, original in enumerate(files(tmp_path / "good", 10)):
        directory = tmp_path / str(number)
        shutil.copytree(tmp_path / "good", directory)
        victim = directory / original.relative_to(tmp_path / "good")
        DAMAGES[damage](victim)
        with pytest.warns(UserWarning, match=f"{victim.name}.*going back to step 5"):
            restored, step = restore(directory, make_state())
        assert step == 5
        assert_same(restored, make_state(5))


def test_when_nothing_is_good_nothing_is_restored(tmp_path):
    save(tmp_path, 5, make_state(5))
    victim = max(files(tmp_path, 5), key=lambda path: path.stat().st_size)
    flip(victim)
    with pytest.raises(Damaged, match=victim.name):
        restore(tmp_path, make_state())


def test_another_structure_is_refused_by_name(tmp_path):
    save(tmp_path, 5, make_state(5))
    with pytest.raises(ValueError, match=r"params\['b'\] bfloat16\[3\] where .*params\['b'\] bfloat16\[4\]"):
        restore(tmp_path, make_state(width=4))
    with pytest.raises(ValueError, match=r"\.iteration int32"):
        restore(tmp_path, make_state()._replace(iteration=()))
    other = make_state()
    with pytest.raises(ValueError, match="does not fit"):
        restore(tmp_path, other._replace(params={**other.params, "z": jnp.zeros(1)}))


@pytest.mark.parametrize("number", [1, 9])
def test_another_format_is_refused_by_name_and_one_that_does_not_say_is_the_first(tmp_path, number):
    save(tmp_path, 5, make_state(5))
    path = tmp_path / "5" / "manifest"
    manifest = json.loads(path.read_bytes().partition(b"\n")[2])
    assert manifest.pop("format") == 1
    checkpoint._write_manifest(path, manifest | ({"format": number} if number > 1 else {}))
    if number > 1:
        with pytest.raises(ValueError, match=r"manifest has format=9, this llmrl reads and writes format=1"):
            restore(tmp_path, make_state())
    else:
        assert restore(tmp_path, make_state())[1] == 5


def test_a_kill_before_the_rename_keeps_the_step_before(tmp_path, monkeypatch):
    save(tmp_path, 5, make_state(5))
    monkeypatch.setattr(checkpoint.os, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 10, make_state(10))
    monkeypatch.undo()
    assert restore(tmp_path, make_state())[1] == 5
