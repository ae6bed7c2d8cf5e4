"""Declarations of how files are read (config sections `source`), checked before a file is opened."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from astropy import units

from remap.config import ConfigError, Section, is_section
from remap.spectra import MEDIA

AXES = ("linear", "ln", "log10")


def plain(value: Any) -> Any:
    """A part of a config as plain dicts and tuples, at all depths."""
    if isinstance(value, Mapping) or is_section(value):
        return {key: plain(value[key]) for key in value}
    return tuple(plain(v) for v in value) if isinstance(value, list | tuple) else value


def check_source(
    source: Section, *, kind: str, required: Iterable[str], optional: Mapping[str, Any]
) -> dict[str, Any]:
    """A declaration as a plain dict with every optional key filled in.

    A key whose value is None counts as not given. Mistakes here are the configuration's, not a file's, so
    they raise a plain ValueError, which a batch that tolerates bad files must not swallow.

    Args:
      source: a dict or an `ml_collections.ConfigDict`.
      kind: what is declared, for the message.
      required: keys that must be given.
      optional: key -> default.

    Raises:
      ValueError: a key that is missing or unknown, a medium, axis or wavelength unit that does not exist.
    """
    found = {key: plain(source[key]) for key in source if source[key] is not None}
    required = tuple(required)
    known = (*required, *optional)
    missing = [key for key in required if key not in found]
    unknown = sorted(set(found) - set(known))
    if missing or unknown:
        wrong = [f"missing {key!r}" for key in missing] + [f"unknown {key!r}" for key in unknown]
        raise ConfigError(f"source of {kind}: {', '.join(wrong)}; its keys are {', '.join(known)}")
    filled = {**optional, **found}
    if "medium" in filled:
        check_choice(filled, "medium", MEDIA, kind)
    if "axis" in filled:
        check_choice(filled, "axis", AXES, kind)
    if "wave_unit" in filled:
        try:
            units.Unit(filled["wave_unit"]).to(units.AA)
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"source of {kind}: wave_unit must be a unit of length, found {filled['wave_unit']!r}"
            ) from error
    return filled


def check_choice(source: Section, key: str, allowed: Iterable[Any], kind: str) -> None:
    """Raises ValueError unless `source[key]` is one of `allowed`."""
    allowed = tuple(allowed)
    if source[key] not in allowed:
        raise ConfigError(f"source of {kind}: {key} must be one of {allowed}, found {source[key]!r}")
