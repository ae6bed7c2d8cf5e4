"""Configs: which sections decide what, changes of single fields, and configs as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections


class ConfigError(ValueError):
    """A setting that cannot be used: what a user wrote, not a fault of the program. Told in one line."""


# What decides a network besides its inputs and the section of its stage; kept with it.
NETWORK_SECTIONS = ("name", "seed", "model", "loss", "augment", "library")


# What decides the prepared data (of `library` all but `interpolate`), a pre-training, and the scores.
DATA_SECTIONS = (
    "grid_medium",
    "arm_names",
    "arms",
    "lsf",
    "continuum",
    "label_names",
    "labels",
    "library",
    "survey",
)

PRETRAIN_SECTIONS = (*DATA_SECTIONS, *NETWORK_SECTIONS, "pretrain")
SCORE_SECTIONS = (*PRETRAIN_SECTIONS, "align", "finetune", "split", "predict")


# A variant that changed these would change nothing, or what it is compared by.
FIXED = (
    "ablate",
    "calibrate",
    "data_root",
    "embeddings",
    "evaluate",
    "find_lr",
    "label_names",
    "name",
    "seed",
)


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
            section = section[name] if is_section(section) and name in section else None
        if not is_section(section) or last not in section:
            known = f"; its section has {sorted(section)}" if is_section(section) else ""
            raise ValueError(f"{where}: the config has no field {key!r}{known}")
        if is_section(section[last]):
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


def is_section(value: Any) -> bool:
    """True for a part of a config with fields of its own."""
    return isinstance(value, ml_collections.ConfigDict)


def tuples(value: Any) -> Any:
    """`value` with its lists as tuples, at all depths."""
    if isinstance(value, list):
        return tuple(tuples(v) for v in value)
    return {k: tuples(v) for k, v in value.items()} if isinstance(value, dict) else value


def config_to_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """A config as plain JSON values."""
    return json.loads(config.to_json())


def override(
    config: ml_collections.ConfigDict, changes: Mapping[str, Any], where: str
) -> tuple[ml_collections.ConfigDict, tuple[str, ...]]:
    """A copy of `config` with the fields of `changes` (nested as the config is), and what differs.

    Raises:
      ValueError: a field that the config does not have or that is fixed, or a value of another type.
    """
    out = config.copy_and_resolve_references()
    told = []
    for path, value in leaves(changes):
        name, section = ".".join(path), out
        if path[0] in FIXED:
            raise ValueError(f"{where}: {name} is not for a variant to change")
        for key in path[:-1]:
            section = section[key] if is_section(section) and key in section else None
        if not is_section(section) or path[-1] not in section or is_section(section[path[-1]]):
            known = sorted(section) if is_section(section) else "no such section"
            raise ValueError(f"{where}: the config has no field {name}; in that place it has {known}")
        before = section[path[-1]]
        try:
            section[path[-1]] = value
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {name}: {error}") from error
        if section[path[-1]] != before:
            told.append(f"{name}: {before} → {section[path[-1]]}")
    return out, tuple(told)


def sections(config: ml_collections.ConfigDict, names: Sequence[str]) -> dict[str, Any]:
    plain = config_to_json(config)
    return {name: plain[name] for name in names}


def leaves(changes: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every field of nested sections, with its path."""
    for key, value in changes.items():
        if isinstance(value, Mapping) or is_section(value):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value
