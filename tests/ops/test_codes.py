"""Bytes and the features they stand for: an embedding is a dense layer on one-hots."""

import jax
import jax.numpy as jnp
import numpy as np

from llmrl.nets import make_critic, make_policy
from llmrl.ops.codes import decode, num_features
from llmrl.types import Codes, Discrete, EnvSpec

ENCODING = (
    Codes(3, ((1.0, 0.0), (0.0, 1.0))),
    Codes(1, ((0.0,), (0.5,), (1.0,))),
)
OBS = np.random.default_rng(0).integers(0, [2, 2, 2, 3], size=(5, 6, 4)).astype(np.uint8)


def test_every_byte_is_looked_up_in_its_order():
    assert num_features(ENCODING) == 7
    found = decode(ENCODING, jnp.asarray([0, 1, 1, 2], jnp.uint8))
    np.testing.assert_array_equal(found, [1, 0, 0, 1, 0, 1, 1])


def test_any_batch_axes():
    one_by_one = np.stack([np.stack([decode(ENCODING, jnp.asarray(obs)) for obs in row]) for row in OBS])
    np.testing.assert_array_equal(decode(ENCODING, jnp.asarray(OBS)), one_by_one)


def test_a_dense_layer_is_a_sum_of_one_vector_per_byte():
    weights = jax.random.normal(jax.random.key(0), (7, 4))
    vectors = [weights[0:2], weights[2:4], weights[4:6], jnp.asarray([[0.0], [0.5], [1.0]]) * weights[6]]
    summed = sum(rows[OBS[..., place].astype(np.int32)] for place, rows in enumerate(vectors))
    np.testing.assert_allclose(decode(ENCODING, jnp.asarray(OBS)) @ weights, summed, rtol=1e-6, atol=1e-6)


def test_networks_on_bytes_equal_networks_on_their_features():
    bytes_spec = EnvSpec("bytes", (4,), Discrete(3), 9, encoding=ENCODING)
    floats_spec = EnvSpec("floats", (7,), Discrete(3), 9)
    features = decode(ENCODING, jnp.asarray(OBS))
    for make, read in ((make_policy, lambda net, p, x: net.distribution(p, x).logits), (make_critic, value)):
        more = (2,) if make is make_critic else ()
        compact, plain = make(bytes_spec, (8,), *more), make(floats_spec, (8,), *more)
        params = compact.init(jax.random.key(1))
        jax.tree.map(np.testing.assert_array_equal, params, plain.init(jax.random.key(1)))
        np.testing.assert_array_equal(read(compact, params, jnp.asarray(OBS)), read(plain, params, features))


def value(critic, params, obs):
    return critic.value(params, obs)
