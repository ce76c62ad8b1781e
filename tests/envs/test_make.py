"""The one dictionary of names: every environment and source keeps the protocol, every wrong name is explained."""

import functools
import inspect
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llmrl
from llmrl.assembly.parts import make_environment
from llmrl.envs import AUX_SOURCES, ENVIRONMENTS, HOST_ENVIRONMENTS, make, make_host, step_with_reset, with_aux
from llmrl.settings.errors import unknown
from llmrl.types import Discrete

KEY = jax.random.key(0)


def takes_a_seed(name, source):
    return "seed" in inspect.signature(AUX_SOURCES[name][source]).parameters


SLOW = ("craftax_classic",)
"""Many operations, and the contract has each of them compiled three times."""


def sample(space, key):
    if isinstance(space, Discrete):
        return jax.random.randint(key, (), 0, space.num)
    return 2.0 * jax.random.normal(key, (space.dim,))


def action_is_large(state, action, next_state):
    return (jnp.abs(action) > 0).astype(jnp.float32).reshape(-1)[0]


def listed(name, *more):
    return pytest.param(name, *more, marks=pytest.mark.slow if name in SLOW else ())


# --- contract -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [listed(name) for name in ENVIRONMENTS])
def test_every_environment_with_all_its_sources_at_once(name):
    """Plain, jitted and vmapped steps agree, in strict promotion, and everything is of the library's dtypes."""
    env = make(name, aux=tuple(AUX_SOURCES[name]), horizon=3)
    assert env.spec.aux_names == tuple(AUX_SOURCES[name])
    step = functools.partial(step_with_reset, env)
    keys = jax.random.split(KEY, 4)
    with jax.numpy_dtype_promotion("strict"):
        states, obs = jax.vmap(env.reset)(keys)
        actions = jax.vmap(functools.partial(sample, env.spec.action))(keys)
        many = jax.jit(jax.vmap(step))(keys, states, actions, states, obs)
        one = [jax.tree.map(lambda x: x[2], tree) for tree in (keys, states, actions, states, obs)]
        plain, jitted = step(*one), jax.jit(step)(*one)

    for other in (jitted, jax.tree.map(lambda x: x[2], many)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), plain, other)
    _, next_obs, result = many
    kind = "uint8" if env.spec.encoding else "float32"
    assert next_obs.shape == obs.shape == (4, *env.spec.obs_shape) and next_obs.dtype == obs.dtype == kind
    assert [leaf.dtype.name for leaf in result] == [kind, "float32", *["bool"] * 3, "float32", "uint32", "int32"]
    assert result.aux.shape == (4, len(env.spec.aux_names)) and bool(jnp.isfinite(result.aux).all())


@pytest.mark.parametrize("name", [listed(name) for name in ENVIRONMENTS])
def test_a_scan_with_resets_carries_the_state(name):
    env = make(name, horizon=3)

    def step(carry, key):
        state, obs = carry
        state, obs, result = step_with_reset(env, key, state, sample(env.spec.action, key), *env.reset(key))
        return (state, obs), result

    (state, _), result = jax.lax.scan(step, env.reset(KEY), jax.random.split(KEY, 9))
    assert np.flatnonzero(result.truncated).tolist() == [2, 5, 8] and int(state.time) == 0


@pytest.mark.parametrize(
    ("name", "source"), [listed(name, source) for name in ENVIRONMENTS for source in AUX_SOURCES[name]]
)
def test_one_source_alone_says_the_same_as_among_all(name, source):
    env, alone = make(name, aux=tuple(AUX_SOURCES[name])), make(name, aux=source)
    assert alone.spec.aux_names == (source,)
    action = sample(env.spec.action, KEY)
    together = env.step(KEY, env.reset(KEY)[0], action)[1].aux[env.spec.aux_names.index(source)]
    np.testing.assert_allclose(alone.step(KEY, alone.reset(KEY)[0], action)[1].aux[0], together)


# --- putting together -----------------------------------------------------------------------------------------------


def test_sources_may_be_none_and_are_harmful_by_default():
    assert make("gridworld", aux=()).spec.aux_names == ()
    assert make("gridworld").spec.aux_names == ("harmful",)


def test_aux_scale_scales_every_source():
    chosen = {"aux": ("random", "potential"), "aux_function": action_is_large}
    small, large = make("gridworld", **chosen), make("gridworld", **chosen, aux_scale=5.0)
    action = jnp.asarray(1, jnp.int32)
    values = [env.step(KEY, env.reset(KEY)[0], action)[1].aux for env in (small, large)]
    np.testing.assert_allclose(5.0 * values[0], values[1], rtol=1e-6)
    assert small.spec.aux_names == ("random", "potential", "action_is_large") and float(values[0][2]) == 1.0


