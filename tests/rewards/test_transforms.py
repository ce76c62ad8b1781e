"""Every reward transform keeps one contract (a new one is one more line in ``TRANSFORMS``), and its own promises."""

from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from plain import make_weights, weight_limits
from small import with_defaults

from llmrl.language import Table
from llmrl.learner.streams import given
from llmrl.rewards import (
    add,
    add_one,
    adops,
    apt,
    dpba,
    goals,
    icm,
    intrinsic,
    intrinsic_stream,
    pbrs,
    pies,
    rnd,
    task,
    task_and_goals,
    task_signal,
)
from llmrl.settings.config import NoveltyConfig
from llmrl.trust.blend import LEAST_SHARE, MixtureState, mixture
from llmrl.trust.evidence import Significance
from llmrl.trust.limits import no_limits
from llmrl.trust.task_statistics import no_task_statistics, observed
from llmrl.types import Box, Discrete, EnvSpec

T, N, M, GAMMA = 6, 4, 2, 0.9
KEY = jax.random.key(0)
DISCRETE = EnvSpec("none", (3,), Discrete(4), 10, ("first", "second"))
CONTINUOUS = EnvSpec("none", (3,), Box(2), 10, ("first", "second"))


def blend(spec, trust=None, judged=False, **weights):
    return mixture(spec, make_weights(spec, hidden=(4,), **weights), trust, judged=judged)


UNSEEN = MixtureState(no_limits(M).init())


POTENTIAL = {"hidden": (4,), "updates": 2, "batch_size": 8, "learning_rate": 3e-3, "coefficient": 1.0}


def explore(bonus, *size, spec, **options):
    made = with_defaults(bonus, NoveltyConfig(), hidden=(4,), features=3, **options)(spec, *size)
    return intrinsic_stream(made, 0.8, T, N, "novelty")


SUGGESTED = Table(np.zeros(1, np.uint32), np.asarray([[0.0, 1.0]], np.float32))
GOALS = goals(SUGGESTED, N, threshold=0.99, ineffective=False)

TRANSFORMS = {
    "task": lambda spec: task(),
    "add": lambda spec: add(0.5),
    "add_one": lambda spec: add_one(1),
    "intrinsic": lambda spec: intrinsic(spec, hidden=(4,)),
    "scalar": lambda spec: blend(spec, network=False),
    "network": lambda spec: blend(spec, scalar=False, bound=None),
    "everything": lambda spec: blend(spec, sees_aux=True, offset=True, discount=True, judged=True),
    "trusted": lambda spec: blend(spec, weight_limits(M)),
    "pbrs": lambda spec: pbrs(0.5),
    "dpba": lambda spec: dpba(spec, **POTENTIAL),
    "pies": lambda spec: pies(spec, num_iterations=4, decay=0.5, **POTENTIAL),
    "adops": lambda spec: adops(epsilon=1e-7, ramp=2.0),
    "rnd": lambda spec: explore(rnd, N, spec=spec),
    "icm": lambda spec: explore(icm, N, spec=spec),
    "apt": lambda spec: explore(apt, T, N, spec=spec, neighbors=3),
    "goals": lambda spec: task_and_goals(GOALS, T, N, coefficient=1.0, pretraining=0.0, keep=True),
}
CASES = [(name, DISCRETE) for name in TRANSFORMS]
CASES += [("intrinsic", CONTINUOUS), ("everything", CONTINUOUS), ("icm", CONTINUOUS), ("dpba", CONTINUOUS)]
NON_EPISODIC = ("rnd", "icm", "apt")
"""Streams of their own, without the task's reward and beyond its terminations."""
APART = (*NON_EPISODIC, "adops")
"""Streams of their own, without the task's reward."""


def contract(make, cases=CASES):
    return pytest.mark.parametrize(
        ("name", "spec"), cases, ids=[f"{name}-{type(spec.action).__name__}" for name, spec in cases]
    )(make)


def contract_with_task(make):
    return contract(make, [(name, spec) for name, spec in CASES if name not in APART])


