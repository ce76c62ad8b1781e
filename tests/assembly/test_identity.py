"""What can matter to a run is in its identity, and nothing else is: asked of the traced programs themselves."""

from dataclasses import asdict, replace
from operator import attrgetter

import jax
import jax.numpy as jnp
import pytest
from jax._src.interpreters import partial_eval
from test_methods import KEYS, ROWS, TINY, composed

import llmrl
from llmrl.assembly.identity import identity, ignores_sources, of_one_run
from llmrl.assembly.methods import METHODS
from llmrl.assembly.parts import build, make_environment, numbers_of, with_numbers
from llmrl.settings.config import AuxConfig, Config, MethodConfig
from llmrl.training import iteration
from llmrl.training.iteration import first_state, iterate


def what_matters(config):
    """The numbers, and ``sources`` for what the sources say, that an iteration's learning depends on."""
    env, numbers = make_environment(config), numbers_of(config)

    def learned(numbers, said):
        def step(key, state, action):
            state, result = env.step(key, state, action)
            return state, result._replace(aux=said)

        live, heard = with_numbers(config, numbers), env._replace(step=step)
        state = first_state(live, heard, KEYS[0], None)
        state, _ = iterate(live, heard, build(live, heard), state, jnp.asarray(0), None)
        return state.params, state.opt_state, state.phis, state.transform_states

    given = {name: jnp.float32(value) for name, value in numbers.items()}, jnp.ones(len(env.spec.aux_names))
    traced = jax.make_jaxpr(learned)(*given)
    _, used = partial_eval.dce_jaxpr(traced.jaxpr, [True] * len(traced.out_avals), instantiate=False)
    return {name for name, matters in zip([*sorted(numbers), "sources"], used, strict=True) if matters}


# One of each kind; a run that has learned its reward is read as the run that learns it.
@pytest.mark.parametrize(
    ("row", "more"),
    [
        *((row, ()) for row in ("ppo", "add", "pbrs", "pies", "adops", "lirpg", "rnd", "icm", "apt", "ellm", "scalar")),
        ("add", ("aux=[novelty,random]",)),
        ("add", ("aux.transform=ranked_potential",)),
        ("thresholded", ()),
        ("ppo", ("aux=[novelty,random]",)),
    ],
)
def test_what_matters_to_a_program_is_in_its_identity(row, more, monkeypatch):
    # What is infinite is skipped, whoever said it; of sound sources nothing is asked there.
    monkeypatch.setattr(iteration, "_without_harm", lambda before, after, rollout: (after, jnp.zeros(())))
    config = llmrl.compose(*TINY, *ROWS[row], *more) if more else composed(row)
    matters = what_matters(config)
    assert ("sources" in matters) == (not ignores_sources(config))
    assert matters - {"sources"} <= identity(config).keys()


def test_whoever_hears_no_source_is_one_run_under_all_of_them():
    ppo = [llmrl.compose("method=ppo", f"aux={aux}") for aux in ("none", "harmful", "beneficial", "language")]
    assert all(of_one_run(ppo[0], other) for other in ppo)
    add = [replace(config, method=MethodConfig("add")) for config in ppo]
    assert not any(of_one_run(add[0], other) for other in add[1:])


@pytest.mark.parametrize("method", ["ppo", "add", "implicit"])
def test_a_run_is_its_settings_and_its_seed_wherever_it_is_kept(method):
    config = Config(method=MethodConfig(method))
    elsewhere = replace(config, run_dir="x", devices=1, seeds=3, progress=False, resume=False, num_chunks=7)
    assert of_one_run(config, elsewhere)
    for other in (
        replace(config, seed=1),
        replace(config, total_steps=2 * config.total_steps),
        replace(config, ppo=replace(config.ppo, learning_rate=1.0)),
        replace(config, env=replace(config.env, horizon=7)),
    ):
        assert not of_one_run(config, other)
    assert of_one_run(config, replace(config, total_steps=config.total_steps + 1))  # as many iterations
    assert of_one_run(config, replace(config, env=replace(config.env, horizon=200)))  # the default, spelled out
    solver = replace(config, solver=replace(config.solver, num_terms=3))
    assert of_one_run(config, solver) == (method != "implicit")


