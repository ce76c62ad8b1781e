"""A run that hears no source is the same under each of them: one that is finished stands in for the others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from llmrl.assembly.identity import ignores_sources, of_one_run
from llmrl.runs import directory as runs
from llmrl.runs import metrics
from llmrl.settings.config import Config
from llmrl.training.progress import note


def link_to_equal(config: Config, near: str | Path) -> bool:
    """Puts a link to a finished run in place of a run's directory, where both are one run that hears no source.

    A run is left to be trained where its environment is the user's own code, which may have changed meanwhile, where
    the finished one was trained by other versions of the packages, and where ``resume=false``.

    Args:
        config: of the run, with a ``run_dir``.
        near: finished runs are looked for in its directories, and in theirs.

    Returns:
        Whether there is a link now. A link that leads to no such run any more is taken away.
    """
    place = Path(str(config.run_dir))
    if place.is_symlink():
        place.unlink()
    if place.exists() or not _may_be_taken(config):
        return False
    equal = next(_equal_runs(config, Path(near)), None)
    if equal is None:
        return False
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        place.symlink_to(os.path.relpath(equal.resolve(), place.parent.resolve()), target_is_directory=True)
    except OSError:  # no links on this disk, or another process was faster
        return False
    note(f"{place}: the same run as {equal}, which is finished, since method={config.method.name} hears no source")
    return True


def _may_be_taken(config: Config) -> bool:
    own_code = "." in (config.env.id or "")
    return ignores_sources(config) and config.resume and not own_code


def _equal_runs(config: Config, near: Path) -> Iterator[Path]:
    for pattern in ("*/summary.json", "*/*/summary.json"):
        for summary in sorted(near.glob(pattern)):
            if not summary.parent.is_symlink() and _is_equal(config, summary.parent):
                yield summary.parent


def _is_equal(config: Config, path: Path) -> bool:
    try:
        if f"name: {config.method.name}\n" not in (path / "config.yaml").read_text():
            return False  # most are another method's, which is known without reading all of the settings
        run = runs.load_run(path)
        same = run.config.seeds == config.seeds and of_one_run(run.config, config)
        return same and runs.read_summary(run).get("versions") == metrics.versions()
    except (OSError, ValueError):
        return False  # what cannot be read stands in for nothing