def test_a_mapping_gives_every_source_its_own_factor():
    action = jnp.asarray(1, jnp.int32)
    chosen = ("random", "potential"), {"random": 3, "potential": -0.5}
    envs = [make("gridworld", aux=aux, aux_scale=2.0) for aux in chosen]
    plain, weighted = (env.step(KEY, env.reset(KEY)[0], action)[1].aux for env in envs)
    np.testing.assert_allclose(weighted, plain * np.array([3.0, -0.5], np.float32), rtol=1e-6)
    assert envs[1].spec.aux_names == ("random", "potential")


def test_options_go_to_every_source_that_has_them():
    env = make("gridworld", aux=("random", "potential"), size=3, aux_options={"magnitude": 7.0, "gamma": 0.5})
    aux = env.step(KEY, env.reset(KEY)[0], jnp.asarray(1, jnp.int32))[1].aux
    np.testing.assert_allclose(aux[1], 7.0 * (4.0 - 0.5 * 3.0))
    assert 0.1 < abs(float(aux[0])) <= 7.0


@pytest.mark.parametrize("name", ["cartpole", "cartpole_continuous", "gridworld"])
def test_a_whole_number_is_an_option_however_it_is_written(name):
    """Files and command lines give 1 and 1.0 alike; a draw of the random source is the same by either."""

    def said(seed):
        env = make(name, aux=("random",), aux_options={"seed": seed})
        state, action = env.reset(KEY)[0], sample(env.spec.action, KEY)
        return float(env.step(KEY, state, action)[1].aux[0])

    assert said(1) == said(1.0) and len({said(seed) for seed in (0, 1, 2)}) == 3


def test_a_gymnax_id_with_a_function_of_one_s_own(tmp_path, monkeypatch):
    (tmp_path / "upright_for_tests.py").write_text(
        "import jax.numpy as jnp\ndef upright(state, action, next_state):\n    return jnp.cos(next_state.theta)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    env = make("Pendulum-v1", aux=(), aux_function="upright_for_tests.upright", horizon=9)
    assert (env.spec.name, env.spec.aux_names, env.spec.horizon) == ("Pendulum-v1", ("upright",), 9)
    _, result = env.step(KEY, env.reset(KEY)[0], jnp.zeros((1,)))
    np.testing.assert_allclose(result.aux[0], result.obs[0], rtol=1e-6)


def test_a_source_that_asks_for_a_key_gets_one_of_its_own():
    def first(state, action, next_state, key):
        return jax.random.uniform(key)

    def second(state, action, next_state, key=None):
        return jax.random.uniform(key)

    def silent(state, action, next_state):
        return jnp.zeros(())

    plain = make("gridworld", aux=())
    both = with_aux(plain, {"first": first, "silent": silent, "second": second})
    alone = with_aux(plain, {"second": second})
    action, state = jnp.asarray(1, jnp.int32), plain.reset(KEY)[0]
    values, again = both.step(KEY, state, action)[1].aux, both.step(jax.random.key(1), state, action)[1].aux
    assert float(values[0]) != float(values[2]) and values[1] == 0.0
    assert float(values[0]) != float(again[0])
    np.testing.assert_array_equal(values[2], alone.step(KEY, state, action)[1].aux[0])


def test_a_function_that_returns_several_makes_several_sources():
    env = make("gridworld", aux=(), aux_function=lambda state, action, next_state: jnp.ones((2,)))
    assert env.spec.aux_names == ("lambda_0", "lambda_1")


# --- refusals -------------------------------------------------------------------------------------------------------


def test_who_runs_in_python_has_a_door_of_its_own():
    for name in HOST_ENVIRONMENTS.keys() & AUX_SOURCES.keys():
        with pytest.raises(ValueError, match=f"{name} runs in Python.*make_host"):
            make(name)
        env = make_host(name, aux=dict.fromkeys(AUX_SOURCES[name], 2.0), horizon=3)
        assert env.spec.aux_names == tuple(AUX_SOURCES[name]) and len(env.sources) == len(env.spec.aux_names)
        with pytest.raises(ValueError, match="nearest: 'horizon'"):
            make_host(name, horizn=3)
    with pytest.raises(ValueError, match="nearest: 'crafter'"):
        make_host("craftr")


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"name": "cartpol"}, "unknown environment 'cartpol'; nearest: 'cartpole'"),
        ({"name": "PENDULUM-V1"}, "nearest: 'Pendulum-v1'"),
        ({"name": "cartpole", "aux": ("harmfull",)}, "auxiliary source of cartpole 'harmfull'; nearest: 'harmful'"),
        ({"name": "gridworld", "aux": ("beneficial",)}, "auxiliary source of gridworld 'beneficial'"),
        ({"name": "cartpole", "horizn": 3}, "parameter of cartpole 'horizn'; nearest: 'horizon'"),
        ({"name": "gridworld", "aux": "random", "aux_options": {"sed": 3}}, "'sed'; nearest: 'seed'"),
        ({"name": "gridworld", "aux": "potential", "aux_options": {"seed": 3}}, "unknown option.*'seed'"),
        ({"name": "gridworld", "aux": "random", "aux_options": {"size": 3}}, "unknown option.*'size'"),
        ({"name": "gridworld", "aux": (), "aux_options": {"seed": 3}}, "there are none to choose from"),
        ({"name": "cartpole", "aux": "random", "aux_options": {"seed": 0.5}}, "option seed .* random .*whole.*got 0.5"),
        ({"name": "cartpole", "aux": "harmful", "aux_options": {"magnitude": "big"}}, "magnitude .*number, got 'big'"),
        ({"name": "gridworld", "aux": ("harmful", "harmful")}, "different names"),
        ({"name": "Swimmer-misc"}, "Swimmer-misc has no auxiliary sources of its own.*harmful"),
        ({"name": "Pendulum-v1", "aux": (), "max_sped": 1.0}, "nearest: 'max_speed'"),
        ({"name": "gridworld", "aux_function": "hints"}, "'hints'.*dotted path"),
    ],
)
def test_a_wrong_name_is_explained(kwargs, says):
    with pytest.raises(ValueError, match=says):
        make(**kwargs)


