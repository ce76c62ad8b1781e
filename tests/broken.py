"""A healthy environment, source and captioner, and what shapes show to be broken: what it is, and how the line reads
that refuses it."""

import copy
import random
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from llmrl.envs import time_step
from llmrl.envs.captions import Feature, binned
from llmrl.types import Box, Codes, Discrete, Environment, EnvSpec

# --- a healthy environment, of which each fault changes one thing -----------------------------------------------------

SPEC = EnvSpec("line", (2,), Discrete(2), horizon=9)


def observe(state):
    return jnp.stack([state["place"], state["time"].astype(jnp.float32)])


def reset(key):
    state = {"place": jax.random.uniform(key), "time": jnp.zeros((), jnp.int32)}
    return state, observe(state)


def step(key, state, action):
    state = {"place": state["place"] + 0.1 * action.astype(jnp.float32), "time": state["time"] + 1}
    arrived = state["place"] > 1.0
    return state, time_step(observe(state), arrived, arrived, state["time"] >= 9, arrived)


LINE = Environment(SPEC, reset, step)
LOUD = jax.random.key(1)


def changed(thing, **changes):
    """A dataclass with other values, whatever they are: in these tests its own door is guarded."""
    other = copy.copy(thing)
    for name, value in changes.items():
        object.__setattr__(other, name, value)
    return other


def spec(**changes):
    return LINE._replace(spec=changed(SPEC, **changes))


def resets(change):
    """Where ``reset`` returns what ``change`` makes of (state, obs)."""
    return LINE._replace(reset=lambda key: change(*reset(key)))


def steps(change):
    """Where ``step`` returns what ``change`` makes of (state, TimeStep)."""
    return LINE._replace(step=lambda key, state, action: change(*step(key, state, action)))


def field(**values):
    """Where fields of the step are what the functions make of them."""
    return steps(
        lambda state, result: (state, result._replace(**{k: f(getattr(result, k)) for k, f in values.items()}))
    )


def state(change):
    """Where the state after a step is what ``change`` makes of it."""
    return steps(lambda state, result: (change(state), result))


def dice():
    return jnp.float32(np.random.default_rng().random())


jitted_dice = jax.jit(lambda x: x + dice())


def branching(key, state, action):
    if state["place"] > 0.5:
        return step(key, state, action)
    return step(key, state, 1 - action)


def with_numpy(key, state, action):
    return step(key, state | {"place": np.maximum(np.asarray(state["place"]), 0.0)}, action)


def with_float(key, state, action):
    return step(key, state | {"place": jnp.float32(float(state["place"]))}, action)


def with_index(key, state, action):
    return step(key, state, jnp.int32((0, 1)[action]))


def calling_out(key, state, action):
    place = jax.experimental.io_callback(lambda x: x, jax.ShapeDtypeStruct((), jnp.float32), state["place"])
    return step(key, state | {"place": place}, action)


def misspelt(key, state, action):
    return step(key, {"place": state["plaec"]}, action)


RESET, STEP = r"reset\(key\)", r"step\(key, state, action\)"
TWICE = lambda x: jnp.stack([x, x])  # noqa: E731
SWAPPED = lambda first, second: (second, first)  # noqa: E731

