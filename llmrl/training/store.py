"""Where a run's chunks go: its directory, or nowhere but memory; of several processes, the first one's for all."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from llmrl.language import Table
from llmrl.runs import directory as runs
from llmrl.runs import trackers
from llmrl.settings.config import Config
from llmrl.settings.errors import BadValue
from llmrl.training import hosts
from llmrl.training.iteration import TrainState


class Store(NamedTuple):
    """Where chunks go: run directories, or nowhere but memory.

    Attributes:
        restore, restore_language, record: as ``llmrl.runs`` has them, for what is open.
        run: the run that is open, the first of several; None in memory.
    """

    restore: Callable[[TrainState], tuple[TrainState, int] | None]
    restore_language: Callable[[int], tuple[Table | None, dict[str, float]]]
    record: Callable[[TrainState, dict[str, np.ndarray], int, Table | None], None]
    run: runs.Run | None


_NOWHERE = Store(lambda like: None, lambda start: (None, {}), lambda *chunk: None, None)


@contextlib.contextmanager
def opened_store(config: Config) -> Iterator[Store]:
    """A config's store; its ``run_dir``, where it has one, is held meanwhile."""
    if config.run_dir is None:
        if config.track.tensorboard or config.track.wandb:
            raise BadValue("track=... needs a run_dir: dashboards are fed from the metrics.csv in there")
        yield _NOWHERE
        return
    with contextlib.ExitStack() as opened:
        with hosts.together():
            store = opened.enter_context(_directory(config)) if hosts.first() else _NOWHERE
        yield _shared(store) if hosts.several() else store


@contextlib.contextmanager
def _directory(config: Config) -> Iterator[Store]:
    with runs.open_run(config) as run, trackers.tracking(config) as track:

        def restore(like):
            restored = runs.restore(run, like)
            track()  # what a killed process had no time to send
            return restored

        def record(*chunk):
            runs.record(run, *chunk)
            track()

        yield Store(restore, functools.partial(runs.restore_language, run), record, run)


def _shared(store: Store) -> Store:
    """The first process's store for all of them: each hears what it holds, and gives it its part."""

    def restore(like):
        with hosts.together():
            restored = store.restore(like)
        done = hosts.agreed(restored[1] if restored else -1)
        return (hosts.from_first(restored[0] if restored else None, like), done) if done >= 0 else None

    def record(states, *chunk):
        states = hosts.whole(states)
        with hosts.together():
            store.record(states, *chunk)

    return store._replace(restore=restore, record=record)
