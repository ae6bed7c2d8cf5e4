"""Settings in files: what `cross_validate` chooses, and what `--override=FILE` of the launch scripts reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections


def read_overrides(path: str | Path) -> dict[str, Any]:
    """A JSON object of "section.field": value; lists become tuples, which is what configs hold.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no JSON object.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{path}: expected a JSON file of {{"section.field": value}}, found no file')
    try:
        found = json.loads(path.read_text())
    except ValueError as error:  # no JSON, or no text
        raise ValueError(f"{path}: expected JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f'{path}: expected a JSON object of {{"section.field": value}}, found {found!r}')
    return {key: tuples(value) for key, value in found.items()}


def apply_overrides(
    config: ml_collections.ConfigDict, overrides: Mapping[str, Any], where: str
) -> ml_collections.ConfigDict:
    """A copy of the config with fields ("section.field": value) replaced.

    Args:
      where: the overrides come from, for the messages.

    Raises:
      ValueError: a field that the config does not have, a section instead of a field, or another type.
    """
    config = config.copy_and_resolve_references()
    for key, value in overrides.items():
        *names, last = key.split(".")
        section = config
        for name in names:
            section = section[name] if _is_section(section) and name in section else None
        if not _is_section(section) or last not in section:
            known = f"; its section has {sorted(section)}" if _is_section(section) else ""
            raise ValueError(f"{where}: the config has no field {key!r}{known}")
        if _is_section(section[last]):
            raise ValueError(
                f"{where}: {key!r} is a section, expected one of its fields {sorted(section[last])}"
            )
        try:
            section[last] = value
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{where}: {key}: expected a value like {section[last]!r}, found {value!r}"
            ) from error
    return config


def _is_section(value: Any) -> bool:
    return isinstance(value, ml_collections.ConfigDict)


def tuples(value: Any) -> Any:
    """`value` with its lists as tuples, at all depths."""
    if isinstance(value, list):
        return tuple(tuples(v) for v in value)
    return {k: tuples(v) for k, v in value.items()} if isinstance(value, dict) else value