def paid(transform, rollout, phi=None, state=None):
    """The signal, with phi and state as at the start unless given."""
    started = transform.init(KEY)
    return transform.apply(
        started[0] if phi is None else phi,
        after(transform, started[1], ()) if state is None else state,
        rollout,
        task_signal(rollout, GAMMA),
    )


def after(transform, state, rollouts):
    """A state as the transform takes it, after the task was seen in so many rollouts."""
    return given(transform, state, reduce(observed, rollouts, no_task_statistics()))


def knowing(transform, known):
    """A blend's first state, as the transform takes it, with these significances."""
    return after(transform, transform.init(KEY)[1]._replace(significance=known), ())


def everywhere(tree, value):
    return jax.tree.map(lambda x: jnp.full_like(x, value), tree)


# --- the contract -----------------------------------------------------------------------------------------------------


def plain(tree):
    """With random keys as numbers."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x, tree)


def everything_of(transform, key, phi_shift, rollout):
    """All four functions once: (phi, signal, state before, state after, report, slope of the mean reward in phi)."""
    phi, state = transform.init(key)
    phi = jax.tree.map(lambda x: x + phi_shift, phi)
    bare = task_signal(rollout, GAMMA)

    def mean_reward(phi):
        return jnp.mean(transform.apply(phi, after(transform, state, ()), rollout, bare).reward)

    noted = transform.observe(phi, after(transform, state, [rollout]), rollout, bare)
    now = after(transform, noted, [rollout])
    signal = transform.apply(phi, now, rollout, bare)
    return phi, signal, state, noted, transform.report(phi, now, rollout), jax.grad(mean_reward)(phi)


@contract
def test_contract(random_rollout, name, spec):
    transform = TRANSFORMS[name](spec)
    rollouts = [random_rollout(spec, T, N, seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *rollouts)
    shifts, keys = jnp.asarray([0.0, 0.1]), jax.random.split(KEY)
    call = jax.jit(lambda key, shift, rollout: everything_of(transform, key, shift, rollout))
    many = jax.jit(jax.vmap(lambda key, shift, rollout: everything_of(transform, key, shift, rollout)))(
        keys, shifts, stacked
    )
    for seed, rollout in enumerate(rollouts):
        phi, signal, before, after, report, slope = call(keys[seed], shifts[seed], rollout)
        assert signal.reward.shape == signal.discount.shape == (T, N)
        assert signal.reward.dtype == signal.discount.dtype == jnp.float32
        assert set(phi) <= {"scalar", "network", "offset", "discount"}  # the groups that have rates
        assert all(value.shape == () for value in report.values())
        for tree in (signal, report, slope):
            assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(tree))
        # A scan carries the state.
        assert jax.tree.map(jnp.shape, before) == jax.tree.map(jnp.shape, after)
        assert jax.tree.map(lambda x: x.dtype, before) == jax.tree.map(lambda x: x.dtype, after)
        steps = rollout.steps
        ends = steps.terminated & (name not in NON_EPISODIC)
        np.testing.assert_array_equal(signal.discount == 0, ends)  # and so not where only truncated
        each = jax.tree.map(lambda x, seed=seed: x[seed], many)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
            plain(each),
            plain((phi, signal, before, after, report, slope)),
        )


@contract_with_task
def test_without_sources_only_the_offset_may_pay(random_rollout, name, spec):
    """A source that says nothing changes nothing, however much it is trusted."""
    rollout = random_rollout(spec, T, N, aux=np.zeros((T, N, M), np.float32))
    found = paid(TRANSFORMS[name](spec), rollout)
    np.testing.assert_allclose(found.reward, rollout.steps.reward, atol=1e-6)


# --- each one's own promises ------------------------------------------------------------------------------------------


@pytest.fixture
def rollout(random_rollout):
    return random_rollout(DISCRETE, T, N)


def test_the_task_is_left_alone(rollout):
    found = paid(task(), rollout)
    np.testing.assert_array_equal(found.reward, rollout.steps.reward)
    np.testing.assert_allclose(found.discount, GAMMA * ~np.asarray(rollout.steps.terminated))


def test_add_adds_every_source(rollout):
    expected = rollout.steps.reward + 0.5 * jnp.sum(rollout.steps.aux, axis=-1)
    np.testing.assert_allclose(paid(add(0.5), rollout).reward, expected, rtol=1e-5)


@pytest.mark.parametrize("bound", [None, 1.0, 2.5])
@pytest.mark.parametrize("network", [True, False])
def test_a_constant_weight_is_that_weight_added(rollout, bound, network):
    transform = blend(DISCRETE, bound=bound, initial=0.7, network=network)
    np.testing.assert_allclose(paid(transform, rollout).reward, paid(add(0.7), rollout).reward, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("parts", [{"network": False}, {"scalar": False}, {}])
@pytest.mark.parametrize("initial", [-0.9, 0.0, 0.3])
def test_weights_start_where_asked(rollout, parts, initial):
    transform = blend(DISCRETE, initial=initial, **parts)
    phi, state = transform.init(KEY)
    report = transform.report(phi, after(transform, state, ()), rollout)
    for name in ("weight_mean", "weight_mean_active", "weight_mean_active/first", "weight_mean_active/second"):
        np.testing.assert_allclose(report[name], initial, atol=1e-6)


def test_every_source_has_a_weight_of_its_own(rollout):
    transform = blend(DISCRETE, network=False, bound=None)
    found = paid(transform, rollout, {"scalar": jnp.asarray([2.0, -3.0])})
    expected = np.asarray(rollout.steps.reward) + np.asarray(rollout.steps.aux) @ [2.0, -3.0]
    np.testing.assert_allclose(found.reward, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("extreme", [-50.0, 50.0])
def test_bounded_weights_are_bounded(rollout, extreme):
    transform = blend(DISCRETE, bound=1.5)
    phi, state = transform.init(KEY)
    weight = transform.report(everywhere(phi, extreme), after(transform, state, ()), rollout)["weight_mean"]
    assert abs(weight) <= 1.5 + 1e-6
    np.testing.assert_allclose(
        transform.report(phi | {"scalar": jnp.full(M, extreme)}, after(transform, state, ()), rollout)["weight_mean"],
        np.sign(extreme) * 1.5,
        rtol=1e-5,
    )


def test_a_network_tells_actions_apart(rollout):
    transform = blend(DISCRETE, scalar=False, bound=None)
    phi = jax.tree.map(lambda x: x + 0.3, transform.init(KEY)[0])
    steps = rollout.steps
    other = rollout._replace(steps=steps._replace(action=(steps.action + 1) % 4))
    assert not np.allclose(paid(transform, rollout, phi).reward, paid(transform, other, phi).reward)


def test_where_a_source_is_silent_is_not_averaged(random_rollout):
    """``weight_mean_active`` is the mean where the source says something, 0 where it never does."""
    aux = np.zeros((T, N, M), np.float32)
    aux[0, 0, 0] = -0.1
    rollout = random_rollout(DISCRETE, T, N, aux=aux)
    weights = make_weights(DISCRETE, hidden=(4,))
    transform = mixture(DISCRETE, weights)
    phi, state = transform.init(KEY)
    phi = jax.tree.map(lambda x: x + 0.3, phi)
    report = transform.report(phi, after(transform, state, ()), rollout)
    np.testing.assert_allclose(
        report["weight_mean_active/first"], weights.weight(phi, UNSEEN, rollout)[0, 0, 0], rtol=1e-5
    )
    assert report["weight_mean_active/second"] == 0


def test_the_learned_discount_starts_at_0_99_and_replaces_the_tasks(rollout):
    transform = blend(DISCRETE, discount=True)
    phi, state = transform.init(KEY)
    alive = ~np.asarray(rollout.steps.terminated)
    np.testing.assert_allclose(paid(transform, rollout).discount, alive / (1 + np.exp(-4.6)), rtol=1e-5)
    lower = paid(transform, rollout, phi | {"discount": jnp.zeros(())})
    np.testing.assert_allclose(lower.discount, 0.5 * alive, rtol=1e-6)
    np.testing.assert_allclose(
        transform.report(phi, after(transform, state, ()), rollout)["discount"], 0.990, atol=1e-3
    )


def test_the_offset_starts_at_0_and_stays_within_1(rollout):
    plain, transform = blend(DISCRETE), blend(DISCRETE, offset=True)
    phi, _ = transform.init(KEY)
    np.testing.assert_array_equal(paid(transform, rollout).reward, paid(plain, rollout).reward)
    # Weights stay at 0, so what is paid beside the task is the offset alone.
    extreme = paid(transform, rollout, phi | {"offset": everywhere(phi["offset"], 50.0)}).reward - rollout.steps.reward
    np.testing.assert_allclose(np.abs(extreme), 1.0, rtol=1e-5)


def test_the_intrinsic_reward_starts_at_0_and_is_bounded_by_its_coefficient(rollout):
    transform = intrinsic(DISCRETE, (4,), 0.3)
    phi, _ = transform.init(KEY)
    np.testing.assert_array_equal(paid(transform, rollout).reward, rollout.steps.reward)
    extreme = paid(transform, rollout, everywhere(phi, 50.0)).reward - rollout.steps.reward
    np.testing.assert_allclose(np.abs(extreme), 0.3, rtol=1e-3)


def test_without_evidence_a_weight_pays_little_but_can_earn_more(rollout):
    """It is shrunk by its evidence, but not to nothing, and differentiated as if that were 1."""
    transform = blend(DISCRETE, bound=None, judged=True)
    learned = jax.tree.map(lambda x: x + 0.3, transform.init(KEY)[0])

    def reward(known):
        def total(learned):
            return jnp.sum(paid(transform, rollout, learned, knowing(transform, known)).reward)

        return jax.jit(jax.value_and_grad(total))(learned)

    full, slope = reward(Significance())
    for share in (0.0, 0.25, 1.0):
        shrunk, same_slope = reward(Significance(*jnp.full((2, M), share)))
        nothing = jnp.sum(rollout.steps.reward)
        np.testing.assert_allclose(shrunk - nothing, max(share, LEAST_SHARE) * (full - nothing), rtol=1e-4, atol=1e-4)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), slope, same_slope)


@pytest.mark.parametrize("group", ["scalar", "network"])
def test_the_slope_in_evidence_is_that_in_the_size_of_what_was_learned_in_units_of_it(rollout, group):
    transform = blend(DISCRETE, bound=None, judged=True)
    phi = jax.tree.map(lambda x: x + 0.3, transform.init(KEY)[0])
    last = {"scalar": lambda x: x, "network": lambda x: x["params"]["Dense_1"]}[group]

    def total(phi, known):
        return jnp.sum(jnp.square(paid(transform, rollout, phi, knowing(transform, known)).reward))

    slope, by_size = jax.jit(jax.grad(total, argnums=(0, 1)))(phi, Significance(*jnp.zeros((2, M))))
    # Whatever is learned enters by its last layer, linearly.
    larger = optax.tree.vdot(last(phi[group]), last(slope[group]))
    alone = make_weights(DISCRETE, hidden=(4,), bound=None, scalar=group == "scalar", network=group == "network")
    size = jnp.sqrt(jnp.mean(jnp.square(alone.weight({group: phi[group]}, UNSEEN, rollout)), axis=(0, 1)))
    np.testing.assert_allclose(jnp.sum(getattr(by_size, group) * size), larger, rtol=1e-3)


def test_every_group_of_phi_can_be_learned_from_the_start(rollout):
    """No group starts where its gradient is zero."""
    transform = blend(DISCRETE, offset=True, discount=True)
    phi, state = transform.init(KEY)

    def total(phi):
        signal = transform.apply(phi, after(transform, state, ()), rollout, task_signal(rollout, GAMMA))
        return jnp.sum(jnp.square(signal.reward)) + jnp.sum(signal.discount)

    slopes = jax.jit(jax.grad(total))(phi)
    assert set(slopes) == {"scalar", "network", "offset", "discount"}
    assert all(optax.tree.norm(slope) > 0 for slope in slopes.values())


# --- what is said of trust --------------------------------------------------------------------------------------------


def test_the_weights_that_are_shown_are_those_that_are_paid(random_rollout):
    """Of whatever has a weight per source and no offset; one source at a time."""
    rollout = random_rollout(DISCRETE, T, N)
    shown = []
    for name, make in TRANSFORMS.items():
        transform = make(DISCRETE)
        phi, state = transform.init(KEY)
        if transform.weights is None or "offset" in phi:
            continue

        @jax.jit
        def both(phi, state, transform=transform):
            phi = jax.tree.map(lambda x: x + 0.3, phi)
            state = transform.observe(phi, after(transform, state, [rollout]), rollout, task_signal(rollout, GAMMA))
            state = after(transform, state, [rollout])
            weight, unit = transform.weights(phi, state, rollout)
            extra = paid(transform, rollout, phi, state).reward - rollout.steps.reward
            return jnp.sum(weight * rollout.steps.aux, axis=-1), extra, unit

        weighted, extra, unit = both(phi, state)
        np.testing.assert_allclose(weighted, extra, atol=1e-5)
        assert unit.shape == (M,)
        assert np.all(unit >= 0)
        shown.append(name)
    assert shown == ["add", "scalar", "network", "trusted"]


def test_a_whitened_network_does_not_care_in_what_units_a_state_is_seen(rollout):
    """Nor where their zero is; one that sees shares of the limits does."""

    def weight_of(whiten, scale, shift):
        steps = rollout.steps._replace(obs=rollout.steps.obs * scale + shift)
        seen = rollout._replace(steps=steps)
        weights = make_weights(DISCRETE, hidden=(4,), scalar=False, whiten=whiten)
        phi = jax.tree.map(lambda x: x + 0.3, weights.init(KEY))
        moments = weights.look(weights.nothing_seen, seen) if whiten else None
        return weights.weight(phi, UNSEEN._replace(seen=moments), seen)

    ours, theirs = (weight_of(True, *units) for units in ((1.0, 0.0), (0.03, 2.0)))
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    assert np.std(ours) > 0.05
    assert np.abs(weight_of(False, 1.0, 0.0) - weight_of(False, 0.03, 2.0)).max() > 0.05


@pytest.mark.parametrize("how", [{"clip_steps": 0.1}, {"residual": 1.0}, {"clip_steps": 0.5, "residual": 0.8}])
def test_how_a_network_learns_changes_neither_weights_nor_the_scalar_nor_evidence(random_rollout, how):
    rollout = random_rollout(DISCRETE)
    plain, other = (make_weights(DISCRETE, hidden=(4,), **each) for each in ({}, how))
    phi = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(KEY, x.shape), plain.init(KEY))
    known = Significance(*(0.5 + 0.1 * jax.random.normal(KEY, (2, M))))
    worth = jax.random.normal(KEY, (T, N, M)) * (rollout.steps.aux != 0).astype(jnp.float32)

    def learned(weights):
        def total(phi, known):
            return jnp.sum(worth * weights.weight(phi, UNSEEN._replace(significance=known), rollout))

        return jax.value_and_grad(total, argnums=(0, 1))(phi, known)

    (value, (slope, by_size)), (same, (changed, same_by_size)) = learned(plain), learned(other)
    np.testing.assert_array_equal(value, same)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
        (slope["scalar"], by_size),
        (changed["scalar"], same_by_size),
    )
    assert optax.tree.norm(optax.tree.sub(slope["network"], changed["network"])) > 0.1 * optax.tree.norm(
        slope["network"]
    )