def hearing(source, method="add", **settings):
    """A run of a source, with other settings by dotted name, ``__`` for a dot."""
    config = Config(method=MethodConfig(method), aux=AuxConfig(sources={source: 1.0}))
    for name, value in settings.items():
        config = changed(config, name.split("__"), value)
    return config


def changed(config, names, value):
    first, *rest = names
    return replace(config, **{first: changed(getattr(config, first), rest, value) if rest else value})


@pytest.mark.parametrize("method", ["ppo", "add", "pbrs", "dpba", "pies", "adops", "implicit"])
@pytest.mark.parametrize(
    ("source", "setting"),
    [
        ("novelty", {"method__novelty__learning_rate": 1.0}),
        ("goals", {"method__goals__threshold": 0.5}),
        ("goals", {"llm__noise": 0.5}),
        ("language", {"aux__center": 0.0}),
        ("language", {"llm__capacity": 2}),
        ("language", {"llm__answers": "other"}),
        ("language", {"llm__function": "hints.good"}),
        ("language", {"captioner": "hints.words"}),
    ],
)
def test_what_a_source_reads_counts_wherever_the_source_is_heard(method, source, setting):
    def counts(source):
        return not of_one_run(hearing(source, method), hearing(source, method, **setting))

    assert counts(source) == (method != "ppo")
    assert counts("harmful") == (method == "implicit" and any(key.startswith("method") for key in setting))


@pytest.mark.parametrize("method", ["ppo", "add", "implicit"])
@pytest.mark.parametrize("transform", ["none", "ranked_potential", "thresholded"])
@pytest.mark.parametrize(
    ("reads", "setting"),
    [("ranked_potential", {"aux__ranking__updates": 3}), ("thresholded", {"aux__error_rate": 0.2})],
)
def test_what_a_transform_reads_counts_where_the_sources_are_transformed(method, transform, reads, setting):
    one, other = (hearing("harmful", method, aux__transform=transform, **more) for more in ({}, setting))
    assert of_one_run(one, other) == (method == "ppo" or transform != reads)
    assert of_one_run(one, hearing("harmful", method)) == (method == "ppo" or transform == "none")
    named = hearing("harmful", reads, **setting)
    assert not of_one_run(named, hearing("harmful", reads))


FETCHED = {"cache": None, "concurrency": 2, "deadline": 5.0, "retries": 1, "noise_seed": 3, "noise_unit": "answer"}


@pytest.mark.parametrize("source", ["language", "goals"])
@pytest.mark.parametrize(("name", "value"), [*FETCHED.items(), ("answers", "other")])
def test_how_answers_are_fetched_is_no_part_of_a_run(source, name, value):
    one, other = (hearing(source, llm__provider="oracle", **more) for more in ({}, {f"llm__{name}": value}))
    assert of_one_run(one, other)
    one, other = (hearing(source, llm__noise=0.1, **more) for more in ({}, {f"llm__{name}": value}))
    assert of_one_run(one, other) == (name not in ("noise_seed", "noise_unit", "answers"))


@pytest.mark.parametrize("name", METHODS)
def test_a_recipe_names_settings_that_exist(name):
    recipe, settings = METHODS[name], asdict(MethodConfig())
    assert all(isinstance(settings[section], dict) for section in recipe.reads or ())
    assert recipe.course is None or attrgetter(recipe.course)(MethodConfig()) >= 0.0


def test_of_a_method_of_another_version_anything_may_matter():
    one, other = (hearing("harmful", "no_longer_there", method__novelty__updates=number) for number in (1, 2))
    assert not of_one_run(one, other) and not ignores_sources(one)
