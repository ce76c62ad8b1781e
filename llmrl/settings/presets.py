"""A method's preset, as its file has it, on top of a config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from typing import Any

from llmrl.settings.config import Config


def with_method(config: Config, name: str) -> Config:
    """The config as ``method=NAME`` would have it, everything else being given."""
    from omegaconf import OmegaConf

    from llmrl.settings.overrides import config_dir

    values: Any = OmegaConf.to_container(OmegaConf.load(config_dir() / "method" / f"{name}.yaml"))
    return _filled(config, values if "method" in values else {"method": values})


def _filled(settings: Any, values: Mapping[str, Any]) -> Any:
    changes: dict[str, Any] = {}
    for name, value in values.items():
        section = getattr(settings, name)
        nested = is_dataclass(section) and not isinstance(section, type)
        changes[name] = _filled(section, value) if nested else tuple(value) if isinstance(value, list) else value
    return replace(settings, **changes)
