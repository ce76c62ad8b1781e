"""Every method, and every solver, surrogate, kind of data, schedule and curvature, runs for two iterations and learns.

Programs are dear, so the settings that go with a method are spread over few rows: each name in at least one, and a test
that none is missing. A new method is one more row.
"""

import functools
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llmrl
from llmrl.assembly.methods import METHODS, make_gradient, make_method, meta_settings
from llmrl.assembly.parts import build, make_environment
from llmrl.bilevel.solvers import fisher
from llmrl.bilevel.types import MetaProblem
from llmrl.learner.arms import arms_of
from llmrl.learner.streams import stream_states
from llmrl.ops import surrogates
from llmrl.rewards import task_signal
from llmrl.rewards.bonus import BonusState
from llmrl.settings.config import (
    CURVATURES,
    DATA,
    GRADIENTS,
    SCHEDULES,
    SOLVERS,
    SURROGATES,
    Config,
    MethodConfig,
    OuterConfig,
    SolverConfig,
    TrustConfig,
)
from llmrl.settings.errors import unknown
from llmrl.settings.overrides import config_dir
from llmrl.settings.validation import validate
from llmrl.training.loop import make_trainer

TINY = (
    "env=gridworld",
    "env.size=2",
    "env.horizon=4",
    "aux=[helpful_hackable,random]",
    "ppo.num_envs=4",
    "ppo.num_steps=8",
    "ppo.num_epochs=1",
    "ppo.num_minibatches=2",
    "ppo.hidden=[4]",
    "method.weight.hidden=[4]",
    "method.potential.hidden=[4]",
    "method.potential.updates=2",
    "aux.ranking.hidden=[4]",
    "aux.ranking.updates=2",
    "solver.num_terms=3",
    "method.novelty.hidden=[4]",
    "method.novelty.features=3",
    f"method.goals.table='{Path(__file__).parents[1] / 'goals.jsonl'}'",
    "total_steps=64",
)
KEYS = jax.random.split(jax.random.key(0))
SHAPING = ("pbrs", "dpba", "pies", "adops")

ROWS = {
    "ppo": ("method=ppo",),
    "add": ("method=add",),
    "lirpg": ("method=lirpg",),
    "credit": ("method=credit",),
    "twin": ("method=twin", "method.arms.follow=[none,learned]"),
    "eipo": ("method=eipo",),
    "decoupled": ("method=decoupled",),
    "irpo": ("method=irpo", "method.irpo.steps=2"),
    "select": ("method=select", "method.select.arms=[ppo,scalar]"),
    "pbrs": ("method=pbrs",),
    "dpba": ("method=dpba",),
    "pies": ("method=pies",),
    "adops": ("method=adops", "method.correction.ramp=0.5"),
    "ranked_potential": ("method=ranked_potential",),
    "thresholded": ("method=thresholded",),
    "implicit": ("method=implicit", "solver=neumann", "method.outer.surrogate=ratio", "method.outer.data=fresh"),
    "paper": (
        "method=implicit_paper",
        "solver=neumann_finite_difference",
        "solver.curvature=hessian",
        "method.outer.data=previous",
        "method.outer.surrogate=log_prob",
        "method.weight.sees_aux=true",
    ),
    "scalar": (
        "method=scalar",
        "solver=conjugate_gradient",
        "solver.curvature=hessian",
        "solver.damping=auto",
        "method.outer.data=window",
        "method.outer.surrogate=dice",
        "method.outer.schedule=converged",
        "method.outer.optimiser=sgd",
    ),
    "diagonal": ("method=implicit", "solver=diagonal", "method.outer.schedule=online", "solver.curvature_fraction=0.5"),
    "sherman_morrison": ("method=implicit", "solver=sherman_morrison", "solver.curvature=fisher"),
    "identity": (
        "method=scalar",
        "solver=identity",
        "method.weight.offset=true",
        "method.weight.discount=true",
        "method.outer.weight_penalty=0.01",
        "method.outer.discount_penalty=0.01",
    ),
    "unrolled": ("method=unrolled",),
    "barfi": ("method=barfi", "method.outer.window=2", "method.outer.warmup=0"),
    "bipars_em": ("method=bipars_em",),
    "bipars_mgl": ("method=bipars_mgl",),
    "bipars_imgl": ("method=bipars_imgl", "method.outer.window=2"),
    "frozen": ("method=frozen", "reward_from=elsewhere", "method.reward_of=scalar"),
    "rnd": ("method=rnd",),
    "icm": ("method=icm",),
    "apt": ("method=apt", "method.novelty.representation=inverse"),
    "ellm": ("method=ellm",),
    "ellm_pretrained": ("method=ellm_pretrained", "method.goals.pretraining=0.5"),
    "dense": ("method=implicit", "solver=dense", "solver.curvature=hessian", "method.trust.cross_fitting=false"),
}


