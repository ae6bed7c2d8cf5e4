"""Configs: which sections decide what, changes of single fields, and configs as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import ml_collections

Record = TypeVar("Record")
Section = (
    ml_collections.ConfigDict | Mapping[str, Any]
)  # of a config, or a whole one; as it is or read from JSON


class ConfigError(ValueError):
    """A setting that cannot be used: what a user wrote, not a fault of the program. Told in one line."""


# Kept with every network beside the section of its stage; its inputs are described by the prepared data.
_NETWORK = ("name", "seed", "model", "loss", "augment", "library", "libraries")
_DATA = (
    "grid_medium",
    "arm_names",
    "arms",
    "lsf",
    "continuum",
    "label_names",
    "labels",
    "library",
    "libraries",
    "survey",
    "observe",
)

# Which sections decide what; networks on disk are known again by these, so that a change here forgets them.
SECTIONS: dict[str, tuple[str, ...]] = {
    "data": _DATA,  # the prepared spectra
    "pretrain": (*_NETWORK, "pretrain"),  # a pre-trained network, of given data
    "align": (*_NETWORK, "align", "pretrain"),  # an aligned one: it draws from the library as that stage does
    "finetune": (*_NETWORK, "finetune"),  # a fine-tuned one, besides the network that it starts from
    "scores": (*_DATA, *_NETWORK, "pretrain", "align", "finetune", "split", "predict"),  # of held-out stars
    "candidate": (
        "seed",
        "arm_names",
        "model",
        "loss",
        "augment",
        "library",
        "libraries",
    ),  # losses of a cross-validation
    "autoencoder": (
        "name",
        "seed",
        "library",
        "libraries",
        "autoencoder",
    ),  # every stage of the autoencoder route
}

# Sections that a config need not have, and fields of a library that decide nothing where they are empty: networks of
# before there were any stay what they are. So do fields of `augment` that are off.
_OPTIONAL = ("libraries",)
_EMPTY = ("exclude", "labels", "labels_path", "labels_table", "labels_from_name")

_OFF = ("lines", "lines_each", "depths", "alpha", "alpha_scatter")

# Fields of these sections that have no part in it: `interpolate` is about draws from the prepared library, and a
# member can be added to an ensemble without training the others again.
_FREE = {"data": {"library": ("interpolate",)}, "autoencoder": {"autoencoder": ("members",)}}


def deciding(config: Section, what: str, also: Sequence[str] = ()) -> dict[str, Any]:
    """The sections of a config that decide `what`, as plain JSON values.

    Args:
      config: a config, or one that was read from JSON.
      what: a key of `SECTIONS`.
      also: more sections, where what is decided depends on the config.
    """
    plain = config_to_json(config) if is_section(config) else config
    out = {name: plain[name] for name in (*SECTIONS[what], *also) if plain.get(name) or name not in _OPTIONAL}
    if "library" in out:
        out["library"] = _told(out["library"])
    if "augment" in out:
        out["augment"] = _switched_on(out["augment"])
    if "libraries" in out:
        # Shares are of draws from the prepared libraries.
        out["libraries"] = {
            name: {k: v for k, v in _told(section).items() if what != "data" or k != "weight"}
            for name, section in out["libraries"].items()
        }
    for name, free in _FREE.get(what, {}).items():
        out[name] = {k: v for k, v in out[name].items() if k not in free}
    return out


def _told(library: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in library.items() if v or k not in _EMPTY}


def _switched_on(augment: Mapping[str, Any]) -> dict[str, Any]:
    """The section without fields that are newer than some networks and decide nothing, since they are off."""
    off = {name for name in _OFF if not augment.get(name)}
    if off >= {"lines", "lines_each"}:
        off.add("lines_components")
    return {k: v for k, v in augment.items() if k not in off}


def record(
    cls: type[Record],
    section: Section,
    name: str,
    *,
    part: bool = False,
) -> Record:
    """A record of settings (a dataclass) from a section of the config.

    Args:
      cls: its fields are named as those of the section.
      name: of the section, for the messages.
      part: the section has fields that are for others.

    Raises:
      ConfigError: fields that the record does not know or that the section lacks, or a value that the record refuses;
        names the section and the field.
    """
    known = {field.name: field for field in dataclasses.fields(cls) if field.init}
    unknown = sorted(key for key in section if key not in known)
    if unknown and not part:
        raise ConfigError(f"{name}: unknown fields {unknown}; the section has {sorted(known)}")
    values = {key: section[key] for key in known if key in section}
    missing = [
        key
        for key, field in known.items()
        if key not in values
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{name}: expected the fields {missing}, found {sorted(section)}")
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:
        message = str(error)
        raise ConfigError(message if message.startswith(name) else f"{name}: {message}") from error


def read_overrides(path: str | Path) -> dict[str, Any]:
    """A JSON object of "section.field": value; lists become tuples, which is what configs hold.

    Raises:
      FileNotFoundError: there is no such file.
      ConfigError: it is no JSON object.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{path}: expected a JSON file of {{"section.field": value}}, found no file')
    try:
        found = json.loads(path.read_text())
    except ValueError as error:  # no JSON, or no text
        raise ConfigError(f"{path}: expected JSON: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f'{path}: expected a JSON object of {{"section.field": value}}, found {found!r}')
    return {key: tuples(value) for key, value in found.items()}


def apply_overrides(
    config: ml_collections.ConfigDict,
    changes: Section,
    where: str,
    *,
    fixed: Collection[str] = (),
) -> tuple[ml_collections.ConfigDict, tuple[str, ...]]:
    """A copy of the config with some fields replaced, and what differs.

    Args:
      changes: {"section": {"field": value}}, or {"section.field": value}.
      where: the changes come from, for the messages.
      fixed: sections that they may not touch.

    Returns:
      The copy, and each field that has another value than before, as "section.field: before → after".

    Raises:
      ConfigError: a field that the config does not have or that is fixed, a section instead of a field, or a value
        of another type.
    """
    out = config.copy_and_resolve_references()
    told = []
    for path, value in leaves(changes):
        *names, last = path
        key, section = ".".join(path), out
        if path[0] in fixed:
            raise ConfigError(f"{where}: {key} is not to be changed here")
        for name in names:
            section = section[name] if is_section(section) and name in section else None
        if not is_section(section) or last not in section:
            known = f"; its section has {sorted(section)}" if is_section(section) else ""
            raise ConfigError(f"{where}: the config has no field {key!r}{known}")
        before = section[last]
        if is_section(before):
            raise ConfigError(
                f"{where}: {key!r} is a section, expected one of its fields {sorted(before)}, found {value!r}"
            )
        try:
            section[last] = value
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{where}: {key}: expected a value like {before!r}, found {value!r}") from error
        if section[last] != before:
            told.append(f"{key}: {before} → {section[last]}")
    return out, tuple(told)


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


def leaves(changes: Section, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every field of nested or dotted sections, with its path; a section without fields comes as it is."""
    for key, value in changes.items():
        here = (*path, *key.split("."))
        if (isinstance(value, Mapping) or is_section(value)) and value:
            yield from leaves(value, here)
        else:
            yield here, value