ENVIRONMENTS = {
    "nothing": (None, r"is None; expected an llmrl\.types\.Environment"),
    "a class": (dict, "is <class 'dict'>; expected an llmrl.*from_gymnax"),
    "a spec that is a dict": (LINE._replace(spec={"obs_shape": (2,)}), r"spec is \{'obs_shape': .*EnvSpec"),
    "no reset": (LINE._replace(reset=None), "reset is None; expected a function"),
    "no name": (spec(name=None), "spec.name is None; expected a text"),
    "obs_shape is an int": (spec(obs_shape=2), r"spec.obs_shape is 2; expected a tuple of positive ints"),
    "obs_shape is a list": (spec(obs_shape=[2]), r"spec.obs_shape is \[2\]; expected a tuple"),
    "obs_shape of floats": (spec(obs_shape=(2.0,)), r"spec.obs_shape is \(2.0,\); expected a tuple"),
    "no actions": (spec(action=Discrete(0)), r"spec.action is Discrete\(num=0\); expected a positive number"),
    "half an action": (spec(action=changed(Discrete(2), num=1.5)), r"Discrete\(num=1.5\); expected a positive number"),
    "an action space of gym's": (spec(action=SimpleNamespace(n=2)), r"spec.action is namespace\(n=2\); expected"),
    "swapped bounds": (spec(action=Box(1, 1.0, -1.0)), r"Box\(dim=1, low=1.0, high=-1.0\); expected finite bounds"),
    "infinite bounds": (spec(action=Box(1, -jnp.inf, jnp.inf)), r"low=-inf.*; expected finite bounds with low < high"),
    "no dimension": (spec(action=Box(0)), r"Box\(dim=0.*; expected a positive dim"),
    "horizon 0": (spec(horizon=0), "spec.horizon is 0; expected a positive int"),
    "horizon None": (spec(horizon=None), "spec.horizon is None; expected a positive int"),
    "obs_scale 0": (spec(obs_scale=(1.0, 0.0)), r"spec.obs_scale is \(1.0, 0.0\); expected finite divisors"),
    "obs_scale NaN": (spec(obs_scale=jnp.nan), "spec.obs_scale is nan; expected finite divisors"),
    "obs_scale too long": (spec(obs_scale=(1.0, 1.0, 1.0)), r"spec.obs_scale has shape \(3,\); expected .*\(2,\)"),
    "obs_scale too short": (spec(obs_scale=(1.0,)), r"spec.obs_scale has shape \(1,\); expected .*\(2,\)"),
    "obs_scale of words": (spec(obs_scale="large"), "spec.obs_scale is 'large'; expected finite divisors"),
    "obs_scale ragged": (spec(obs_scale=((1, 2), (3,))), r"spec.obs_scale is \(\(1, 2\), \(3,\)\); expected finite"),
    "obs_scale 0 in float32": (spec(obs_scale=1e-46), "spec.obs_scale is 1e-46; expected finite .*as float32 has them"),
    "obs_scale subnormal": (spec(obs_scale=(1.0, -1e-39)), r"spec.obs_scale is \(1.0, -1e-39\); expected finite"),
    "obs_scale infinite in float32": (spec(obs_scale=1e39), r"spec.obs_scale is 1e\+39; expected finite divisors"),
    "obs_scale a large int": (spec(obs_scale=10**40), "spec.obs_scale is 10+; expected finite divisors"),
    "obs_scale complex": (spec(obs_scale=1j), "spec.obs_scale is 1j; expected finite divisors"),
    "ragged bounds": (
        spec(action=changed(Box(2), low=((1, 2), (3,)))),
        r"low=\(\(1, 2\), \(3,\)\).*; expected finite bounds",
    ),
    "bounds of two lengths": (
        spec(action=changed(Box(2), low=np.zeros(2), high=np.ones(3))),
        "; expected finite bounds",
    ),
    "bounds equal in float32": (spec(action=Box(1, 1.0, 1.0 + 1e-12)), "; expected finite bounds with low < high"),
    "bounds infinite in float32": (spec(action=Box(1, -1e39, 1e39)), "; expected finite bounds with low < high"),
    "a source twice": (spec(aux_names=("a", "a")), r"spec.aux_names is \('a', 'a'\); expected different names"),
    "a source as a text": (spec(aux_names="ab"), "spec.aux_names is 'ab'; expected a tuple of texts"),
    "bytes that are floats": (spec(encoding=(Codes(2, ((0.0,),)),)), rf"{RESET} .*float32\[2\]; expected uint8\[2\]"),
    "steps_per_reset 0": (LINE._replace(steps_per_reset=0), "steps_per_reset is 0; expected a positive int, or None"),
    "steps_per_reset a float": (LINE._replace(steps_per_reset=2.5), "steps_per_reset is 2.5; expected a positive int"),
    # --- reset
    "reset takes nothing": (LINE._replace(reset=lambda: None), rf"{RESET} failed: TypeError: .*argument.*; expected"),
    "only an observation": (resets(lambda state, obs: obs), rf"{RESET} returned float32\[2\]; expected"),
    "swapped by reset": (resets(SWAPPED), rf"{RESET} returned \(float32\[2\], .*reads \(obs, state\); expected"),
    "an observation of another shape": (
        resets(lambda state, obs: (state, obs[None])),
        rf"{RESET} returned an observation of shape \(1, 2\); expected spec.obs_shape \(2,\)",
    ),
    "a dict as observation": (
        resets(lambda state, obs: (state, {"x": obs})),
        rf"{RESET} returned the observation {{'x': float32\[2\]}}; expected one array",
    ),
    "a complex observation": (
        resets(lambda state, obs: (state, jax.lax.complex(obs, obs))),
        rf"{RESET} returned an observation of dtype complex64; expected real numbers",
    ),
    "a text in the state": (
        resets(lambda state, obs: (state | {"mode": "slow"}, obs)),
        rf"{RESET} returned 'slow' as \[0\]\['mode'\], which is no array; expected",
    ),
    "numpy's dice in reset": (
        resets(lambda state, obs: (state, obs * dice())),
        rf"{RESET} is not pure: .*numpy's random numbers.*; expected",
    ),
    # --- step
    "step takes two": (LINE._replace(step=lambda state, action: None), rf"{STEP} failed: TypeError: .*positional"),
    "step of gym": (
        steps(lambda state, result: (result.obs, result.reward, False, False, {})),
        rf"{STEP} returned \(float32\[2\], float32\[\], bool\[\], bool\[\], {{}}\); expected .*TimeStep",
    ),
    "only a TimeStep": (steps(lambda state, result: result), rf"{STEP} returned TimeStep\(.*\); expected .*time_step"),
    "swapped by step": (steps(SWAPPED), rf"{STEP} returned \(TimeStep\(.*; expected .*\(state, llmrl"),
    "a misspelt key": (LINE._replace(step=misspelt), rf"{STEP} failed: KeyError: 'plaec' \(broken.py, line"),
    "a branch": (LINE._replace(step=branching), rf"{STEP} failed: Tracer.*broken.py.*Use jnp.where instead of"),
    "numpy": (LINE._replace(step=with_numpy), rf"{STEP} failed: TracerArrayConversion.*jnp instead of numpy"),
    "a float": (LINE._replace(step=with_float), rf"{STEP} failed: Concretization.*jnp instead of numpy or float"),
    "an index": (LINE._replace(step=with_index), rf"{STEP} failed: TracerIntegerConversion.*Use jnp"),
    "numpy's dice in step": (state(lambda s: s | {"place": s["place"] + dice()}), rf"{STEP} is not pure: .*; expected"),
    "jitted dice": (field(reward=jitted_dice), rf"{STEP} is not pure: traced twice .*; expected"),
    "the clock": (field(reward=lambda x: x + time.perf_counter_ns() % 997), rf"{STEP} is not pure: .*the clock"),
    "python's dice": (field(reward=lambda x: x + random.random()), rf"{STEP} is not pure"),
    "a callback": (LINE._replace(step=calling_out), rf"{STEP} is not pure: it reads or writes something outside"),
    "a reward per player": (field(reward=TWICE), rf"{STEP} returned reward float32\[2\]; expected float32\[\]"),
    "a whole reward": (field(reward=lambda x: 1), rf"{STEP} returned reward int32\[\]; expected float32\[\]"),
    "a reward in words": (
        field(reward=lambda x: "much"),
        rf"{STEP} returned 'much' as \[1\].reward, which is no array",
    ),
    "done is a float": (field(terminated=lambda x: 1.0), rf"{STEP} returned terminated float32\[\]; expected bool\[\]"),
    "done is a vector": (field(terminated=TWICE), rf"{STEP} returned terminated bool\[2\]; expected bool\[\]"),
    "truncated is an int": (field(truncated=lambda x: 0), rf"{STEP} returned truncated int32\[\]; expected bool\[\]"),
    "success is None": (field(success=lambda x: None), rf"{STEP} returned success None; expected bool\[\]"),
    "a source without a name": (
        field(aux=lambda x: jnp.ones(1)),
        rf"{STEP} returned aux float32\[1\]; expected .*\[0\]",
    ),
    "another observation": (field(obs=lambda x: x[0]), rf"{STEP} returned an observation of shape \(\); expected"),
    "a narrower observation": (
        field(obs=lambda x: x.astype(jnp.float16)),
        rf"{STEP} returned an observation of dtype float16; expected float32 as reset\(key\) returned",
    ),
    "a state's dtype": (
        state(lambda s: s | {"time": s["time"].astype(jnp.float32)}),
        rf"{STEP} returned state\['time'\] float32\[\]; expected int32\[\] as reset\(key\) returned",
    ),
    "a state's shape": (
        state(lambda s: s | {"place": s["place"][None]}),
        rf"{STEP} returned state\['place'\] float32\[1\]; expected float32\[\] as reset",
    ),
    "a state with more in it": (
        state(lambda s: s | {"last": s["place"]}),
        rf"{STEP} returned state\['last'\] float32\[\]; expected nothing as reset",
    ),
    "a state with less in it": (
        state(lambda s: {"place": s["place"]}),
        rf"{STEP} returned state\['time'\] nothing; expected int32\[\] as reset",
    ),
    "a state of another kind": (
        LINE._replace(
            reset=lambda key: ([jnp.zeros(())], jnp.zeros(2)),
            step=lambda key, state, action: ((state[0],), step(key, reset(key)[0], action)[1]),
        ),
        rf"{STEP} returned a state \(float32\[\],\); expected \[float32\[\]\] as reset",
    ),
    "a captioner of its own": (LINE._replace(captioner="words"), r"captioner: expected an llmrl.types.Captioner, got"),
}