@functools.cache
def composed(row) -> Config:
    return llmrl.compose(*TINY, *ROWS[row])


@functools.cache
def trainer_of(row):
    return make_trainer(composed(row))


@functools.cache
def learns(row) -> bool:
    """Whether anything moves along a hypergradient."""
    return make_method(composed(row), trainer_of(row).env.spec).meta is not None


@functools.cache
def program(row, together):
    """``(key, numbers) -> (phis at first, last state, metrics)``, compiled; for two of each at once if ``together``."""
    trainer = trainer_of(row)

    def run(start, numbers):
        state, metrics = trainer.run(start, numbers, 2)
        return start.phis, state._replace(key=jax.random.key_data(state.key)), metrics

    if not together:
        return jax.jit(lambda key, numbers: run(trainer.init(key, numbers), numbers))
    # One after the other, as in training: a run whose start holds numbers that are the same for all is traced twice.
    return jax.jit(lambda keys, numbers: jax.vmap(run)(jax.vmap(trainer.init)(keys, numbers), numbers))


def numbers_of(row, factors):
    """The row's numbers; each times a factor, where one is given."""
    return {
        name: jnp.asarray([factor * value for factor in factors], jnp.float32)
        for name, value in trainer_of(row).numbers.items()
    }


def test_no_name_is_missing():
    configs = [composed(row) for row in ROWS]
    assert {config.method.name for config in configs} == set(METHODS)
    words = {word for row in ROWS.values() for word in row}
    for group in ("method", "solver"):
        assert {f"{group}={file.stem}" for file in (config_dir() / group).glob("*.yaml")} <= words
    learning = [composed(row) for row in ROWS if learns(row)]
    implicit = [config for config in learning if config.method.outer.gradient == "implicit"]
    assert {config.method.outer.gradient for config in learning} == set(GRADIENTS)
    assert {config.solver.name for config in implicit} == set(SOLVERS)
    assert {config.solver.curvature for config in implicit} == set(CURVATURES)
    assert {config.method.outer.surrogate for config in implicit} == set(SURROGATES) == set(surrogates.SURROGATES)
    assert {config.method.outer.data for config in implicit} == set(DATA)
    assert {config.method.outer.schedule for config in implicit} == set(SCHEDULES)


@pytest.mark.parametrize("row", ROWS)
def test_two_iterations_are_finite_and_move_what_is_learned(row):
    first, state, metrics = program(row, together=True)(KEYS, numbers_of(row, (1.0, 1.0)))
    for name, values in metrics.items():
        assert values.shape == (2, 2), name  # seeds, iterations
        assert np.all(np.isfinite(values)), name
    for tree in (state.params, state.phis, state.opt_state):
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(tree))
    assert np.all(state.iteration == 2)
    for noted in state.transform_states:
        assert not isinstance(noted, BonusState) or np.all(noted.age == 2)  # observed once per iteration, and carried

    assert not jax.tree.leaves(first[0])  # nothing is learned about the bare task
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), first, state.phis)
    assert any(jax.tree.leaves(moved)) is learns(row)
    assert ("meta_step" in metrics) is learns(row)
    if learns(row):
        assert np.all(metrics["meta_step"] == 1) and np.all(metrics["meta_skipped"] == 0)
        # Groups that start at a saddle may wait for others, but each source's own number never does.
        assert moved[1].get("scalar", True)


def test_of_several_policies_those_that_learn_weights_move_their_own_alone():
    chosen = composed("twin").method.arms.follow
    learning = [arm.learns for arm in arms_of(chosen, trainer_of("twin").env.spec.aux_names)]
    first, state, _ = program("twin", together=True)(KEYS, numbers_of("twin", (1.0, 1.0)))
    changes = jax.tree.map(lambda a, b: np.asarray(a != b).reshape(*a.shape[:2], -1).any(axis=-1), first, state.phis)
    np.testing.assert_array_equal(changes[1]["scalar"].any(axis=0), learning)
    assert not any(np.any(changed[:, np.logical_not(learning)]) for changed in jax.tree.leaves(changes))


