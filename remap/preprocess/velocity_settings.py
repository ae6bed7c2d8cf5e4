"""How velocities are measured: the settings of `remap.preprocess.velocity` and of what it is made of."""

from __future__ import annotations

import dataclasses

import numpy as np

from remap.config import ConfigError
from remap.spectra import SPEED_OF_LIGHT


@dataclasses.dataclass(frozen=True, kw_only=True)
class VelocitySettings:
    """How velocities are measured.

    Attributes:
      templates: number of library spectra to compare with.
      best: how many of them are fitted, as a linear combination.
      limit: largest velocity, towards us or away, that is looked for, km/s.
      span: largest lag that `quality` looks at, km/s; at least `limit`.
      smooth: standard deviation of the smoothing that gives the continuum, km/s; several times the line spread.
      taper: share of an arm at each end over which the weights fall to zero.
      mismatch: error of the templates, a fraction of the continuum, added in quadrature to the noise of a pixel.
      calibration: error of the survey's wavelengths, km/s, added in quadrature to that of a velocity. Nothing in a
        spectrum tells it.
      clip: pixels this many times the scatter above the continuum are emission or cosmic rays, and left out.
      min_coverage: smallest share of valid pixels, of all arms together.
      min_pixels: smallest number of them.
      min_quality: `quality` below which a velocity is poor.
      min_parts: `parts` below which it is.

    Raises:
      ConfigError: a value that is out of its range; names the field.
    """

    templates: int = 24
    best: int = 3
    limit: float = 1000.0
    span: float = 3000.0
    smooth: float = 1000.0
    taper: float = 0.03
    mismatch: float = 0.02
    calibration: float = 0.0
    clip: float = 6.0
    min_coverage: float = 0.2
    min_pixels: int = 50
    min_quality: float = 4.5
    min_parts: float = 2.2

    def __post_init__(self) -> None:
        for name in ("templates", "best", "min_pixels"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, found {getattr(self, name)}")
        for name in ("limit", "smooth", "mismatch", "clip", "min_quality", "min_parts"):
            if not 0 < getattr(self, name) < np.inf:
                raise ConfigError(f"{name} must be positive, found {getattr(self, name)}")
        if not self.limit <= self.span < SPEED_OF_LIGHT / 2:
            raise ConfigError(
                f"span must be at least the limit of {self.limit} km/s and below half the speed of light, "
                f"found {self.span}"
            )
        if not 0 < self.taper < 0.5:
            raise ConfigError(f"taper must be in (0, 0.5), found {self.taper}")
        if not 0 <= self.calibration < np.inf:
            raise ConfigError(f"calibration must be at least 0, found {self.calibration}")
        if not 0 <= self.min_coverage <= 1:
            raise ConfigError(f"min_coverage must be in [0, 1], found {self.min_coverage}")
