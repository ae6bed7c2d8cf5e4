"""How observed spectra are treated before a network sees them: the config section `observe`."""

from __future__ import annotations

import dataclasses

from remap.config import ConfigError, Section, record
from remap.preprocess.cleaning import CleaningSettings
from remap.preprocess.stacking import StackSettings
from remap.preprocess.velocity_settings import VelocitySettings

VELOCITIES = ("rest", "file", "measure")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObserveSettings:
    """How observed spectra are treated before a network sees them (config section `observe`).

    Attributes:
      velocity: where radial velocities come from that are not given: "rest" (the spectra are at rest), "file" (what
        the file says; measured where it does not) or "measure" (cross-correlation with the library).
      check: measure the velocities of all spectra and tell where they contradict what is used.
      tolerance: of that, km/s.
      coarser: how much wider than the networks' widest line spread a spectrum's may be, as a fraction, before its
        row is flagged.
      sharper: pixels per line spread beyond which a spectrum that does not say how wide its lines are is flagged:
        nobody samples lines so finely, so they are sharper than the networks know them.
      trust_width: spectra that do not say how wide their lines are have them as the networks know them, if they are
        not sampled finer than that; False flags them all, as spectra of another survey must be.
      join: spectra with one identifier of a star become one row.
      radius: arcsec; spectra with one identifier that lie farther apart stay rows of their own.
      bad_pixels: mask exact zeros and absurd values that no mask of the file tells.
      cosmic_rays: mask what stands out of single spectra and is narrower than a line can be, or, where a file has
        several exposures of a star, out of their median.
      stationary: look, when a survey is prepared, for features that stand still on its detector, and mask them.
      cleaning: see `remap.preprocess.cleaning`.
      cross_correlation: see `remap.preprocess.velocity`.
      stacking: see `remap.preprocess.stacking`.
    """

    velocity: str = "rest"
    check: bool = True
    tolerance: float = 20.0
    coarser: float = 0.25
    sharper: float = 8.0
    trust_width: bool = True
    join: bool = False
    radius: float = 5.0
    bad_pixels: bool = True
    cosmic_rays: bool = True
    stationary: bool = False
    cleaning: CleaningSettings = dataclasses.field(default_factory=CleaningSettings)
    cross_correlation: VelocitySettings = dataclasses.field(default_factory=VelocitySettings)
    stacking: StackSettings = dataclasses.field(default_factory=StackSettings)

    def __post_init__(self) -> None:
        if self.velocity not in VELOCITIES:
            raise ConfigError(f"observe.velocity must be one of {VELOCITIES}, found {self.velocity!r}")


def observe_settings(section: Section) -> ObserveSettings:
    """The settings from the config's section `observe`, whose subsections are those of the records in it.

    Raises:
      ConfigError: a field that is unknown or impossible.
    """
    plain = dict(section)
    parts = {"cleaning": CleaningSettings, "cross_correlation": VelocitySettings, "stacking": StackSettings}
    made = {
        name: record(cls, plain.pop(name), f"observe.{name}") for name, cls in parts.items() if name in plain
    }
    return record(ObserveSettings, {**plain, **made}, "observe")