@pytest.mark.parametrize("row", SHAPING)
def test_shaping_asks_for_something_to_shape_with(row):
    config = llmrl.compose(*TINY, *ROWS[row], "aux=none")
    with pytest.raises(ValueError, match=f"method={row} shapes with auxiliary sources, got none.*aux=harmful"):
        make_method(config, make_environment(config).spec)


@pytest.mark.parametrize("name", METHODS)
def test_the_first_stream_is_the_bare_task(random_rollout, name):
    row = next(row for row in ROWS if composed(row).method.name == name)
    spec = make_environment(composed(row)).spec
    streams = make_method(composed(row), spec).streams
    rollout = random_rollout(spec, composed(row).ppo.num_steps)
    bare = task_signal(rollout, 0.9)
    phi, state = streams[0].transform.init(KEYS[0])
    jax.tree.map(np.testing.assert_array_equal, streams[0].transform.apply(phi, state, rollout, bare), bare)


@pytest.mark.parametrize("name", METHODS)
def test_the_task_counts_once(random_rollout, name):
    """A task that pays one more per step adds one to what the policy is paid for, however many streams there are."""
    row = next(row for row in ROWS if composed(row).method.name == name)
    config, spec = composed(row), make_environment(composed(row)).spec
    rollout = random_rollout(spec, config.ppo.num_steps)
    bare = task_signal(rollout, 0.9)

    def followed(signal):
        total = jnp.zeros_like(signal.reward)
        streams = make_method(config, spec).streams
        phis, states = zip(*(stream.transform.init(KEYS[0]) for stream in streams), strict=True)
        for stream, phi, state in stream_states(streams, phis, states):
            if isinstance(state, BonusState):
                state = state._replace(age=jnp.asarray(100.0))  # after pretraining
            total += stream.weight * stream.transform.apply(phi, state, rollout, signal).reward
        return total

    more = followed(bare._replace(reward=bare.reward + 1.0)) - followed(bare)
    np.testing.assert_allclose(more, 1.0, rtol=1e-4)


def test_the_outer_level_has_the_settings_of_the_same_names():
    of_outer = {"data": "window", "window": 3, "schedule": "converged", "every": 5, "warmup": 7, "converged_kl": 0.2}
    of_outer |= {"scale_decay": 0.3, "gae_lambda": 0.4}
    of_trust = {"cross_fitting": False, "gate": False, "evidence_memory": 0.6}
    method = MethodConfig(outer=OuterConfig(**of_outer), trust=TrustConfig(**of_trust))
    found = meta_settings(replace(composed("ppo"), method=method))
    assert found._asdict() == of_outer | of_trust | {"follows_updates": False}


@pytest.mark.filterwarnings("ignore:implicit_gradient")  # that a bound cuts the solution
@pytest.mark.parametrize("solver", ["dense", "conjugate_gradient", "sherman_morrison"])
def test_the_solver_damps_and_bounds_as_its_settings_say(solver):
    """Of a diagonal Fisher information F: x = (F + damping)^-1 g, and no longer than max_ratio |g|."""
    curvatures, theta = jnp.asarray([0.5, 0.1]), jnp.asarray([1.0, -2.0])
    samples = jnp.sqrt(2.0 * curvatures) * jnp.eye(2)
    problem = MetaProblem(
        inner_loss=lambda theta, phi: -jnp.vdot(theta, phi),
        outer_loss=lambda theta, phi: 0.5 * jnp.vdot(theta, theta),
        inner_step=lambda theta, phi: theta,
        operator=lambda theta, phi: fisher(lambda point: samples @ point, theta),
    )
    for damping, bound in ((0.25, 100.0), (2.0, 100.0), (0.25, 1.5)):
        settings = SolverConfig(name=solver, damping=damping, max_ratio=bound, curvature="fisher")
        gradient, info = make_gradient(OuterConfig(), settings)(problem, theta, jnp.zeros(2), KEYS[0])
        solved = theta / (curvatures + damping)
        shorter = jnp.minimum(1.0, bound * jnp.linalg.norm(theta) / jnp.linalg.norm(solved))
        np.testing.assert_allclose(gradient, shorter * solved, rtol=1e-4)
        np.testing.assert_allclose(info.damping, damping, rtol=1e-6)
        assert float(info.was_cut) == float(shorter < 1.0)


