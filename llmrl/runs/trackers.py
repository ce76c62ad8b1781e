"""Other people's dashboards, fed from the very rows of ``metrics.csv``: TensorBoard and Weights & Biases. Host only.

Every seed is a run of its own there, in a group of all of them: nothing is averaged away. What has been sent is noted
in ``tracked.json``, so that a run that goes on sends what is missing, once.

    tensorboard/seed<i>/   event files
    wandb/                 what Weights & Biases keeps on this machine; ``wandb sync`` sends it where ``mode=offline``
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import yaml

from llmrl.runs import metrics
from llmrl.settings.config import Config, TrackConfig
from llmrl.settings.errors import BadValue, install

NAMES = {
    "episode_return": "charts/episodic_return",
    "episode_length": "charts/episodic_length",
    "success_rate": "charts/success_rate",
    "episodes": "charts/episodes",
    "value_loss": "losses/value_loss",
    "policy_loss": "losses/policy_loss",
    "entropy": "losses/entropy",
    "approx_kl": "losses/approx_kl",
    "clip_fraction": "losses/clipfrac",
    "gradient_norm": "losses/gradient_norm",
    "skipped_update": "losses/skipped_update",
    "discount": "trust/discount",
}
"""A metric's name in a dashboard, after those that CleanRL made common; the x-axis is ``env_steps``."""

ROOMS = {"influence/": "trust", "weight_": "trust", "trust_": "trust", "meta_": "meta", "language_": "language"}
"""Beginning of a metric's name -> section of the dashboard; all others are in ``other``."""

Send: TypeAlias = Callable[[int, int, Mapping[str, float]], None]
"""``(seed, env_steps, name -> value)``."""

Track: TypeAlias = Callable[[], None]
"""Sends what ``metrics.csv`` has and a tracker has not; to be called whenever there are more rows."""


def dashboard_name(metric: str) -> str:
    """What a metric is called in a dashboard, e.g. ``charts/episodic_return`` for ``episode_return``."""
    if metric in NAMES:
        return NAMES[metric]
    return f"{next((room for start, room in ROOMS.items() if metric.startswith(start)), 'other')}/{metric}"


@contextlib.contextmanager
def tracking(config: Config) -> Iterator[Track]:
    """Opens the trackers that a config names.

    Args:
        config: settings of a run whose ``run_dir`` is open; the dashboards get its ``config.yaml``, which holds no
            secret.

    Yields:
        The function that sends what has not been sent yet.

    Raises:
        ValueError: a tracker is not installed, or refuses.
    """
    chosen = [name for name in TRACKERS if getattr(config.track, name)]
    if not chosen:
        yield lambda: None
        return
    path = Path(str(config.run_dir))
    settings = yaml.safe_load((path / "config.yaml").read_text())
    noted = path / "tracked.json"
    sent = json.loads(noted.read_text()) if noted.exists() else {}
    with contextlib.ExitStack() as stack:
        sends = {
            name: stack.enter_context(TRACKERS[name](path, config.seeds, sent.get(name, 0), config.track, settings))
            for name in chosen
        }

        def track() -> None:
            rows = path / "metrics.csv"
            if not rows.exists() or not rows.stat().st_size:
                return
            curves = metrics.read(rows)
            for name, send in sends.items():
                sent[name] = _send_rows(send, curves, sent.get(name, 0))
            metrics.replace_file(noted, json.dumps(sent) + "\n")

        yield track


def _send_rows(send: Send, curves: Mapping[str, np.ndarray], first: int) -> int:
    """Sends the rows from number ``first`` on, and says how many there are now."""
    names = {name: dashboard_name(name) for name in curves if name not in metrics.INDEX}
    seeds, iterations = curves["env_steps"].shape
    for i in range(first, iterations):
        for seed in range(seeds):
            row = {names[name]: float(curves[name][seed, i]) for name in names}
            known = {name: value for name, value in row.items() if np.isfinite(value)}
            send(seed, int(curves["env_steps"][seed, i]), known)
    return max(first, iterations)


# --- who may be told --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _tensorboard(path: Path, seeds: int, sent: int, track: TrackConfig, settings: Mapping[str, Any]) -> Iterator[Send]:
    try:
        from tensorboardX import SummaryWriter  # pyright: ignore
    except ImportError:
        raise _missing("tensorboard", "tensorboardX") from None
    # Whatever a killed process wrote and did not note is written again, in its place.
    options: dict[str, Any] = {"purge_step": _steps(path, sent)} if sent else {}
    # Files are named by the second; a run that goes on within the same one must not write over its own.
    options["filename_suffix"] = f".{sent}"
    writers = [SummaryWriter(str(path / "tensorboard" / f"seed{seed}"), **options) for seed in range(seeds)]
    if not sent:
        for writer in writers:
            writer.add_text("config", f"```json\n{json.dumps(settings, indent=2)}\n```")

    def send(seed: int, env_steps: int, row: Mapping[str, float]) -> None:
        for name, value in row.items():
            writers[seed].add_scalar(name, value, env_steps)

    try:
        yield send
    finally:
        for writer in writers:
            writer.close()


@contextlib.contextmanager
def _wandb(path: Path, seeds: int, sent: int, track: TrackConfig, settings: Mapping[str, Any]) -> Iterator[Send]:
    try:
        import wandb  # pyright: ignore
    except ImportError:
        raise _missing("wandb", "wandb") from None
    group = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    quiet = wandb.Settings(console="off", disable_git=True, disable_code=True, silent=True)
    try:
        opened = [
            wandb.init(
                project=track.project,
                entity=track.entity,
                mode="offline" if track.mode == "offline" else "online",
                dir=str(path),
                group=f"{path.name}-{group}",
                name=f"{path.name} seed {seed}",
                id=f"{group}-{seed}",
                resume="allow",
                reinit="create_new",
                config=dict(settings),
                settings=quiet,
            )
            for seed in range(seeds)
        ]
    except wandb.Error as error:
        said = str(error).strip().partition("\n")[0].rstrip(".")
        raise BadValue(
            f"track=wandb: {said}; export WANDB_API_KEY=..., or keep everything here with track.mode=offline"
        ) from error

    def send(seed: int, env_steps: int, row: Mapping[str, float]) -> None:
        opened[seed].log(dict(row), step=env_steps)

    try:
        yield send
    finally:
        for run in opened:
            run.finish()


TRACKERS: dict[str, Callable[..., contextlib.AbstractContextManager[Send]]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
}
"""Trackers by the name of their switch in ``TrackConfig``."""


def _steps(path: Path, iterations: int) -> int:
    """The first environment step that has not been sent, given how many iterations have been."""
    with (path / "metrics.csv").open() as file:
        next(file)
        return int(next(file).split(",")[2]) * iterations + 1


def _missing(name: str, package: str) -> BadValue:
    return BadValue(f"track={name} needs the package {package}: {install('track')}")
