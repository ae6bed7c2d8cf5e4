"""Air or vacuum: which of them the velocities of spectra speak for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from remap.config import ConfigError
from remap.preprocess.templates import Templates
from remap.preprocess.velocity import Arm, Velocities, measure_velocities
from remap.preprocess.velocity_settings import VelocitySettings

STRAY = 0.01  # share of stars whose velocity is not the expected one


@dataclasses.dataclass(frozen=True, eq=False)
class MediaComparison:
    """Which medium the velocities of S spectra speak for.

    Attributes:
      declared: velocities with the wavelengths as declared.
      other: the same if they were in the other medium.
      log_odds: float64[S], ln of the likelihood of `other` over that of `declared`; 0 where nothing can be told.
      verdict: str[S], "declared", "other" or "undecided".
    """

    declared: Velocities
    other: Velocities
    log_odds: np.ndarray
    verdict: np.ndarray


def compare_media(
    declared: Mapping[str, Arm],
    other: Mapping[str, Arm],
    templates: Templates,
    settings: VelocitySettings | None = None,
    *,
    expected: float | np.ndarray | None = None,
    expected_error: float | np.ndarray = 10.0,
    odds: float = 100.0,
) -> MediaComparison:
    """Whether spectra are in the medium that was declared for them, from their velocities.

    Air and vacuum differ by 83 km/s, and by nearly the same at all wavelengths: the difference changes by 0.5 km/s
    from 4850 to 5750 Å and by 2 km/s from 4000 to 9000 Å, less than what templates of a library are good to. So a
    spectrum alone does not tell its medium: only the velocity that it should have does. Without it, or where it is
    not known to some 25 km/s, all is undecided. A star in a hundred may have any velocity (a binary, a wrong match).

    Args:
      declared: as for `measure_velocities`, on the grid by the medium as declared.
      other: the same spectra, on the grid as if their wavelengths were in the other medium.
      expected: km/s, in the frame of the wavelengths: 0 of spectra at rest, or the pipeline's; NaN = unknown.
      expected_error: km/s, its standard deviation.
      odds: how many times likelier one must be for a verdict.

    Raises:
      ConfigError: as `measure_velocities`; an error or odds out of range.
    """
    settings = settings or VelocitySettings()
    first = measure_velocities(declared, templates, settings)
    second = measure_velocities(other, templates, settings)
    if len(first) != len(second):
        raise ConfigError(f"media: expected the same spectra twice, found {len(first)} and {len(second)}")
    if not odds > 1 or not np.all(np.asarray(expected_error) > 0):
        raise ConfigError(
            f"media: expected odds above 1 and positive errors, found {odds} and {expected_error}"
        )
    wanted = np.broadcast_to(
        np.nan if expected is None else np.asarray(expected, np.float64), first.velocity.shape
    )

    def log_likelihood(found: Velocities) -> np.ndarray:
        sigma = np.hypot(found.error, expected_error)
        bell = np.exp(-0.5 * ((found.velocity - wanted) / sigma) ** 2) / (np.sqrt(2 * np.pi) * sigma)
        return np.log((1 - STRAY) * bell + STRAY / (2 * settings.limit))

    log_odds = log_likelihood(second) - log_likelihood(first)
    log_odds = np.where(first.poor | second.poor | ~np.isfinite(log_odds), 0.0, log_odds)
    verdict = np.where(
        log_odds > np.log(odds), "other", np.where(log_odds < -np.log(odds), "declared", "undecided")
    )
    return MediaComparison(first, second, log_odds, verdict)
