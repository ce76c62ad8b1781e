"""The page of all settings, made of the dataclasses that define them, so that it is never out of date.

`make docs` calls `page()`; `python scripts/docs_settings.py` prints it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING as REQUIRED

from llmrl.settings import config as settings
from llmrl.settings import overrides
from llmrl.settings.config import Config

UNITS = {
    "seconds": ("llm.deadline", "llm.max_seconds"),
    "environment steps": (
        "env.horizon",
        "env.steps_per_reset",
        "ppo.num_steps",
        "total_steps",
        "method.trust.advice_patience",
    ),
    "iterations": ("method.outer.every", "method.outer.warmup"),
    "per iteration": (
        "ppo.advantage_decay",
        "method.outer.scale_decay",
        "method.trust.advice_decay",
        "method.trust.ceiling_fall",
        "method.trust.ceiling_rise",
    ),
    "per outer step": ("method.trust.evidence_memory",),
    "newton": ("env.force",),
    "cells": ("env.size",),
    "nats": ("method.outer.converged_kl",),
    "products": ("solver.num_terms", "solver.power_iterations", "solver.num_probes"),
    "tokens": ("llm.max_tokens",),
    "requests": ("llm.max_requests", "llm.concurrency"),
    "requests per minute": ("llm.requests_per_minute",),
    "currency": ("llm.max_cost",),
    "currency per million tokens": ("llm.prompt_price", "llm.answer_price"),
    "rows": ("llm.capacity",),
    "rollouts": ("method.outer.window",),
    "log of a deviation": ("ppo.initial_log_std",),
    "share of the training": ("method.potential.decay", "method.goals.pretraining"),
    "share of the batch": ("solver.curvature_fraction",),
    "share of the answers": ("llm.noise",),
}
"""Of those numbers that are more than a count, a factor or a switch."""

_UNIT_OF = {key: unit for unit, keys in UNITS.items() for key in keys}

HEAD = """\
# Settings

After this page you can set every key: its meaning, its unit and its default. The page is made of the dataclasses that
define the keys.

On the command line, `key=value` sets a key (`ppo.learning_rate=1e-3`) and `group=choice` chooses from a group
(`solver=identity`), in any order. `llmrl train --cfg job` shows the settings of a command without running it.
`llmrl train --help` lists groups and keys. In Python, `llmrl.compose("env=gridworld", "ppo.num_envs=32")` takes the
same settings. llmrl refuses an unknown key or value, and names the nearest right one.

`null` (None) means: not set. Write a list as `[64,64]`. A plus adds an entry of a dictionary:
`+aux.options.seed=1`, `+env.params.gravity=5.0`.
"""


def page() -> str:
    """The page, in Markdown."""
    parts = [HEAD, "## Of a training run\n", _table(Config, "")]
    for name, section in _sections(Config):
        parts += [f"### `{name}`\n", _lead(section), _table(section, f"{name}.")]
    parts += ["## Choices of the groups\n", _choices()]
    parts.append("## Of the other commands\n")
    for command, schema in overrides.SCHEMAS.items():
        if schema is not Config:
            beyond = "All of a training run's, and:\n" if issubclass(schema, Config) else ""
            parts += [f"### `llmrl {command}`\n", beyond, _table(schema, "", skipped=("env", "llm"))]
    return "\n".join(parts)


def keys(schema: type = Config, prefix: str = "") -> Iterator[str]:
    """Every key of a schema, dotted."""
    for entry in fields(schema):
        section = _section_of(entry)
        if section is None:
            yield prefix + entry.name
        else:
            yield from keys(section, f"{prefix}{entry.name}.")


def meanings(schema: type) -> dict[str, str]:
    """Name of an attribute -> what its docstring, or that of what it extends, says of it."""
    found = meanings(schema.__base__) if is_dataclass(schema.__base__) else {}
    text = inspect.getdoc(schema) or ""
    name = ""
    for line in text.partition("Attributes:\n")[2].splitlines():
        start = re.match(r"    (\w+): (.*)", line)
        if start:
            name = start[1]
            found[name] = start[2]
        elif name and line.startswith("        "):
            found[name] += " " + line.strip()
    return found


def _section_of(entry: Any) -> type | None:
    default = entry.default_factory() if entry.default_factory is not MISSING else entry.default
    return type(default) if is_dataclass(default) else None


def _sections(schema: type, prefix: str = "") -> Iterator[tuple[str, type]]:
    for entry in fields(schema):
        section = _section_of(entry)
        if section is not None:
            yield f"{prefix}{entry.name}", section
            yield from _sections(section, f"{prefix}{entry.name}.")


def _lead(schema: type) -> str:
    return (inspect.getdoc(schema) or "").partition("Attributes:")[0].strip() + "\n"


def _table(schema: type, prefix: str, skipped: tuple[str, ...] = ()) -> str:
    said = meanings(schema)
    inherited = (
        {entry.name for entry in fields(Config)} if issubclass(schema, Config) and schema is not Config else set()
    )
    rows = ["| key | meaning | unit | default |", "| --- | --- | --- | --- |"]
    for entry in fields(schema):
        if entry.name in inherited:
            continue
        key = prefix + entry.name
        section = _section_of(entry)
        if entry.name in skipped and section is not None:
            rows.append(f"| `{key}` | {_cell(said[entry.name])} The keys of [`{key}`](#{key}). | | |")
        elif section is not None:
            rows.append(f"| [`{key}`](#{_anchor(key)}) | {_cell(said[entry.name])} | | |")
        else:
            rows.append(f"| `{key}` | {_cell(said[entry.name])} | {_UNIT_OF.get(key, '')} | {_default(entry)} |")
    return "\n".join(rows) + "\n"


def _anchor(key: str) -> str:
    return key.replace(".", "")


def _default(entry: Any) -> str:
    value = entry.default_factory() if entry.default_factory is not MISSING else entry.default
    if value == REQUIRED:
        return "required"
    return f"`{_short(list(value) if isinstance(value, tuple) else value)}`"


def _cell(text: str) -> str:
    """As a cell of a table: lists of choices spelt out, bars escaped outside of code."""
    text = re.sub(r"``([A-Z_]+)``", lambda name: _spelt_out(name[1]), text)
    parts = re.split(r"(``?[^`]*``?)", text)
    return "".join(part if part.startswith("`") else part.replace("|", r"\|") for part in parts)


def _spelt_out(name: str) -> str:
    for module in (settings, overrides):
        values = getattr(module, name, None)
        if isinstance(values, tuple):
            return ", ".join(f"`{value}`" for value in values)
    return f"`{name}`"


def _choices() -> str:
    folder = overrides.config_dir()
    lines: list[str] = []
    for group in sorted(path for path in folder.iterdir() if path.is_dir() and path.name != "hydra"):
        lines += [f"### `{group.name}=`\n", "| choice | what it is | what it sets |", "| --- | --- | --- |"]
        lines += [_choice(file) for file in sorted(group.glob("*.yaml"))] + [""]
    return "\n".join(lines)


def _choice(file: Path) -> str:
    text = file.read_text()
    comments = [line[1:].strip() for line in text.splitlines() if line.startswith("#") and "@package" not in line]
    prefix = "" if "@package _global_" in text else f"{file.parent.name}."
    values = yaml.safe_load(text) or {}
    values.pop("defaults", None)
    sets = ", ".join(f"`{key}={_short(value)}`" for key, value in _flat(values, prefix) if not key.startswith("hydra"))
    return f"| `{file.stem}` | {_cell(' '.join(comments))} | {sets} |"


def _flat(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _short(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower().replace("none", "null")
    return f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)


if __name__ == "__main__":
    print(page())
