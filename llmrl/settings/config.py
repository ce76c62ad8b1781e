"""Every setting, typed and frozen; defaults live here and nowhere else. Importing this never imports jax.

Floats may later become traced arrays (``train`` vmaps over them), so nothing here computes with them; plain values are
checked once, at the door, by ``llmrl.settings.validation``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llmrl.settings.fields import choice, number, positive, positives, private, widths

SURROGATES = ("ratio", "dice", "log_prob")
DATA = ("fresh", "previous", "window", "past")
GRADIENTS = ("implicit", "unrolled", "incremental", "explicit")
SCHEDULES = ("online", "converged")
CURVATURES = ("hessian", "fisher")
REPRESENTATIONS = ("inverse", "random")
OPTIMISERS = ("amsgrad", "adam", "sgd")
PROVIDERS = ("recorded", "oracle", "plausible", "openai", "local")
PROMPTS = ("yes_no", "goals")
SCORES = ("token_probability", "embedding_similarity", "string_similarity")
NOISE_UNITS = ("state", "answer")
FOLLOWING = ("credit", "twin")
FOLLOWED = ("none", "all", "each", "learned")
MODES = ("offline", "online")
TRANSFORMS = ("none", "ranked_potential", "thresholded")
SOLVERS = (
    "neumann",
    "neumann_finite_difference",
    "conjugate_gradient",
    "diagonal",
    "sherman_morrison",
    "identity",
    "dense",
)


@dataclass(frozen=True)
class EnvConfig:
    """The environment. A key left at None keeps the environment's own default; one it does not know is refused.

    Attributes:
        name: environment, see ``llmrl.envs.ENVIRONMENTS``.
        id: for ``name=gymnax``: a gymnax id, or the dotted path of a function that makes an
            ``llmrl.types.Environment``; for ``name=gymnasium``: a Gymnasium id, or the dotted path of a function that
            makes a ``gymnasium.Env``.
        horizon: time limit in steps.
        reward: ``sparse`` (-1 on failure) or ``dense`` (+1 per step), for the CartPoles.
        size: side of the grid, for ``gridworld``, ``crumbs``, ``keydoor`` and ``moving_goal``.
        observation: ``one_hot`` or ``coordinates``, for ``gridworld``; ``compact`` or ``one_hot``, for
            ``craftax_classic``.
        force: largest force in newton, for ``cartpole_continuous``.
        task: an achievement, a list of them, or ``all``, for ``craftax_classic`` and ``crafter``.
        terminate_on_success: whether an episode ends once every task is done, in the same two.
        first_hit: whether the first hit on a cow counts as eating it, there.
        damage: of a bare hand, 1 or 5, there.
        table_wood: wood that a table costs, 2 or 1, there.
        steps_per_reset: a pool holds one fresh world per so many steps of a rollout, for ``craftax_classic``.
        wrappers: dotted paths of wrappers, the innermost first, for ``name=gymnasium``.
        processes: how many processes step the environments, for ``name=gymnasium``; None steps them in the run's own.
        params: parameters by name, for ``name=gymnax`` and ``name=gymnasium``: theirs, or those of your own function;
            numbers, words, true, false or lists, of the types that their owner declares.
    """

    name: str = "cartpole"
    id: str | None = None
    horizon: int | None = None
    reward: str | None = None
    size: int | None = None
    observation: str | None = None
    force: float | None = None
    task: Any = None
    terminate_on_success: bool | None = None
    first_hit: bool | None = None
    damage: int | None = None
    table_wood: int | None = None
    steps_per_reset: int | None = None
    wrappers: Any = None
    processes: int | None = None
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RankingConfig:
    """The state score that ``aux.transform=ranked_potential`` learns from a source's ranking of states.

    Attributes:
        learning_rate: of its Adam.
        updates: its gradient steps per iteration.
        batch_size: steps of the fresh rollout in each.
        hidden: widths of its network.
    """

    learning_rate: float = positive(1e-3)
    updates: int = positive(32)
    batch_size: int = positive(64)
    hidden: tuple[int, ...] = widths(128)


@dataclass(frozen=True)
class AuxConfig:
    """The auxiliary reward sources.

    Attributes:
        sources: names of the environment's sources, each with a factor of its own.
        scale: factor on all of them.
        function: dotted path (``package.module:function``) of a user's ``(state, action, next_state) -> [m]``.
        file: for ``code``: a file of reward functions, or who has written some that are shipped: ``handmade``.
        options: options of the sources' factories, by name. ``random`` has ``seed``: each whole number is another fixed
            random function, 0 where not given (``+aux.options.seed=1``).
        center: subtracted from every score of a language model: a number, or ``mean`` for the running mean of the
            scores met. In [0, 1] any answer is also a bonus for staying alive, which hides its help and its harm.
        transform: what is made of every source before any method hears it: ``none``; ``ranked_potential``, the sign of
            what it says of a step ranks the two states, and a score learned from that is a potential (Lin et al. 2024);
            ``thresholded``, yes or no by a calibrated threshold, and less where yes is usual (Huang et al. 2024).
        error_rate: for ``thresholded``: share of a source's praise that the threshold may leave out.
        ranking: for ``ranked_potential``: how the score is learned.
    """

    sources: dict[str, float] = field(default_factory=dict)
    scale: float = 1.0
    function: str | None = None
    file: str = "handmade"
    options: dict[str, Any] = field(default_factory=dict)
    center: Any = number(0.5, word="mean")
    transform: str = choice("none", TRANSFORMS)
    error_rate: float = number(0.1, low=0, high=1)
    ranking: RankingConfig = field(default_factory=RankingConfig)


@dataclass(frozen=True)
class PPOConfig:
    """The inner level: proximal policy optimisation (Schulman et al. 2017).

    Attributes:
        num_envs: environments stepped side by side, N.
        num_steps: steps of each per iteration, T.
        num_epochs: passes over a rollout.
        num_minibatches: minibatches per pass.
        learning_rate: Adam's step size, for actor and critic.
        critic_rate_ratio: the critic's step size, in multiples of that. A critic that learns faster knows sooner what
            is about to fail.
        anneal: whether the learning rate falls linearly to 0 over the run.
        discount: gamma.
        gae_lambda: lambda of generalised advantage estimation. High, since a critic of a solved task has seen few
            failures: at 0.95 its errors let policies drift away from what they had learned.
        clip: range of the importance ratio.
        entropy: c_H, part of L_aux and so of its curvature.
        advantage_floor: advantages are divided by their deviation in a minibatch, but at least by this share of the
            largest deviation that was seen; 0 divides by the minibatch's alone.
        advantage_decay: what that largest deviation keeps per iteration.
        value_coefficient: weight of the critics' loss.
        max_gradient_norm: the actor's and the critic's gradients are each clipped to this norm.
        hidden: widths of the tanh layers, of actor and critic alike.
        initial_log_std: of the Gaussian policy.
    """

    num_envs: int = positive(16)
    num_steps: int = positive(128)
    num_epochs: int = positive(4)
    num_minibatches: int = positive(4)
    learning_rate: float = positive(6e-4)
    critic_rate_ratio: float = positive(20.0)
    anneal: bool = True
    discount: float = number(0.99, low=0, high=1)
    gae_lambda: float = number(0.98, low=0, high=1)
    clip: float = positive(0.2)
    entropy: float = number(0.003, low=0)
    advantage_floor: float = number(0.3, low=0, high=1)
    advantage_decay: float = number(0.998, low=0, high=1)
    value_coefficient: float = number(0.5, low=0)
    max_gradient_norm: float = positive(0.5)
    hidden: tuple[int, ...] = widths(64, 64)
    initial_log_std: float = number(-0.5, low=-20, high=5)

    @property
    def batch_size(self) -> int:
        return self.num_envs * self.num_steps


@dataclass(frozen=True)
class SolverConfig:
    """How the inverse curvature is applied; see ``llmrl.bilevel.solvers``.

    Attributes:
        name: one of ``SOLVERS``.
        num_terms: terms of a Neumann series, or steps of conjugate gradients.
        step_size: of the series; ``auto`` takes min(max_step_size, 0.9 / |lambda|_max).
        max_step_size: see ``step_size``.
        power_iterations: products spent on estimating an extreme eigenvalue.
        relative: for finite differences: difference step relative to the direction's length.
        tolerance: where conjugate gradients stop, relative to the right-hand side.
        num_probes: for ``diagonal``, where no better diagonal is at hand.
        damping: added to the curvature; ``auto`` lifts the lowest eigenvalue above 0.
        max_ratio: the solution is cut back to this many times the right-hand side's norm.
        curvature: ``hessian`` of L_aux, or the policy's ``fisher`` information.
        curvature_fraction: share of the batch, drawn evenly from a random step on, that curvature is computed on.
        curvature_samples: steps of which that share has at most so many: how exact a curvature is depends on their
            number, whatever the batch's, and up to 4096 products with it are cheapest.
    """

    name: str = choice("neumann", SOLVERS)
    num_terms: int = number(20, low=0, high=100_000)
    step_size: Any = number("auto", above=0, word="auto")
    max_step_size: float = positive(0.5)
    power_iterations: int = number(4, low=1, high=100_000)
    relative: bool = False
    tolerance: float = number(1e-5, low=0, high=1)
    num_probes: int = positive(8)
    damping: Any = number(0.1, low=0, word="auto")
    max_ratio: float = positive(10.0)
    curvature: str = choice("fisher", CURVATURES)
    curvature_fraction: float = number(0.125, low=1e-3, high=1)
    curvature_samples: int = positive(4096)


@dataclass(frozen=True)
class WeightConfig:
    """The learned weight of each source, w_m(s, a; phi), and what else is learned with it.

    Attributes:
        scalar: whether each source has a number of its own that moves fast.
        network: whether a state-action-dependent part is learned.
        bound: w = bound * tanh(.); None leaves the weight unbounded.
        initial: w_0.
        hidden: widths of the weight network.
        sees_action: whether the network sees the action, or the state alone.
        sees_aux: whether the network also sees the auxiliary values.
        whiten: whether the network sees observations in deviations from their running mean, instead of as shares of
            their limits.
        spread: how far apart, in those deviations, the places are where the network starts to tell states apart; at 0
            all are the mean. From 1 on a border that is somewhere else is learned sooner, and so is what is not there.
        clip_steps: how much a single step may say of what the network learns, in root mean squares of what all say,
            softly clipped; None does not clip. At 0.1 each step has about one vote, and a border between states where
            a source helps and others is not moved by few steps that say much; see ``llmrl.trust.blend``.
        residual: share of what the weights already say that is left out of what the network learns next, from 0 to 1;
            None learns all. Near 1 the network fits what a source is worth, as a regression would, where otherwise it
            grows most where it is right already.
        offset: whether eps(s, a; phi) is learned too (the paper sets it to 0).
        discount: whether gamma_eta = sigmoid(eta) is learned.
    """

    scalar: bool = True
    network: bool = True
    bound: float | None = positive(1.0)
    initial: float = 0.0
    hidden: tuple[int, ...] = widths(32)
    sees_action: bool = True
    sees_aux: bool = False
    whiten: bool = True
    spread: float = number(0.0, low=0)
    clip_steps: float | None = positive(None)
    residual: float | None = number(None, low=0, high=1)
    offset: bool = False
    discount: bool = False


@dataclass(frozen=True)
class TrustConfig:
    """Trust that asks for evidence: each part a switch; ``llmrl.trust`` holds the rules.

    Attributes:
        cross_fitting: estimate on two halves of the environments, each judged by the other's.
        gate: multiply each group's step by the agreement of its two estimates.
        evidence: shrink each learned weight as far as later rollouts have not confirmed that it helps.
        evidence_memory: what the sums of gains keep per outer step.
        units: scale a source so that its discounted sums do not spread wider than the task's.
        advice: largest share of advice, that is of following a source directly in a sparse task; 0 never does
            (``llmrl.trust.advice``).
        advice_patience: number of environment steps before advice starts. Counted in steps, so it does not depend on
            the rollout length.
        advice_decay: share of advice lost per iteration from then on, until the task has ``advice_events``.
        advice_rarity: a task is sparse if it has reward events on a smaller share of the steps, counted over the first
            ``advice_patience`` steps or up to ``advice_events``. Only a sparse task has advice.
        advice_events: number of the task's reward events from which on the evidence alone sets the share of advice.
        advice_fade: exponent with which advice fades as the task has reward events in more of the episodes; 0 never.
        ceiling: lower the largest allowed weight while the task's return is below its best.
        ceiling_fall: share lost per iteration of a setback.
        ceiling_rise: share regained per iteration otherwise.
        setback: how far below its best (as a share of its range) the return must be to count as a setback.
    """

    cross_fitting: bool = True
    gate: bool = True
    evidence: bool = True
    evidence_memory: float = number(0.99, low=0, high=1)
    units: bool = True
    advice: float = number(1.0, low=0)
    advice_patience: float = number(40960.0, low=0)
    advice_decay: float = number(0.02, low=0, high=1)
    advice_rarity: float = number(0.005, low=0, high=1)
    advice_events: float = positive(8.0)
    advice_fade: float = number(4.0, low=0)
    ceiling: bool = True
    ceiling_fall: float = number(0.3, low=0, high=1)
    ceiling_rise: float = number(0.002, low=0, high=1)
    setback: float = number(0.05, low=0, high=1)


@dataclass(frozen=True)
class OuterConfig:
    """The outer level: how phi follows its hypergradient.

    Attributes:
        gradient: one of ``GRADIENTS``.
        unroll_steps: inner updates that ``unrolled`` differentiates through.
        unroll_learning_rate: their step size (plain gradient descent), and of those that ``incremental`` follows.
        gae_lambda: lambda of the task's advantages that judge. Both halves of the environments share a critic, and
            confirm what is wrong with it; only at 1 it is a mere baseline.
        surrogate: one of ``SURROGATES``.
        data: one of ``DATA``.
        window: rollouts kept for ``data=window`` (the newest is the fresh one) or ``data=past`` (it is the one before).
        max_importance_ratio: truncation of importance ratios on old data.
        schedule: one of ``SCHEDULES``.
        every: outer step every so many inner updates (``online``), or at most so many inner updates between two
            (``converged``).
        warmup: inner updates before the first outer step; until then the weights stay at their initial value.
        converged_kl: the inner level counts as converged when a PPO update moves the policy by less (``converged``).
        optimiser: ``amsgrad``, ``adam`` or ``sgd``.
        learning_rate: for the networks.
        scalar_learning_rate: for each source's own number.
        discount_learning_rate: for eta.
        max_gradient_norm: each hypergradient is clipped to this norm.
        scale_decay: decay per iteration of the running largest deviation that divides the task's advantages.
        weight_penalty: lambda_phi.
        discount_penalty: lambda_gamma; may have either sign.
    """

    gradient: str = choice("implicit", GRADIENTS)
    unroll_steps: int = positive(1)
    unroll_learning_rate: float = number(0.1, low=0)
    gae_lambda: float = number(1.0, low=0, high=1)
    surrogate: str = choice("ratio", SURROGATES)
    data: str = choice("fresh", DATA)
    window: int = positive(4)
    max_importance_ratio: float = positive(2.0)
    schedule: str = choice("online", SCHEDULES)
    every: int = positive(1)
    warmup: int = number(0, low=0)
    converged_kl: float = number(1e-3, low=0)
    optimiser: str = choice("amsgrad", OPTIMISERS)
    learning_rate: float = number(2e-3, low=0)
    scalar_learning_rate: float = number(6e-2, low=0)
    discount_learning_rate: float = number(1e-2, low=0)
    max_gradient_norm: float = positive(1.0)
    scale_decay: float = number(0.998, low=0, high=1)
    weight_penalty: float = number(0.0, low=0)
    discount_penalty: float = 0.0


@dataclass(frozen=True)
class PotentialConfig:
    """Shaping by a potential (``pbrs``, ``dpba``, ``pies``); all but the coefficient concern a learned one.

    Attributes:
        coefficient: factor on the auxiliary rewards.
        learning_rate: of the potential's own Adam; larger than the policy's, so that it is the faster of the two.
        updates: its gradient steps per iteration.
        batch_size: samples of each, drawn from the fresh rollout.
        hidden: widths of its network.
        decay: share of the training over which ``pies`` lets the shaping fade.
    """

    coefficient: float = 1.0
    learning_rate: float = positive(3e-3)
    updates: int = positive(32)
    batch_size: int = positive(256)
    hidden: tuple[int, ...] = widths(64)
    decay: float = number(0.5, above=0, high=1)


@dataclass(frozen=True)
class CorrectionConfig:
    """Cutting the sources where they would change which actions the task prefers: ``adops``.

    Attributes:
        epsilon: how far an action that the task thinks worse than average stays below average.
        ramp: share of the training over which the cut rises from nothing to all of it, while the critics learn; 0 cuts
            from the start.
    """

    epsilon: float = positive(1e-7)
    ramp: float = number(0.0, low=0, high=1)


@dataclass(frozen=True)
class NoveltyConfig:
    """Rewards for what is new: ``rnd``, ``icm`` and ``apt``.

    Attributes:
        coefficient: share of the novelty's advantage in the policy's, where the task's is 1 (Burda et al.: 1 to 2).
        discount: gamma of the novelty's own, non-episodic return.
        learning_rate: Adam's step size, for what predicts or represents.
        updates: its gradient steps per iteration; each sample serves in one of them.
        hidden: widths of the tanh layers of its networks.
        features: size of the random target, or of the representation.
        representation: what ``apt`` measures distances in: ``inverse`` (features of an inverse-dynamics model) or
            ``random`` (of a random network).
        neighbors: k of ``apt``.
        references: ``apt`` seeks neighbours among so many states of a rollout.
    """

    coefficient: float = 0.5
    discount: float = number(0.99, low=0, high=1)
    learning_rate: float = positive(3e-4)
    updates: int = positive(16)
    hidden: tuple[int, ...] = widths(64, 64)
    features: int = positive(32)
    representation: str = choice("inverse", REPRESENTATIONS)
    neighbors: int = positive(12)
    references: int = positive(2048)


@dataclass(frozen=True)
class GoalsConfig:
    """Goals that a language model suggests: ``aux=goals``, and ``ellm``.

    Attributes:
        table: for ``ellm`` without ``aux=goals``: file of suggestions, one JSON object per line,
            ``{"key": 17, "scores": [0.0, 1.0]}``: the similarity of every event to the best goal suggested in a state.
        coefficient: for ``ellm``: factor on the goals' reward.
        threshold: a similarity has to be above it, strictly.
        ineffective: whether an event also counts where it was tried in vain.
        pretraining: share of the training, from its start, during which the task pays nothing.
        keep: whether goals go on paying after pretraining.
    """

    table: str | None = None
    coefficient: float = 1.0
    threshold: float = number(0.99, low=0, high=1)
    ineffective: bool = False
    pretraining: float = number(0.0, low=0, high=1)
    keep: bool = True


@dataclass(frozen=True)
class ArmsConfig:
    """Several policies side by side, judged by what they earn (``twin``); see ``llmrl.learner.arms``.

    Attributes:
        follow: what the policies follow beside the task: ``none``, which must be the first; ``all`` sources; ``each``
            source, one policy for each; ``learned``, all sources with weights along the implicit gradient. With
            ``none`` alone, or nothing, one policy is trained.
        budget: share of the episodes that is spent on trying the others.
        haste: how early it is spent; evenly at 1.
        memory: number of episodes after which a policy's returns have been forgotten to 1/e.
        sure: standard errors by which a policy must be ahead of another one before it leads, and is taken over.
    """

    follow: tuple[str, ...] = ()
    budget: float = number(0.05, low=0, high=1)
    haste: float = number(8.0, low=1)
    memory: float = positive(32.0)
    sure: float = number(2.0, low=0)


@dataclass(frozen=True)
class EipoConfig:
    """A policy on the task and one on its sum with the sources (``eipo``); see ``llmrl.learner.eipo``.

    Attributes:
        alpha: how much more the task counts than in that sum, at the start.
        beta: step size of alpha. The authors' is for thousands of iterations; in a hundred alpha stays where it starts.
        clip: largest difference of the two policies that alpha follows, in task advantage per step.
        largest: bound of alpha, on both sides of 0.
    """

    alpha: float = number(0.5, low=-1e3, high=1e3)
    beta: float = number(0.005, low=0)
    clip: float = number(0.05, low=0)
    largest: float = number(10.0, low=0)


@dataclass(frozen=True)
class IrpoConfig:
    """Explorers that start from a base policy (``irpo``); see ``llmrl.learner.irpo``.

    Attributes:
        steps: gradient steps on a source that an explorer takes from the base policy, N.
        step_size: their size, of plain gradient descent on a normalised advantage.
        fractions: shares of that size; each source has one explorer for each. One with a small step stays near the base
            policy, and so loses little to a source that is wrong.
        temperature: tau of the softmax that weights the explorers by their task returns, in units of the range of those
            returns so far.
        memory: number of episodes after which an explorer's returns have been forgotten to 1/e.
    """

    steps: int = number(4, low=0)
    step_size: float = positive(1.0)
    fractions: tuple[float, ...] = positives(0.1, 1.0)
    temperature: float = positive(0.1)
    memory: float = positive(32.0)


@dataclass(frozen=True)
class SelectConfig:
    """Several methods, of which one is played at a time (``select``); see ``llmrl.learner.balancing``.

    Attributes:
        arms: the methods, each as its preset, with policy, optimiser and environments of its own.
        every: iterations of a play; it lasts longer where no episode has ended in them.
        confidence: c, factor on the confidence width of mean returns. At 1 differences show after hundreds of plays; a
            smaller one tells methods apart sooner, and errs more often.
        delta: probability with which the widths may fail.
        least: d_min, what each method's regret coefficient starts from.
    """

    arms: tuple[str, ...] = ("ppo", "add", "implicit")
    every: int = positive(1)
    confidence: float = number(1.0, low=0)
    delta: float = number(0.1, above=0, high=1)
    least: float = positive(1.0)


@dataclass(frozen=True)
class MethodConfig:
    """Which method, and the settings of its reward (ignored by methods that have no use for them).

    Attributes:
        name: see ``llmrl.assembly.methods.METHODS``.
        follow: for ``credit`` and ``twin``: share of the sources' advantage in the policy's, where the task's is 1.
        reward_of: for ``frozen``, the method that learned the reward; found in the run that ``reward_from`` names.
        arms: several policies side by side.
        eipo: two policies, one of them held to the other's task return.
        irpo: explorers that start from a base policy.
        select: several methods, of which one is played at a time.
        weight: the learned weight.
        outer: the outer level.
        trust: trust that asks for evidence.
        potential: the potential of shaping methods.
        correction: cutting the sources by the critics.
        novelty: rewards for what is new.
        goals: suggested goals.
    """

    name: str = "implicit"
    follow: float = number(1.0, low=0)
    reward_of: str | None = None
    arms: ArmsConfig = field(default_factory=ArmsConfig)
    eipo: EipoConfig = field(default_factory=EipoConfig)
    irpo: IrpoConfig = field(default_factory=IrpoConfig)
    select: SelectConfig = field(default_factory=SelectConfig)
    weight: WeightConfig = field(default_factory=WeightConfig)
    outer: OuterConfig = field(default_factory=OuterConfig)
    trust: TrustConfig = field(default_factory=TrustConfig)
    potential: PotentialConfig = field(default_factory=PotentialConfig)
    correction: CorrectionConfig = field(default_factory=CorrectionConfig)
    novelty: NoveltyConfig = field(default_factory=NoveltyConfig)
    goals: GoalsConfig = field(default_factory=GoalsConfig)


@dataclass(frozen=True)
class LLMConfig:
    """Where the answers of a language model come from, and what they may cost; see ``llmrl.language``.

    There is no field for an API key: what is configured is written to disk. A key is read from the environment.

    Attributes:
        provider: one of ``PROVIDERS``.
        answers: for ``recorded``: a file of answers, or who has given some that are shipped: ``handmade``,
            or ``qwen2.5-coder-1.5b``, which has answers about a part of CartPole's states.
        function: for ``oracle``: dotted path of ``(key, event) -> score``; None takes the environment's own.
        model: for ``openai``: the model's name at the endpoint; for ``local``: the path of a GGUF file.
        base_url: for ``openai``: any compatible endpoint, as in ``http://localhost:8000/v1``.
        key_variable: environment variable with the endpoint's API key; None sends none.
        prompt: one of ``PROMPTS``, or the path of a yaml file with templates of your own.
        score: one of ``SCORES``.
        threshold: similarity from which a suggested goal and an event are the same thing.
        embedding_model: for ``embedding_similarity``: its name at the endpoint, or of a sentence-transformers model.
        embedding_local: whether sentence-transformers computes embeddings on this machine.
        threads: for ``local``: of computation; None takes llama.cpp's own choice.
        temperature: of sampling.
        top_logprobs: log-probabilities asked for per token; some servers allow no more than 5.
        extra: more entries of the request's body; null takes one out.
        deadline: seconds for one question, retries included.
        retries: further attempts after one that failed for a passing reason.
        concurrency: requests on their way at the same time.
        requests_per_minute: None sets no rate.
        max_requests: budget of one run; None sets none.
        max_tokens: budget of prompt and answer tokens together; None sets none.
        max_cost: budget in the currency of the prices; None sets none.
        max_seconds: time after which nothing more is asked; None sets no limit.
        prompt_price: of a million prompt tokens.
        answer_price: of a million answer tokens.
        noise: share of answers made wrong (1 - score), of any provider.
        noise_seed: which ones.
        noise_unit: ``state`` makes all answers about a state wrong or none, ``answer`` each for itself.
        adversarial: make all answers wrong.
        cache: SQLite file of everything that was ever answered; None keeps answers in memory.
        capacity: rows of the table of answers; fixed, so that nothing recompiles. Where the provider answers at once
            and the states can be listed, there is a row for each, up to 131,072.
        neutral: score of an event whose answer was unusable where other answers about its state were usable.
    """

    provider: str = choice("recorded", PROVIDERS)
    answers: str = "handmade"
    function: str | None = None
    model: str = ""
    base_url: str = private("https://api.openai.com/v1")
    key_variable: str | None = private("OPENAI_API_KEY")
    prompt: str = "yes_no"
    score: str = choice("token_probability", SCORES)
    threshold: float = number(0.9, low=0, high=1)
    embedding_model: str = ""
    embedding_local: bool = False
    threads: int | None = positive(None)
    temperature: float = number(0.0, low=0)
    top_logprobs: int = number(10, low=1, high=20)
    extra: dict[str, Any] = field(default_factory=dict)
    deadline: float = positive(30.0)
    retries: int = number(3, low=0)
    concurrency: int = positive(8)
    requests_per_minute: float | None = positive(None)
    max_requests: int | None = number(None, low=0)
    max_tokens: int | None = number(None, low=0)
    max_cost: float | None = number(None, low=0)
    max_seconds: float | None = number(None, low=0)
    prompt_price: float = number(0.0, low=0)
    answer_price: float = number(0.0, low=0)
    noise: float = number(0.0, low=0, high=1)
    noise_seed: int = number(0, low=0, high=2**32 - 1)
    noise_unit: str = choice("state", NOISE_UNITS)
    adversarial: bool = False
    cache: str | None = "runs/answers.sqlite"
    capacity: int = positive(4096)
    neutral: float = number(0.5, low=0, high=1)


@dataclass(frozen=True)
class TrackConfig:
    """Dashboards beside ``metrics.csv``, fed from its rows; each seed is a run of its own there.

    Attributes:
        tensorboard: write event files to ``tensorboard/`` in the run's directory.
        wandb: tell Weights & Biases.
        project: its project.
        entity: its user or team; None takes the account's own.
        mode: ``offline`` keeps everything in ``wandb/`` in the run's directory, ``online`` sends it at once; the key is
            read from the environment (``WANDB_API_KEY``).
    """

    tensorboard: bool = False
    wandb: bool = False
    project: str = "llmrl"
    entity: str | None = None
    mode: str = choice("offline", MODES)


@dataclass(frozen=True)
class Config:
    """A whole run.

    Attributes:
        env: the environment.
        aux: the auxiliary sources.
        captioner: dotted path of words for the environment's states (an ``llmrl.types.Captioner``); None takes its own.
        method: the method.
        solver: the inverse-curvature solver of bi-level methods.
        ppo: the inner level.
        reward_from: directory of the finished run whose learned reward ``method=frozen`` trains under.
        reward_seed: the seed of that run whose reward every seed gets; None gives each the next one, round robin.
        llm: the language model behind ``aux=language`` and ``aux=goals``.
        track: dashboards beside ``metrics.csv``.
        seed: base seed; run i of ``seeds`` folds i into it.
        seeds: independent runs, vmapped.
        seeds_per_batch: seeds that a device computes at the same time, the others after them; None takes as many as its
            memory should hold, on a CPU its cache.
        total_steps: environment steps of one seed.
        num_chunks: about how many compiled pieces the run is cut into; between two, metrics and checkpoints are
            written.
        devices: ``auto`` shards seeds over jax's devices, on a plain CPU over one simulated device per core; 1 keeps
            to one.
        distributed: whether several processes, on one host or many, share the run: each has seeds of its own on its own
            ``devices``, and process 0 writes.
        coordinator: ``host:port`` where they meet, on the host of process 0; None, like the next two, leaves it to jax
            to find out (SLURM, Open MPI, Kubernetes, TPU).
        num_processes: how many they are.
        process_id: which of them this one is, from 0.
        run_dir: where results go; None keeps them in memory.
        resume: whether an unfinished run of the same config in ``run_dir`` goes on.
        progress: whether to show a progress bar.
    """

    env: EnvConfig = field(default_factory=EnvConfig)
    aux: AuxConfig = field(default_factory=AuxConfig)
    captioner: str | None = None
    method: MethodConfig = field(default_factory=MethodConfig)
    solver: SolverConfig = field(default_factory=SolverConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    reward_from: str | None = None
    reward_seed: int | None = number(None, low=0)
    llm: LLMConfig = field(default_factory=LLMConfig)
    track: TrackConfig = field(default_factory=TrackConfig)
    seed: int = number(0, low=0, high=2**31 - 1)
    seeds: int = positive(8)
    seeds_per_batch: int | None = positive(None)
    total_steps: int = number(200_000, low=1, high=2**53)
    num_chunks: int = positive(20)
    devices: Any = number("auto", above=0, word="auto", whole=True)
    distributed: bool = False
    coordinator: str | None = None
    num_processes: int | None = positive(None)
    process_id: int | None = number(None, low=0)
    run_dir: str | None = None
    resume: bool = True
    progress: bool = True

    @property
    def transform(self) -> str:
        """What is made of every source: ``aux.transform``, or what a method asks for that has its name."""
        return self.method.name if self.method.name in TRANSFORMS else self.aux.transform

    @property
    def num_iterations(self) -> int:
        return max(1, round(self.total_steps / self.ppo.batch_size))