def test_a_gradient_of_what_the_policy_sees_needs_a_policy_that_sees_it():
    config = llmrl.compose(*TINY, "method=implicit", "method.outer.gradient=explicit")
    with pytest.raises(ValueError, match=r"explicit.*bipars_em.*got method=implicit"):
        make_method(config, make_environment(config).spec)


@pytest.mark.parametrize(("name", "message"), [("ppo", "learns no reward"), ("frozen", "frozen"), (None, "None")])
def test_only_a_learned_reward_can_be_frozen(name, message):
    config = composed("frozen")
    config = replace(config, method=replace(config.method, reward_of=name))
    with pytest.raises(ValueError, match=message):
        make_method(config, make_environment(config).spec)


@pytest.mark.parametrize("num_envs", [1, 7])
def test_only_who_splits_the_environments_in_halves_needs_an_even_number_of_them(num_envs):
    refused = set()
    for row in ROWS:
        # All of APT's neighbours are in one rollout.
        ppo = replace(composed(row).ppo, num_envs=num_envs, num_steps=16, num_minibatches=1)
        config = replace(composed(row), ppo=ppo)
        try:
            build(validate(config), make_environment(config))
        except ValueError as error:
            assert f"ppo.num_envs={num_envs} is odd" in str(error) and f"method={config.method.name}" in str(error)
            refused.add(row)
    splitting = {row for row in ROWS if composed(row).method.trust.cross_fitting}
    assert refused == {row for row in splitting if learns(row)} != set()


def test_a_weight_of_zero_is_plain_ppo():
    """Beside the task's own head, a stream that pays nothing changes nothing: not a bit of the policy."""
    small = [override for override in TINY if not override.startswith(("env", "aux"))]
    never = ("method.outer.learning_rate=0", "method.outer.scalar_learning_rate=0", "solver=identity")
    actors = []
    for overrides in (("method=ppo",), ("method=implicit", *never)):
        trainer = make_trainer(llmrl.compose(*small, "env=cartpole", "aux=harmful", *overrides))

        def two_iterations(key, trainer=trainer):
            return trainer.run(trainer.init(key, trainer.numbers), trainer.numbers, 2)[0]

        state = jax.jit(two_iterations)(KEYS[0])
        actors.append(state.params.actor)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), *actors)


def test_an_unknown_method_names_the_nearest():
    config = composed("ppo")
    wrong = Config(method=type(config.method)(name="implict"))
    with pytest.raises(type(unknown("method", "x", METHODS)), match=r"implict.*nearest.*implicit"):
        make_method(wrong, make_environment(config).spec)


# --- many at once -----------------------------------------------------------------------------------------------------

# Two iterations of sums in another order.
TOLERANCE = {"rtol": 1e-3, "atol": 1e-4}


def assert_rows_equal(many, single, index):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[index], b, **TOLERANCE), many, single)


def test_seeds_together_are_seeds_one_by_one():
    numbers = numbers_of("implicit", (1.0, 1.0))
    many = program("implicit", together=True)(KEYS, numbers)
    for seed in range(2):
        alone = program("implicit", together=False)(KEYS[seed], {name: n[seed] for name, n in numbers.items()})
        assert_rows_equal(many, alone, seed)
    assert not np.allclose(many[1].phis[1]["scalar"][0], many[1].phis[1]["scalar"][1])


def test_numbers_together_are_numbers_one_by_one():
    """Every float of the config at once: two runs of one seed whose numbers all differ by a tenth."""
    numbers, same = numbers_of("implicit", (1.0, 0.9)), jnp.stack([KEYS[0], KEYS[0]])
    many = program("implicit", together=True)(same, numbers)
    for run in range(2):
        alone = program("implicit", together=False)(KEYS[0], {name: n[run] for name, n in numbers.items()})
        assert_rows_equal(many, alone, run)
    kernels = jax.tree.leaves(many[1].params)
    assert any(not np.allclose(kernel[0], kernel[1], **TOLERANCE) for kernel in kernels)
