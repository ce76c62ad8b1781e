"""The config files: where they are, which methods have one, and a method's own on top of a config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

from llmrl.settings.config import Config


def config_dir() -> Path:
    """The config files: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def method_names() -> list[str]:
    """The methods that have a file."""
    return [file.stem for file in sorted((config_dir() / "method").glob("*.yaml"))]


def with_method(config: Config, name: str) -> Config:
    """The config as ``method=NAME`` would have it, everything else being given."""
    from omegaconf import OmegaConf

    values: Any = OmegaConf.to_container(OmegaConf.load(config_dir() / "method" / f"{name}.yaml"))
    return _filled(config, values if "method" in values else {"method": values})


def _filled(settings: Any, values: Mapping[str, Any]) -> Any:
    changes: dict[str, Any] = {}
    for name, value in values.items():
        section = getattr(settings, name)
        nested = is_dataclass(section) and not isinstance(section, type)
        changes[name] = _filled(section, value) if nested else tuple(value) if isinstance(value, list) else value
    return replace(settings, **changes)
