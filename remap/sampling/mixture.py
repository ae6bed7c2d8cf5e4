"""Several libraries in one: nodes side by side, cells within each, and how often each is drawn from.

A batch comes from library k with probability weight_k, and interpolation never leaves a library. The network is not
told: the pixels of all are those that every one of them has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from remap.config import ConfigError, Section, is_section
from remap.sampling.sources import Library

NAME = re.compile(r"[A-Za-z0-9][\w-]*")  # of a library: it is a folder's, too


def further_libraries(config: Section) -> dict[str, Section]:
    """The sections of `config.libraries` by their names, in alphabetical order; none where there is no such field.

    Each is a section as `library` without `interpolate`, which is that of `library`, and with `weight`, the share of
    the drawn spectra that are to come from it; `library` has the rest.

    Raises:
      ConfigError: a section or name that cannot be, or weights that leave nothing for `library`.
    """
    found = config.get("libraries", {})  # configs of before there were any have none
    out = {}
    for name in sorted(found):
        section = found[name]
        if not NAME.fullmatch(name):
            raise ConfigError(f"libraries: expected names of letters, digits, _ and -, found {name!r}")
        if not (is_section(section) or isinstance(section, Mapping)) or "weight" not in section:
            raise ConfigError(f"libraries.{name}: expected a section like `library` with a weight")
        if "interpolate" in section:
            raise ConfigError(
                f"libraries.{name}.interpolate: expected no such field, library.interpolate is for all of them"
            )
        out[name] = section
    weights = [float(section["weight"]) for section in out.values()]
    if any(not w > 0 for w in weights) or not sum(weights) < 1:
        raise ConfigError(
            "libraries: expected weights above 0 that leave something for `library`, whose weight is 1 less their "
            f"sum, found {dict(zip(out, weights, strict=True))}"
        )
    return out


def library_weights(config: Section) -> dict[str, float]:
    """Share of the drawn spectra of every library by name, "" for that of `config.library`; they add up to 1."""
    further = {name: float(section["weight"]) for name, section in further_libraries(config).items()}
    return {"": 1.0 - sum(further.values()), **further}


def mix(libraries: Sequence[Library], weights: Sequence[float]) -> Library:
    """Libraries of one arm as one, each with its share of the draws; a single one as it is.

    Args:
      libraries: on one grid, with as many line spreads and labels and one kind of cells.
      weights: positive.
    """
    if len(libraries) == 1:
        return libraries[0]
    counts = [len(one.labels) for one in libraries]
    offsets = np.cumsum([0, *counts[:-1]])
    valid = np.all([one.valid for one in libraries], axis=0)
    log_flux = np.concatenate([np.asarray(one.log_flux) for one in libraries], axis=1)
    whole = Library(
        np.where(valid, log_flux, np.float32(0.0)),
        valid,
        np.concatenate([np.asarray(one.labels) for one in libraries]),
        libraries[0].sigma,
        np.concatenate([one.cells + np.int32(o) for one, o in zip(libraries, offsets, strict=True)]),
        chance=None,
        origin=np.repeat(np.arange(len(libraries), dtype=np.int32), counts),
    )
    per_cell = [
        np.full(len(one.cells), w / len(one.cells)) for one, w in zip(libraries, weights, strict=True)
    ]
    chance = np.concatenate(per_cell)
    return whole._replace(chance=(chance / chance.sum()).astype(np.float32))
