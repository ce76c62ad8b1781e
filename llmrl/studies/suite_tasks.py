"""The tasks of the no-regret suite: what ``llmrl train`` is told for each, and the sources that it is tried with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from llmrl.settings.errors import BadValue

QUALITIES = (
    "fair",
    "farmable",
    "rare",
    "useless",
    "harmful",
    "half_right",
    "late_wrong",
    "loud",
    "faint",
)
"""Sources that every task has, by the quality of their help; each is chosen with ``aux=<name>``."""

DEVELOPMENT, REPORT = "development", "report"


@dataclass(frozen=True)
class Task:
    """A task with a PPO setting that was chosen with ``aux=none`` alone.

    Attributes:
        name: what the task is called.
        overrides: of ``llmrl train``, apart from method, source, steps and seeds.
        total_steps: environment steps of one seed.
        set: ``development``, on which settings may be chosen, or ``report``, on which none ever is.
        sources: source -> overrides of ``llmrl train`` that choose it.
    """

    name: str
    overrides: tuple[str, ...]
    total_steps: int
    set: str
    sources: dict[str, tuple[str, ...]]


def _task(name: str, set: str, total_steps: int, *overrides: str, language: tuple[str, ...] = ()) -> Task:
    sources: dict[str, tuple[str, ...]] = {quality: (f"aux={quality}",) for quality in QUALITIES}
    if language:
        sources["language"] = ("aux=language", *language)
    return Task(name, overrides, total_steps, set, sources)


def _gymnax(name: str, set: str, total_steps: int, *overrides: str) -> Task:
    return _task(name, set, total_steps, "env=gymnax", f"env.id={name}", *overrides)


def _craftax(achievement: str, set: str) -> Task:
    chosen = ("env=craftax_classic", f"env.task={achievement}", "env.horizon=400", "ppo=crafter")
    return _task(achievement, set, 500_000, *chosen, language=("llm=oracle",))


RECORDED = ("llm=recorded",)
CLASSIC = ("ppo.critic_rate_ratio=1", "ppo.advantage_floor=0")
"""Of the usual PPO, where it learns what the defaults do not."""
SWING = (*CLASSIC, "ppo.num_envs=64", "ppo.num_steps=32", "ppo.entropy=0.05", "ppo.learning_rate=0.002")
"""Tries much, and often: nothing is paid before the car is out of its valley."""
TORQUE = ("ppo.num_epochs=10", "ppo.learning_rate=0.001", "ppo.gae_lambda=0.95", "ppo.entropy=0")
MINATAR = (
    *CLASSIC,
    "ppo.gae_lambda=0.95",
    "ppo.num_envs=64",
    "ppo.num_minibatches=8",
    "ppo.learning_rate=0.001",
    "ppo.entropy=0.01",
    "ppo.hidden=[128,128]",
)

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _task("cartpole", DEVELOPMENT, 200_000, "env=cartpole", language=RECORDED),
        _task("cartpole_continuous", DEVELOPMENT, 200_000, "env=cartpole_continuous", language=RECORDED),
        _task("gridworld", DEVELOPMENT, 100_000, "env=gridworld", "ppo.entropy=0.01"),
        _craftax("place_table", DEVELOPMENT),
        _gymnax("MountainCar-v0", DEVELOPMENT, 500_000, *SWING),
        _gymnax("Acrobot-v1", REPORT, 500_000, "ppo.entropy=0.01"),
        _gymnax("Catch-bsuite", REPORT, 100_000, "ppo.entropy=0.01"),
        _gymnax("DeepSea-bsuite", REPORT, 100_000, "ppo.entropy=0.01"),
        # In 500 steps even random play comes by the goal.
        _gymnax("FourRooms-misc", REPORT, 200_000, "env.horizon=100", "ppo.entropy=0.01"),
        _gymnax("Breakout-MinAtar", REPORT, 500_000, *MINATAR),
        _gymnax("Asterix-MinAtar", REPORT, 1_000_000, *MINATAR),
        _gymnax("SpaceInvaders-MinAtar", REPORT, 500_000, *MINATAR),
        # Episodes of 2500 steps would end three times in a whole training.
        _gymnax("Freeway-MinAtar", REPORT, 500_000, "env.horizon=500", *MINATAR),
        _gymnax("Pendulum-v1", REPORT, 200_000, *TORQUE, "ppo.discount=0.9", "ppo.critic_rate_ratio=10"),
        _gymnax("Reacher-misc", REPORT, 500_000, *TORQUE, *CLASSIC, "ppo.discount=0.95"),
        _craftax("make_wood_pickaxe", REPORT),
        _craftax("collect_drink", REPORT),
        _task("crumbs", REPORT, 200_000, "env=crumbs", "ppo.entropy=0.01"),
        _task("keydoor", REPORT, 200_000, "env=keydoor", "ppo.entropy=0.01"),
        _task("moving_goal", REPORT, 200_000, "env=moving_goal", "ppo.entropy=0.01"),
    )
}
"""Task -> what it is trained with."""


def tasks_of(set: str) -> tuple[Task, ...]:
    """The tasks of one set, in order."""
    return tuple(task for task in TASKS.values() if task.set == set)


def names_of(set: str) -> frozenset[str]:
    """What the tasks of a set are called: by the suite, as an environment, as an id of gymnax, as an achievement."""
    words = [word.partition("=") for task in tasks_of(set) for word in task.overrides]
    called = {value for key, _, value in words if key in ("env", "env.id", "env.task")}
    return frozenset({*called, *(task.name for task in tasks_of(set))})


REPORT_NAMES = names_of(REPORT) - names_of(DEVELOPMENT)
"""Names that only a ``report`` task has."""


def refuse_report(names: Iterable[str]) -> None:
    """Refuses ``report`` tasks where a setting is to be chosen.

    Raises:
        ValueError: one of the names is a ``report`` task's.
    """
    for name in names:
        if name in REPORT_NAMES:
            raise BadValue(
                f"{name} is a task of the set report, on which no setting is ever chosen: choose another one"
            )
