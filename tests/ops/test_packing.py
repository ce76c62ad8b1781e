"""Packing is exact, and leaves alone what it cannot hold."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmrl.ops.packing import WIDEST, packing

N = 5
TREE = {
    "float": jnp.asarray([1.5, -0.0, jnp.inf, 1e-40, 3e38]),
    "vector": jnp.arange(N * 3, dtype=jnp.float32).reshape(N, 3),
    "bool": jnp.asarray([True, False, True, True, False]),
    "int": jnp.asarray([-1, 0, 2**31 - 1, 7, -(2**31)], jnp.int32),
    "word": jnp.asarray([0, 1, 2**32 - 1, 5, 6], jnp.uint32),
    "nothing": jnp.zeros((N, 0)),
    "bytes": jnp.arange(N, dtype=jnp.uint8),
    "wide": jnp.zeros((N, WIDEST + 1)),
    "scalar": jnp.asarray(3, jnp.int32),
    "key": jax.random.key(0),
}


def as_numbers(tree):
    return jax.tree.map(lambda x: np.asarray(jax.random.key_data(x) if x.dtype == TREE["key"].dtype else x), tree)


def assert_same(found, expected):
    for name, array in as_numbers(expected).items():
        assert found[name].dtype == expected[name].dtype, name
        assert as_numbers(found)[name].tobytes() == array.tobytes(), name


def test_what_is_packed_comes_back_bit_by_bit():
    pack, unpack = packing(TREE)
    packed = pack(TREE)
    assert packed.words.shape == (7, N)
    assert len(packed.others) == 5
    assert_same(unpack(packed), TREE)


def test_so_does_a_history_of_it():
    pack, unpack = packing(TREE)
    history = jax.lax.scan(lambda carry, _: (carry, pack(unpack(carry))), pack(TREE), None, length=3)[1]
    stacked = unpack(history)
    for t in range(3):
        assert_same({name: x[t] for name, x in stacked.items()}, TREE)


def test_nothing_to_pack_is_no_trouble():
    pack, unpack = packing({"scalar": jnp.zeros(())})
    assert unpack(pack({"scalar": jnp.ones(())}))["scalar"] == 1.0


KINDS = ["float32", "int32", "uint32", "bool", "float16", "bfloat16", "int8", "uint8", "int16", "uint16"]


@pytest.mark.parametrize(("kept", "given"), list(itertools.product(KINDS, KINDS)))
def test_bits_are_never_read_as_another_kind_of_number(kept, given):
    pack, unpack = packing({"state": (jax.ShapeDtypeStruct((N,), kept),)})
    tree = {"state": (jnp.asarray([0, 1, 1, 0, 1]).astype(given),)}
    if kept == given:
        np.testing.assert_array_equal(unpack(pack(tree))["state"][0], tree["state"][0])
        return
    with pytest.raises(TypeError, match=rf"leaf \['state'\]\[0\] .* is {given}\[5\]; expected {kept}\[5\]"):
        pack(tree)


@pytest.mark.parametrize("given", [{"a": jnp.zeros((N, 2))}, {"b": jnp.zeros(N)}, jnp.zeros(N), {"a": jnp.zeros(1)}])
def test_neither_are_another_shape_and_structure(given):
    with pytest.raises(TypeError, match=r"of what is packed|what is packed has the structure"):
        packing({"a": jnp.zeros(N)})[0](given)