# --- sources ----------------------------------------------------------------------------------------------------------


def hint(state, action, next_state):
    return next_state["place"] - state["place"]


def counting(state, action, next_state, calls=[]):  # noqa: B006
    calls.append(action)
    return hint(state, action, next_state) + len(calls)


SOURCES = {
    "a source that is no function": (3, "aux_function '.*broken' is 3; expected a function"),
    "a source of two": (lambda state, action: 0.0, "lambda.* failed: TypeError: .*positional.*; expected a function"),
    "a source of ints": (lambda s, a, n: n["time"], r"lambda.* returned int32\[\]; expected.*astype"),
    "a source of pairs": (lambda s, a, n: (0.0, 1.0), r"lambda.* returned \(float32\[\], float32\[\]\); expected"),
    "a source of tables": (lambda s, a, n: jnp.zeros((2, 2)), r"lambda.* returned float32\[2, 2\]; expected"),
    "a source of words": (lambda s, a, n: "good", "lambda.* returned 'good', which is no array; expected"),
    "a source of nothing": (lambda s, a, n: None, "lambda.* returned None; expected"),
    "a branching source": (lambda s, a, n: 1.0 if a > 0 else 0.0, "lambda.* failed: Tracer.*Use jnp.where"),
    "a source with a typo": (lambda s, a, n: s["plaec"], "lambda.* failed: KeyError: 'plaec'.*; expected"),
    "a source of dice": (lambda s, a, n: dice(), "lambda.* is not pure: .*; expected"),
    "a jitted source of dice": (jax.jit(lambda s, a, n: dice()), "lambda.* is not pure: .*; expected"),
    "a counting source": (counting, "counting is not pure: .*a counter.*; expected"),
    "a jitted clock": (jax.jit(lambda s, a, n: jnp.float32(time.perf_counter_ns() % 997)), "is not pure: .*the clock"),
}

