"""How observed spectra are read and treated before networks see them: what was asked for, filled in and told."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from remap import io, surveys
from remap.config import ConfigError
from remap.predict.identity import describe_source
from remap.preprocess.description import Preprocessing
from remap.preprocess.joining import join
from remap.preprocess.observe_settings import ObserveSettings
from remap.preprocess.observed import Observed
from remap.preprocess.stationary import StationaryMask
from remap.spectra import velocities_in_km_s
from remap.surveys import Survey

# km/s of each file in their order, or by its name; or where they come from (`ObserveSettings.velocity`).
FileVelocities = Mapping[str, float] | Sequence[float] | np.ndarray | str | None


class Reading(NamedTuple):
    """How the files of `Predictor.observe_files` are read and treated."""

    source: Mapping[str, Any]
    settings: ObserveSettings
    velocities: list[float] | None  # km/s, of every file; None = as the settings say
    stationary: StationaryMask | None
    told: dict[str, Any]  # of it, for the provenance


def make_reading(
    files: Sequence[Path],
    own: Reading,
    *,
    survey: Survey | str | None,
    source: Mapping[str, Any] | None,
    velocities: FileVelocities,
    settings: ObserveSettings | None,
    stationary: StationaryMask | None,
) -> Reading:
    """What was asked for, with what the networks' own survey has for everything else; reads no file.

    Args:
      own: how spectra of the networks' own survey are read and treated.
      files, survey, source, velocities, settings, stationary: see `remap.predict.predictor.Predictor.observe_files`.

    Raises:
      ConfigError: there are not as many velocities as files.
    """
    wanted = settings or own.settings
    if survey is not None:
        preset = surveys.get(survey) if isinstance(survey, str) else survey
        if settings is None:
            frame = "rest" if preset.frame == "rest" else "file"
            wanted = dataclasses.replace(wanted, velocity=frame, join=True, trust_width=False)
        source = preset.with_source(source or {}).source
    elif source is None:
        source = own.source
    wanted = with_velocities(wanted, velocities)
    masked = own.stationary if stationary is None and survey is None else stationary
    told = describe_source(wanted, survey, source, own.source)
    return Reading(source, wanted, velocities_of_files(velocities, files), masked, told)


def with_velocities(settings: ObserveSettings, velocities: object) -> ObserveSettings:
    """The same, where velocities come from what is asked for, if that is a name of a place and no numbers."""
    return dataclasses.replace(settings, velocity=velocities) if isinstance(velocities, str) else settings


def velocities_of_files(velocities: FileVelocities, files: Sequence[Path]) -> list[float] | None:
    """km/s of every file, NaN = none is given for it; None where no numbers are given.

    Raises:
      ConfigError: there are not as many as files.
      SpectrumError: a unit that is not of a velocity.
    """
    if velocities is None or isinstance(velocities, str):
        return None
    if isinstance(velocities, Mapping):
        known = np.append(
            velocities_in_km_s(list(velocities.values())), np.nan
        )  # -1, the last, is a file without one
        return known[io.match_rows(list(velocities), files, where="velocities")].tolist()
    given = np.atleast_1d(velocities_in_km_s(velocities))
    if given.shape != (len(files),):
        raise ConfigError(f"expected {len(files)} velocities, found {given.size}")
    return given.tolist()


def joined(
    observed: Observed, preprocessing: Preprocessing, settings: ObserveSettings, told: Mapping[str, Any]
) -> Observed:
    """One row per star where the settings say so, with what the provenance is to say."""
    found = join(observed, preprocessing, settings=settings) if settings.join else observed
    return dataclasses.replace(found, told=told)
