"""Captions: a key is what its words say and nothing else, on the device and on the host; and whoever gives a captioner
that cannot work is told before anything is trained."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrl.envs import captions, make, make_host, with_captioner
from llmrl.envs.captions import Feature, binned
from llmrl.types import Box, Captioner, Discrete

LANE = binned(
    "The car is {place}, {speed}.",
    {
        "place": Feature(1, (-1.0, 0.5), ("left", "amid", "right")),
        "speed": Feature(0, (0.0,), ("backing", "driving")),
    },
    ("brake", "steer"),
    lambda obs, action, next_obs: (action > 0).astype(jnp.int32),
    "Stay in lane.",
)


# --- CartPole: what is said holds -----------------------------------------------------------------------------------

CARTPOLE = captions.cartpole()
CARTPOLES = ("cartpole", "cartpole_continuous")
STATE_KEY = jax.jit(CARTPOLE.state_key)
FEATURES = captions._CARTPOLE
KEYS = CARTPOLE.keys()
EDGES = [edge for feature in FEATURES.values() for edge in feature.edges]

NUMBER = st.one_of(
    st.floats(-3, 3, width=32),
    st.sampled_from(EDGES).map(lambda edge: float(np.float32(edge))),
    st.sampled_from(EDGES).map(lambda edge: float(np.nextafter(np.float32(edge), np.float32(-9)))),
)
OBS = st.tuples(NUMBER, NUMBER, NUMBER, NUMBER).map(lambda numbers: np.asarray(numbers, np.float32))


def said(text):
    """Which word of each feature a caption uses, read from its text alone."""
    words = re.fullmatch(r"The pole (.*) and is (.*)\. The cart is (.*) and is (.*)\.", text)
    return [feature.words.index(word) for feature, word in zip(FEATURES.values(), words.groups(), strict=True)]


@settings(deadline=None)
@given(OBS)
def test_a_caption_names_what_holds(obs):
    text = CARTPOLE.describe(int(STATE_KEY(obs)))
    for feature, word in zip(FEATURES.values(), said(text), strict=True):
        edges = [-np.inf, *np.asarray(feature.edges, np.float32), np.inf]
        assert edges[word] <= obs[feature.component] < edges[word + 1]


@settings(deadline=None)
@given(OBS)
def test_left_and_right_are_mirror_images(obs):
    mirrored = [len(f.words) - 1 - word for f, word in zip(FEATURES.values(), said_of(obs), strict=True)]
    on_an_edge = np.isin(np.abs(obs), np.abs(np.asarray(EDGES, np.float32))).any()
    assert on_an_edge or said_of(-obs) == mirrored


def said_of(obs):
    return said(CARTPOLE.describe(int(STATE_KEY(obs))))


@pytest.mark.parametrize("captioner", [CARTPOLE, LANE])
def test_keys_are_all_there_are_and_read_differently(captioner):
    keys = captioner.keys()
    assert len({captioner.describe(key) for key in keys}) == len(keys) == len(set(keys))
    for stranger in (len(keys), 2**32 - 1, -1):
        with pytest.raises(ValueError, match=str(stranger)):
            captioner.describe(stranger)


def test_every_key_is_somebodys():
    """The packing both ways: a state made from a description's words gets that description's key."""

    def inside(feature, word):
        edges = [feature.edges[0] - 1.0, *feature.edges, feature.edges[-1] + 1.0]
        return (edges[word] + edges[word + 1]) / 2.0

    obs = np.zeros((len(KEYS), 4), np.float32)
    for key in KEYS:
        for feature, word in zip(FEATURES.values(), said(CARTPOLE.describe(key)), strict=True):
            obs[key, feature.component] = inside(feature, word)
    np.testing.assert_array_equal(jax.vmap(STATE_KEY)(obs), np.asarray(KEYS, np.uint32))


def test_an_event_is_the_side_that_was_pushed():
    obs = jnp.zeros(4)
    discrete = [int(CARTPOLE.event(obs, jnp.asarray(action, jnp.int32), obs)) for action in (0, 1)]
    continuous = [int(CARTPOLE.event(obs, jnp.asarray([action]), obs)) for action in (-1.0, -0.1, 0.1, 1.0)]
    assert [CARTPOLE.events[event].rpartition(" ")[2] for event in discrete] == ["left", "right"]
    assert [CARTPOLE.events[event].rpartition(" ")[2] for event in continuous] == ["left", "left", "right", "right"]


def test_the_oracle_answers_like_a_person():
    """Sure where it is clear, vague in the middle, and the same on both sides."""
    by_words = {tuple(said(CARTPOLE.describe(key))): key for key in KEYS}
    sizes = [len(feature.words) for feature in FEATURES.values()]
    for words, key in by_words.items():
        left, right = CARTPOLE.oracle(key, 0), CARTPOLE.oracle(key, 1)
        mirror = by_words[tuple(size - 1 - word for size, word in zip(sizes, words, strict=True))]
        assert 0.0 < left < 1.0 and 0.0 < right < 1.0
        assert CARTPOLE.oracle(mirror, 0) == pytest.approx(right)
    falling_right, still = by_words[6, 4, 2, 1], by_words[3, 2, 2, 1]
    assert CARTPOLE.oracle(falling_right, 1) > 0.9 > 0.1 > CARTPOLE.oracle(falling_right, 0)
    assert CARTPOLE.oracle(still, 0) == CARTPOLE.oracle(still, 1) == 0.5


# --- any environment ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CARTPOLES)
def test_language_is_a_source_that_says_nothing_by_itself(name):
    env = make(name, aux=("beneficial", "language"), aux_scale=2.0, aux_options={"magnitude": 0.3})
    assert env.spec.aux_names == ("beneficial", "language") and env.captioner is not None
    state, _ = env.reset(jax.random.key(0))
    action = jnp.ones((), jnp.int32) if isinstance(env.spec.action, Discrete) else jnp.ones(1)
    assert env.step(jax.random.key(1), state, action)[1].aux[1] == 0.0


def test_crafter_has_words_of_its_own_however_it_is_played():
    compiled = make("craftax_classic", aux=("language",), task="eat_cow", observation="one_hot")
    host = make_host("crafter", aux={"language": 2.0}, task="eat_cow")
    assert compiled.spec.aux_names == host.spec.aux_names == ("language",)
    assert [float(source(None, 0, None)) for source in host.sources] == [0.0]
    for captioner in (compiled.captioner, host.captioner):
        assert captioner is not None and "eat cow" in captioner.context and captioner.state_key is None
    seen = Captioner(("go",), str, "", lambda obs: obs[0].astype(jnp.uint32), lambda *_: jnp.int32(0))
    assert make_host("crafter", aux=("language",), captioner=seen).captioner is seen


def test_an_environment_without_words_asks_for_them(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"gridworld.*captioner="):
        make("gridworld", aux=("language",))
    with pytest.raises(ValueError, match=r"Acrobot-v1.*captioner="):
        make("Acrobot-v1", aux=("language",))
    env = make("MountainCar-v0", aux=("language",), captioner=LANE)
    assert env.captioner is LANE and env.spec.aux_names == ("language",)

    (tmp_path / "lanes_for_tests.py").write_text(
        "from llmrl.envs import captions\none = captions.cartpole()\ndef made():\n    return one\nno = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    one, made = (make("cartpole", aux=(), captioner=f"lanes_for_tests.{name}").captioner for name in ("one", "made"))
    assert one is made
    for path, message in (("lanes", "dotted path"), ("lanes_for_tests.mad", "'made'"), ("lanes_for_tests.no", "got 3")):
        with pytest.raises((ValueError, TypeError), match=message):
            make("cartpole", aux=(), captioner=path)
    with pytest.raises(ImportError, match=r"captioner .*PYTHONPATH"):
        make("cartpole", aux=(), captioner="no_such_module_for_tests.x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"events": ()}, "events"),
        ({"events": ("push", "push")}, "events"),
        ({"state_key": lambda obs: jnp.zeros((), jnp.int32)}, r"state_key.*uint32"),
        ({"state_key": lambda obs: obs.astype(jnp.uint32)}, r"state_key.*uint32"),
        ({"state_key": lambda obs: int(obs[0])}, "state_key"),
        ({"state_key": None}, "state_key.*None"),
        ({"event": lambda obs, action: jnp.zeros((), jnp.int32)}, "event"),
        ({"event": lambda obs, action, next_obs: 0.0}, r"event.*int32"),
    ],
)
def test_a_captioner_that_cannot_work_is_refused_at_once(change, message):
    with pytest.raises((TypeError, ValueError), match=message):
        with_captioner(make("cartpole", aux=()), LANE._replace(**change))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"place": Feature(0, (1.0, 0.0), ("a", "b", "c"))}, "ascending"),
        ({"place": Feature(0, (0.0, 1.0), ("a", "b"))}, "one word more"),
        ({"place": Feature(0, (0.0,), ("a", "a"))}, "different words"),
        ({"place": Feature(0, (0.0,), ("a", "b")), "speed": Feature(0, (0.0,), ("a", "b"))}, "speed"),
    ],
)
def test_words_that_do_not_tell_states_apart_are_refused(features, message):
    with pytest.raises(ValueError, match=message):
        binned("It is {place}.", features, ("go",), LANE.event, "")


def test_captions_of_a_rollout_are_those_of_its_steps(random_rollout):
    from llmrl.learner.rollout import with_captions

    for name in CARTPOLES:
        env = make(name, aux=())
        steps = random_rollout(env.spec).steps
        captioned = with_captions(env, steps)
        assert isinstance(env.captioner, Captioner)
        assert (captioned.state_key.dtype, captioned.event.dtype) == (jnp.uint32, jnp.int32)
        clipped = jnp.clip(steps.action, -1.0, 1.0) if isinstance(env.spec.action, Box) else steps.action
        for t, n in np.ndindex(steps.reward.shape):
            assert captioned.state_key[t, n] == STATE_KEY(steps.obs[t, n])
            assert captioned.event[t, n] == CARTPOLE.event(steps.obs[t, n], clipped[t, n], steps.next_obs[t, n])
    bare = make("gridworld", aux=())
    steps = random_rollout(bare.spec).steps
    assert with_captions(bare, steps) is steps
    own = bare._replace(captioner=CARTPOLE._replace(state_key=None, event=None))  # its step has put them there
    assert with_captions(own, steps) is steps


def test_a_captioner_of_other_observations_or_features_is_refused():
    def side(component, sentence="The boat is {place}."):
        feature = Feature(component, (0.0,), ("left", "right"))
        return binned(
            sentence, {"place": feature}, ("drift",), lambda obs, action, after: jnp.int32(0), "reach the sea"
        )

    with_captioner(make("cartpole", aux=()), side(3))
    with pytest.raises(ValueError, match="'place' looks at component 7 of 4"):
        with_captioner(make("cartpole", aux=()), side(7))
    with pytest.raises(ValueError, match=r"mentions \{depth\}; the features are \['place'\]"):
        side(0, "The boat is {place}, {depth}.")
