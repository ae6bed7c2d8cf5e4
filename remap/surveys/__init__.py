"""Surveys by name: how their files are read, in which frame they are, where velocities and identifiers stand."""

from __future__ import annotations

from remap.config import ConfigError
from remap.surveys.identification import Match, describe, identify
from remap.surveys.presets_image import IMAGES
from remap.surveys.presets_table import TABLES
from remap.surveys.record import FRAMES, Survey

__all__ = ["FRAMES", "Match", "Survey", "describe", "get", "identify", "names"]

_KNOWN = {survey.name: survey for survey in (*IMAGES, *TABLES)}


def get(name: str) -> Survey:
    """The survey of a name.

    Raises:
      ConfigError: there is none; lists those there are.

    Examples:
      >>> get("miles").frame
      'rest'
    """
    if name not in _KNOWN:
        raise ConfigError(f"survey must be one of {', '.join(names())}, found {name!r}")
    return _KNOWN[name]


def names() -> tuple[str, ...]:
    """The names of all surveys, sorted."""
    return tuple(sorted(_KNOWN))