@pytest.mark.parametrize("seed", [2**32 + 1, 2**32, -1, 2**70])
@pytest.mark.parametrize(
    ("name", "source"), [(n, s) for n in AUX_SOURCES for s in AUX_SOURCES[n] if takes_a_seed(n, s)]
)
def test_a_seed_that_would_be_another_is_refused(name, source, seed):
    with pytest.raises(ValueError, match=f"seed must be a whole number from 0 to 4294967295, got {seed}"):
        (make_host if name in HOST_ENVIRONMENTS else make)(name, aux=source, aux_options={"seed": seed})


def test_unknown_lists_everything_when_nothing_is_near():
    assert str(unknown("colour", "xyz", ["red", "blue"])) == "unknown colour 'xyz' (one of 'red', 'blue')"
    assert str(unknown("colour", "RED", ["red"])) == "unknown colour 'RED'; nearest: 'red' (one of 'red')"
    assert "12" in str(unknown("colour", 12, []))


def test_the_grid_does_not_pay_for_gymnax():
    code = "import sys; from llmrl.envs import make; make('gridworld'); assert 'gymnax' not in sys.modules"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


# --- environments of one's own ----------------------------------------------------------------------------------------


@pytest.fixture
def examples(monkeypatch):
    """Modules of scripts/examples, importable."""
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "scripts" / "examples")


@pytest.mark.parametrize(
    ("path", "settings", "error", "message"),
    [
        ("keydoor.keydor", {}, ValueError, "keydoor"),
        ("keydoor.keydoor", {"sise": 5}, ValueError, "size"),
        ("keydoor.closer", {}, ValueError, "needs its parameter .state., got none"),
        ("no_such_module_here.world", {}, ImportError, "PYTHONPATH"),
    ],
)
def test_what_is_wrong_with_an_environments_path_is_said(examples, path, settings, error, message):
    with pytest.raises(error, match=message):
        make(path, aux=(), **settings)


OWN_ARGUMENTS = [*inspect.signature(make).parameters]


@pytest.mark.parametrize("parameter", OWN_ARGUMENTS)
def test_a_parameter_called_as_an_argument_of_make_reaches_the_environments_function(parameter, monkeypatch):
    given, module = [], ModuleType("worlds_with_names_for_tests")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    world = make("gridworld", aux=(), size=3)
    monkeypatch.setattr(module, "open", lambda **parameters: given.append(parameters) or world, raising=False)
    monkeypatch.setattr(module, "closed", lambda: world, raising=False)
    words = ["env=gymnax", "aux=none", "method=ppo", f"+env.params.{parameter}=cartpole"]
    assert make_environment(llmrl.compose(*words, f"env.id={module.__name__}.open")) is world
    assert given == [{parameter: "cartpole"}]
    for id in (f"{module.__name__}.closed", "CartPole-v1"):
        with pytest.raises(ValueError, match=f"unknown parameter of {id} '{parameter}'"):
            make_environment(llmrl.compose(*words, f"env.id={id}"))


@pytest.mark.parametrize("maker", [make, make_host])
def test_parameters_by_name_are_the_keywords(maker):
    name = "crafter" if maker is make_host else "gridworld"
    assert maker(name, aux=(), params={"horizon": 7}).spec == maker(name, aux=(), horizon=7).spec
    with pytest.raises(ValueError, match=f"unknown parameter of {name} 'name'"):
        maker(name, aux=(), params={"name": "cartpole"})
