"""Learned trust in a loop of one's own: what ``llmrl train`` does with the same keys, and errors in one line."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import RUN

import llmrl
from llmrl import trust
from llmrl.assembly import trust_learning
from llmrl.assembly.methods import METHODS
from llmrl.assembly.parts import build
from llmrl.learner.blending import RewardState
from llmrl.learner.ppo import Batch, Params
from llmrl.learner.rollout import collect
from llmrl.nets import make_critic, make_policy
from llmrl.settings.config import MethodConfig, OuterConfig, SolverConfig, TrustConfig
from llmrl.settings.errors import BadType
from llmrl.training.iteration import iteration_keys, start_keys
from llmrl.training.loop import make_trainer
from llmrl.types import Box, Discrete, EnvSpec

ITERATIONS = 6
SETTINGS = (
    *RUN,
    "method=implicit",
    "method.trust.advice_patience=64",  # so that hints are followed at once
    "method.trust.advice_rarity=1.0",
    "method.trust.advice_events=1000.0",
)
CONFIG = llmrl.compose(*SETTINGS)
TRAINER = make_trainer(CONFIG)
SPEC, PPO = TRAINER.env.spec, CONFIG.ppo
POLICY, CRITIC = make_policy(SPEC, PPO.hidden), make_critic(SPEC, PPO.hidden, 2 + len(SPEC.aux_names))
NUMBERS = {"discount": PPO.discount, "gae_lambda": PPO.gae_lambda, "entropy": PPO.entropy}


def learner(spec=SPEC, distribution=POLICY.distribution, values=CRITIC.value, method=CONFIG.method, **changes):
    return trust.learner(spec, distribution, values, method=method, **(NUMBERS | {"solver": CONFIG.solver} | changes))


def own_loop(learned, start):
    """PPO around a learner, with the keys that ``llmrl train`` has; states and metrics as it has them."""
    optimize = build(CONFIG, TRAINER.env).update(POLICY)

    def iteration(carry, _):
        key, actor, critic, opt_state, acting, trusted, last_kl = carry
        keys = iteration_keys(key)
        acting, rollout = collect(TRAINER.env, POLICY, actor, acting, keys.rollout, PPO.num_steps)
        steps = rollout.steps
        rollout = trust.rollout(
            **{name: getattr(steps, name) for name in ("obs", "action", "log_prob", "reward", "next_obs", "aux")},
            terminated=steps.terminated,
            truncated=steps.truncated,
        )
        blend, trusted, info = learned.update(trusted, rollout, actor, critic, keys.meta, last_kl)
        batch = Batch(
            steps.obs, steps.action, steps.log_prob, blend.blended.advantage, blend.target, blend.hints.advantage
        )
        batch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)
        least = jnp.stack([blend.blended.least_deviation, blend.hints.least_deviation])
        lengths = blend.blended.length, blend.hints.length
        params, opt_state, done = optimize(Params(actor, critic), opt_state, batch, keys.update, least, lengths)
        paid = steps.reward + jnp.sum(blend.weights * steps.aux, axis=-1)
        odd = jnp.max(jnp.abs(blend.reward - paid)), jnp.max(jnp.abs(learned.weights(trusted, rollout) - blend.weights))
        return (keys.next, *params, opt_state, acting, trusted, done.approx_kl), (info, blend.hints.length, *odd)

    phi_key = start_keys(start.key_before).phis
    carry = start.key, *start.params, start.opt_state, start.acting, learned.init(phi_key), jnp.asarray(jnp.inf)
    carry, told = jax.lax.scan(iteration, carry, None, length=ITERATIONS)
    _, *params, opt_state, _, trusted, _ = carry
    return (params, opt_state, trusted.reward), told


class Start:
    """What ``llmrl train`` starts from with a key, apart from what it learns of the reward."""

    def __init__(self, key):
        state = TRAINER.init(key, TRAINER.numbers)
        self.key_before, self.key = key, state.key
        self.params, self.opt_state, self.acting = state.params, state.opt_state, state.acting


def llmrl_train(config, key):
    """What ``llmrl train`` has after its iterations, as ``own_loop`` returns it, and its metrics."""
    trainer = make_trainer(config)
    state, metrics = trainer.run(trainer.init(key, trainer.numbers), trainer.numbers, ITERATIONS)
    reward = RewardState(state.phis, state.transform_states, state.meta_state, state.advantage_peaks)
    return (list(state.params), state.opt_state, reward), metrics


UNFUSED = {"xla_disable_hlo_passes": "fusion"}
"""How to compile so that an operation rounds alike in every program: XLA fuses it with what stands around it."""


@pytest.mark.parametrize(
    ("networks", "solver", "compiled", "equal"),
    [
        # The same operations: equal to the bit, whatever the settings.
        pytest.param(
            {"distribution": POLICY, "values": CRITIC},
            (),
            UNFUSED,
            np.testing.assert_array_equal,
            marks=[
                pytest.mark.skipif(jax.default_backend() != "cpu", reason="products are chosen by their speed there"),
                pytest.mark.slow,  # nothing is fused; the other case is nearly the same law for half the price
            ],
            id="its own networks",
        ),
        # Of functions alone gradients are had in another way, and differ in the last digits of a float. With a step of
        # the solver that is given, they stay there; an estimate is made of what rounding left, too.
        pytest.param(
            {},
            ("solver.step_size=0.3", "solver.num_terms=4"),
            {},
            partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
            id="their functions",
        ),
    ],
)
def test_a_loop_of_ones_own_learns_what_llmrl_train_learns(networks, solver, compiled, equal):
    config, key = llmrl.compose(*SETTINGS, *solver), jax.random.key(5)
    learned = learner(**networks, solver=config.solver)
    found, (info, followed, *odd) = jax.jit(lambda: own_loop(learned, Start(key)), compiler_options=compiled)()
    expected, metrics = jax.jit(partial(llmrl_train, config), compiler_options=compiled)(key)
    jax.tree.map(equal, found, expected)
    assert set(info) <= set(metrics)
    for name in info:
        equal(info[name], metrics[name], err_msg=name)
    state = expected[2]
    # The law would hold of nothing, too.
    assert np.any(followed > 0.1) and np.any(np.abs(state.phis[1]["scalar"]) > 0.01)
    # The blend is the task's reward and what its weights say.
    assert np.max(odd) < 1e-6


# --- what does not fit ------------------------------------------------------------------------------------------------

TWO = EnvSpec("two", (3,), Discrete(2), 10, ("a", "b"))


def linear(params, obs):
    return obs @ params


def update(rollout, learned=None, critic=(3, 4)):
    learned = learned or learner(TWO, linear, linear)
    return learned.update(learned.init(jax.random.key(0)), rollout, jnp.zeros((3, 2)), jnp.zeros(critic), KEY)


KEY = jax.random.key(1)


def test_streams_are_named_in_the_order_of_the_critics_outputs():
    assert learner().streams == ("task", "blend", *SPEC.aux_names)
    assert learner(TWO).streams == ("task", "blend", "a", "b")
    never = MethodConfig(trust=TrustConfig(advice=0.0))
    assert learner(TWO, method=never).streams == ("task", "blend")


@pytest.mark.parametrize(
    ("field", "shape", "says"),
    [
        ("obs", (6, 4, 2), r"steps.obs must have shape \[6, 4, 3\].*got \[6, 4, 2\]"),
        ("next_obs", (6, 3), r"steps.next_obs must have shape \[6, 4, 3\].*got \[6, 3\]"),
        ("log_prob", (6, 4, 1), r"steps.log_prob must have shape \[6, 4\].*got \[6, 4, 1\]"),
        ("aux", (6, 4), r"steps.aux must have shape \[6, 4, 2\].*got \[6, 4\]"),
        ("terminated", (6,), r"steps.terminated must have shape \[6, 4\].*got \[6\]"),
        ("reward", (6,), r"steps.reward must have shape \[t, n\], got \[6\]"),
    ],
)
def test_a_rollout_of_another_shape_is_refused_by_its_field(random_rollout, field, shape, says):
    with pytest.raises(ValueError, match=says):
        update(random_rollout(TWO, **{field: np.zeros(shape, np.float32)}))


def test_actions_are_checked_by_the_space(random_rollout):
    box = EnvSpec("box", (3,), Box(2), 10, ("a", "b"))
    with pytest.raises(ValueError, match=r"steps.action must have shape \[6, 4, 2\].*got \[6, 4\]"):
        update(random_rollout(TWO), learner(box, linear, linear))


def test_halves_need_an_even_number_of_environments(random_rollout):
    with pytest.raises(ValueError, match="n=3 is odd"):
        update(random_rollout(TWO, num_envs=3))


def test_the_critic_answers_for_every_stream(random_rollout):
    with pytest.raises(ValueError, match=r"shape \[6, 4, 4\], one for each of task, blend, a, b; got \[6, 4, 1\]"):
        update(random_rollout(TWO), critic=(3, 1))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"spec": EnvSpec("none", (3,), Discrete(2), 10)}, "got spec.aux_names=()"),
        ({"method": MethodConfig(name="ppo")}, "needs a method that learns weights, as implicit does, got ppo"),
        ({"method": MethodConfig(name="lirpg")}, "got lirpg"),
        ({"method": MethodConfig(outer=OuterConfig(data="past"))}, "method.outer.data=past, not fresh"),
        ({"method": llmrl.compose("method=bipars_em").method}, "shows its weights to the policy"),
        ({"method": MethodConfig(name="implcit")}, "nearest: 'implicit'"),
        ({"discount": 1.5}, r"^discount must .*1.5"),
        ({"entropy": -1.0}, r"^entropy must be at least 0"),
        ({"advantage_floor": 2.0}, r"^advantage_floor must lie in \[0, 1\]"),
        ({"advantage_decay": jnp.nan}, r"^advantage_decay must be a finite number"),
        ({"solver": SolverConfig(step_size=-1.0)}, r"^solver.step_size must be positive"),
    ],
)
def test_what_a_learner_cannot_do_is_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        learner(**({"spec": TWO} | settings))


@pytest.mark.parametrize(
    ("kinds", "says"),
    [
        ((3, linear, linear, None), "^spec is 3; expected a llmrl.types.EnvSpec"),
        ((TWO, 3, linear, None), "^distribution is 3; expected a function"),
        ((TWO, linear, None, None), "^values is None; expected a function"),
        ((TWO, linear, linear, "scalar"), "^method is 'scalar'; expected a MethodConfig"),
    ],
)
def test_what_is_of_another_kind_is_refused_by_its_name(kinds, says):
    with pytest.raises(BadType, match=says):
        trust_learning._check_kinds(*kinds)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_refused_method_is_told_what_its_caller_can_change(name):
    """Not a setting of ``llmrl train`` alone, such as ``reward_from``, ``aux`` or ``ppo.discount``."""
    try:
        learner(TWO, method=MethodConfig(name=name) if name == "frozen" else llmrl.compose(f"method={name}").method)
    except ValueError as error:
        assert re.search(r"^trust\.learner |shows its weights|^a policy can see", str(error))
        assert {"method"} >= set(re.findall(r"\b([a-z_]+)[.\w]*=", str(error)))


def test_a_rollout_of_plain_arrays_is_a_rollout(random_rollout):
    whole = random_rollout(TWO)
    steps = jax.tree.map(np.asarray, whole.steps)
    made = trust.rollout(
        **{name: getattr(steps, name).tolist() for name in ("action", "log_prob", "reward", "terminated", "aux")},
        obs=steps.obs,
        next_obs=steps.next_obs,
        truncated=steps.truncated,
    )
    blank = whole.steps._replace(success=jnp.zeros_like(whole.steps.success))
    jax.tree.map(np.testing.assert_array_equal, made, whole._replace(steps=blank))
    jax.tree.map(lambda x, y: np.testing.assert_equal(x.dtype, y.dtype), made, whole)
