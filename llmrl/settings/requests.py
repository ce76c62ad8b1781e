"""What each command is asked, typed; what is trained is a ``Config``. Importing needs no jax."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from llmrl.settings.config import Config, EnvConfig, LLMConfig
from llmrl.settings.fields import choice, number, positive, positives


@dataclass(frozen=True)
class Evaluation:
    """What ``llmrl evaluate`` is asked.

    Attributes:
        run_dir: a run's directory.
        env: environment to evaluate in; without a name it is the run's own.
        episodes: episodes per seed.
        seed: base seed of the evaluation.
        progress: whether to show how many episodes are played, where the game is one that takes its time.
        video: whether to write an episode as ``video.gif`` into the run's directory too.
    """

    run_dir: str = MISSING
    env: EnvConfig = field(default_factory=lambda: EnvConfig(name=""))
    episodes: int = positive(100)
    seed: int = number(0, low=0, high=2**31 - 1)
    progress: bool = True
    video: bool = False


@dataclass(frozen=True)
class Comparison(Config):
    """What ``llmrl compare`` is asked: the run of a method, as ``Config`` has it, and what stands beside it.

    Attributes:
        beside: methods to compare with.
    """

    beside: tuple[str, ...] = ("ppo", "add")


@dataclass(frozen=True)
class Check(Config):
    """What ``llmrl check`` is asked: a run, as ``Config`` has it, and how long its environment is played.

    Attributes:
        steps: steps to play in each of 8 instances; at least one more than the time limit are played in any case.
        seconds: to play for at most.
    """

    steps: int = positive(300)
    seconds: float = positive(60.0)


BENCH_SUITES = ("ppo", "methods", "meta", "seeds", "start", "memory", "language", "crafter", "scale")
BENCH_RIVALS = ("rejax",)


@dataclass(frozen=True)
class Bench:
    """What ``llmrl bench`` is asked.

    Attributes:
        suites: which of ``BENCH_SUITES``; ``crafter`` and ``scale`` take minutes to compile and have to be
            asked for.
        against: one of ``BENCH_RIVALS``, to compare plain PPO with; None compares with nothing.
        rejax_python: the Python of an environment that has rejax.
        rounds: measurements of each program; programs take turns.
        seeds: numbers of seeds to try, for ``ppo`` and ``methods``.
        envs: numbers of environments to try, for ``ppo``.
        crafter_envs: the same, for ``crafter``.
        scale_seeds: numbers of seeds to try in ``scale``, of CartPole.
        scale_envs: numbers of environments to try in ``scale``, of Craftax-Classic.
        steps: environment steps of one seed in one measurement; for ``crafter`` a sixteenth of them.
        quick: less of everything: a look, not a result.
        out: file for all measurements, JSON; None keeps none.
    """

    suites: tuple[str, ...] = ("ppo", "methods", "meta")
    against: str | None = None
    rejax_python: str = ".venv-rejax/bin/python"
    rounds: int = positive(5)
    seeds: tuple[int, ...] = positives(1, 8)
    envs: tuple[int, ...] = positives(4, 16)
    crafter_envs: tuple[int, ...] = positives(64)
    scale_seeds: tuple[int, ...] = positives(1, 64, 1024)
    scale_envs: tuple[int, ...] = positives(1024, 4096)
    steps: int = positive(131_072)
    quick: bool = False
    out: str | None = "bench.json"


@dataclass(frozen=True)
class Label:
    """What ``llmrl label`` is asked.

    Attributes:
        env: the environment.
        captioner: dotted path of words for its states; None takes its own.
        llm: who is asked, and what that may cost.
        limit: states to ask about at most; None asks about all.
        steps: where not all states can be listed, or not all are wanted: steps of an untrained policy, whose most
            frequent states are asked about first.
        dry_run: ask about the first state only.
        out: file for the answers, for ``llm=recorded llm.answers=...``.
        questions: file for the questions that the cache cannot answer, for a batch runner; nothing is asked.
        results: file of a batch runner's results, which are read in place of asking.
        seed: of the untrained policy.
    """

    env: EnvConfig = field(default_factory=EnvConfig)
    captioner: str | None = None
    llm: LLMConfig = field(default_factory=LLMConfig)
    limit: int | None = positive(None)
    steps: int = positive(16_384)
    dry_run: bool = False
    out: str | None = None
    questions: str | None = None
    results: str | None = None
    seed: int = number(0, low=0, high=2**31 - 1)


@dataclass(frozen=True)
class Write:
    """What ``llmrl write`` is asked.

    Attributes:
        env: the environment.
        llm: who is asked, and what that may cost; ``recorded`` takes the functions that are shipped.
        count: functions to ask for.
        attempts: times to ask at most, each time with the reasons of what was refused.
        dry_run: show the prompt only.
        out: file for the functions, for ``aux=code aux.file=...``; without one they are only shown.
        seed: of the random policy whose steps the prompt shows.
    """

    env: EnvConfig = field(default_factory=EnvConfig)
    llm: LLMConfig = field(default_factory=LLMConfig)
    count: int = number(4, low=1, high=16)
    attempts: int = positive(3)
    dry_run: bool = False
    out: str | None = None
    seed: int = number(0, low=0, high=2**31 - 1)


@dataclass(frozen=True)
class Refine:
    """What ``llmrl refine`` is asked.

    Attributes:
        run_dir: a finished run with ``aux=code``.
        llm: who is asked, and what that may cost.
        count: functions to ask for.
        attempts: times to ask at most, each time with the reasons of what was refused.
        dry_run: show the prompt only.
        out: file for the functions, for ``aux=code aux.file=...``; without one they are only shown.
    """

    run_dir: str = MISSING
    llm: LLMConfig = field(default_factory=LLMConfig)
    count: int = number(4, low=1, high=16)
    attempts: int = positive(3)
    dry_run: bool = False
    out: str | None = None


@dataclass(frozen=True)
class Report:
    """What ``llmrl report`` is asked.

    Attributes:
        runs: run directories, directories that hold some, or glob patterns; on the command line they need no key.
        out: directory of the page.
        measure: metric that is compared; each environment's own where not given.
        dims: two components of the observation for the maps of trust; the most telling ones where not given.
        trust: whether to play the trained policies for the maps of trust.
    """

    runs: tuple[str, ...] = ()
    out: str = "report"
    measure: str | None = None
    dims: tuple[str, ...] = ()
    trust: bool = True


@dataclass(frozen=True)
class Status:
    """What ``llmrl status`` is asked.

    Attributes:
        runs: run directories, directories that hold some, or glob patterns; on the command line they need no key.
    """

    runs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reproduction:
    """What ``llmrl figure`` is asked.

    Attributes:
        number: the figure of the paper; on the command line it needs no key.
        seeds: of each run; where not given 20, or 10 of figure 2, and 3 for ``quick``.
        quick: few seeds and steps: a look, not a result.
        helpful: figure 1 with a column for a helpful source too.
        goals: who suggests the goals of figure 2, ``plausible`` or ``oracle``.
        methods: those to compare; all of the figure's where none is named.
        processes: runs trained side by side on this machine.
        shard: which part of the runs to train here, ``i/n``: one machine of several.
        out: directory of runs, picture and table; ``runs/figures/<number>`` where not given.
    """

    number: int = MISSING
    seeds: int | None = positive(None)
    quick: bool = False
    helpful: bool = False
    goals: str = "plausible"
    methods: tuple[str, ...] = ()
    processes: int = positive(1)
    shard: str = "1/1"
    out: str | None = None


SUITE_SETS = ("development", "report")


@dataclass(frozen=True)
class Suite:
    """What ``llmrl suite`` is asked.

    Attributes:
        set: one of ``SUITE_SETS``: tasks on which settings may be chosen, or tasks on which none ever is.
        quick: few cells, seeds and steps, in less than a quarter of an hour on two cores: a look, not a result.
        tasks: those of the set; all of them where none is named.
        sources: their sources, by quality; all that a task has where none is named.
        methods: those to compare with ``ppo`` and ``add``, which are always there; where none is named all that need
            nothing but a source, and ``implicit`` for ``quick``.
        seeds: of each run; where not given 30, and 8 for ``quick``.
        processes: runs trained side by side on this machine.
        shard: which part of the runs to train here, ``i/n``: one machine of several.
        devices: of each run, as for ``llmrl train``.
        dry_run: print what all of it costs, and train nothing.
        out: directory of runs, page, pictures and ``suite.json``; ``runs/suite/<set>`` where not given.
    """

    set: str = choice("development", SUITE_SETS)
    quick: bool = False
    tasks: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    seeds: int | None = positive(None)
    processes: int = positive(1)
    shard: str = "1/1"
    devices: Any = number("auto", above=0, word="auto", whole=True)
    dry_run: bool = False
    out: str | None = None


SCHEMAS: dict[str, type] = {
    "train": Config,
    "compare": Comparison,
    "check": Check,
    "evaluate": Evaluation,
    "label": Label,
    "write": Write,
    "refine": Refine,
    "bench": Bench,
    "report": Report,
    "status": Status,
    "figure": Reproduction,
    "suite": Suite,
}
"""The typed settings behind each primary config file."""
