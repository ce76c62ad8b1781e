"""``llmrl suite``: every method on tasks with sources of every quality, beside ignoring each source and adding it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from llmrl.settings.errors import BadValue
from llmrl.studies.carry_out import Train, carry_out, parse_shard
from llmrl.studies.suite_page import write
from llmrl.studies.suite_plan import cost, failures, plan, with_others
from llmrl.studies.suite_tasks import DEVELOPMENT, REPORT
from llmrl.training.progress import note

ON = {
    REPORT: "Tasks of this set report: no setting of any method may be chosen by what is shown here.",
    DEVELOPMENT: "Settings may be chosen on this set, so its results flatter what was tuned on it: see set=report.",
}
"""Set of tasks -> what its results may be used for."""


def suite(
    *,
    set: str,
    quick: bool = False,
    tasks: Sequence[str] = (),
    sources: Sequence[str] = (),
    methods: Sequence[str] = (),
    seeds: int | None = None,
    processes: int = 1,
    shard: str = "1/1",
    devices: str | int = "auto",
    dry_run: bool = False,
    out: str | None = None,
    command: str = "",
    train: Train | None = None,
) -> Path | str:
    """Says what it costs, trains the runs that are missing, and writes the page of all that are there.

    Args:
        set, quick, tasks, sources, methods, seeds, processes, shard, devices, dry_run, out: as in
            ``llmrl.settings.requests.Suite``.
        command: what was typed, to be kept on the page.
        train: how a run is trained, see ``llmrl.studies.carry_out``.

    Returns:
        The page; with ``dry_run`` what all of it costs, in words.

    Raises:
        ValueError: there is no such task, source, method or shard, or runs have failed (after everything else is done).
    """
    part = parse_shard(shard)
    planned = plan(set, quick, tasks, sources, methods, seeds)
    folder = Path(out or f"runs/suite/{set}{'_quick' if quick else ''}")
    if dry_run:
        return cost(planned, folder, part[1])
    note(ON[set])
    note(cost(planned, folder, part[1]))
    extra = [f"devices={devices}"]
    outcome = carry_out(
        planned.runs, folder, seeds=planned.seeds, extra=extra, shard=part, processes=processes, train=train
    )
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".page.lock"):  # parts that end at the same time write one page after the other
        outcome = outcome._replace(results=with_others(planned, outcome.results, folder, extra))
        page = write(planned, outcome.results, failures(planned, outcome, folder), folder, command, ON[set])
    if outcome.failures:
        raise BadValue(
            f"{len(outcome.failures)} of the runs failed, the first is {next(iter(outcome.failures))}: "
            f"{next(iter(outcome.failures.values()))} (the same command tries them again; {page} shows the others)"
        )
    return page