# --- captioners -------------------------------------------------------------------------------------------------------

WORDS = binned(
    "The place is {place}.",
    {"place": Feature(0, (0.5,), ("near", "far"))},
    ("stay", "go"),
    lambda obs, action, next_obs: action,
    "Arrive.",
)


def words(**changes):
    return WORDS._replace(**changes)


def made_with(value):
    raise LookupError(f"no map called\n{value}")


def speechless(key):
    raise OSError("no words\ntoday")


CAPTIONERS = {
    "a captioner that is a text": ("words", "captioner .*broken: expected an llmrl.types.Captioner, got 'words'"),
    "a captioner that is a list": ([WORDS], r"captioner .*broken: expected an llmrl.types.Captioner, got \["),
    "a captioner that cannot be made": (
        lambda: made_with("y"),
        "captioner .*broken failed: LookupError: no map called",
    ),
    "one text of events": (words(events="go"), "events is 'go'; expected a tuple of texts"),
    "no events": (words(events=()), r"events need different names, got \[\]"),
    "no context": (words(context=None), "context is None; expected a text"),
    "a key of floats": (
        words(state_key=lambda obs: obs[0]),
        r"state_key\(obs\) returned float32\[\]; expected .*uint32",
    ),
    "a key of dice": (
        words(state_key=jax.jit(lambda obs: dice().astype(jnp.uint32) + jnp.uint32(time.perf_counter_ns() % 997))),
        r"state_key\(obs\) is not pure: .*; expected",
    ),
    "a branching key": (
        words(state_key=lambda obs: jnp.uint32(1 if obs[0] > 0 else 0)),
        r"state_key\(obs\) failed: Tracer.*Use jnp.where",
    ),
    "an event of two": (words(event=lambda obs, action: action), r"event\(.*\) failed: TypeError.*; expected"),
    "an event of vectors": (
        words(event=lambda o, a, n: a[None]),
        r"event\(.*\) returned int32\[1\]; expected .*int32\[\]",
    ),
    "words that are numbers": (words(describe=lambda key: 3), r"describe\(key\) returned 3; expected a text"),
    "no words today": (words(describe=speechless), r"describe\(key\) failed: OSError: no words .*; expected a text"),
    "no keys": (words(keys=lambda: ()), r"keys\(\) is empty; expected a sequence of ints"),
    "keys one by one": (words(keys=lambda: iter((0, 1))), r"keys\(\) returned <.*>; expected a sequence of ints"),
    "keys in words": (words(keys=lambda: ["near"]), r"keys\(\) holds 'near'; expected a sequence of ints"),
    "keys that are none": (words(keys=(0, 1)), r"keys\(\) failed: TypeError: 'tuple' .*; expected a sequence"),
    "a sure oracle": (words(oracle=lambda key, event: 2.0), r"oracle\(key, event\) returned 2.0; expected a number in"),
    "an oracle of one": (words(oracle=lambda key: 0.5), r"oracle\(key, event\) failed: TypeError.*; expected a number"),
}
