"""A mock survey with known truth and a domain gap: what the library does not know about real stars."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from astropy import units
from astropy.io import fits
from astropy.table import Table
from jaxtyping import Bool, Float

from remap.config import ConfigError
from remap.preprocess.rotation import broaden
from remap.synth.atoms import ELEMENTS, LABEL_RANGES, OFFSET_RANGE
from remap.synth.blanketing import default_lines
from remap.synth.instrument import Detector, InstrumentSettings, expose, make_detector
from remap.synth.lines import LineList
from remap.synth.model import synthesize_batch

_METALS = tuple(e for e in ELEMENTS if e != "H")
_UNITS = {"teff": units.K, "logg": units.dex, "feh": units.dex}
_UNITS |= dict.fromkeys(("vmic", "vsini", "vmac", "rv"), units.km / units.s)
_UNITS |= dict.fromkeys((f"{e.lower()}_m" for e in _METALS), units.dex)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """Which stars a mock survey has, and what is known of them.

    Attributes:
      dwarfs, giants: number of stars of each kind.
      labelled_dwarfs, labelled_giants: how many of them appear in `labels.ecsv`.
      calibration_dwarfs, calibration_giants: how many of the labelled stars are calibration stars, with labels
        and spectra of their own quality.
      dwarf_teff, giant_teff: uniform ranges, K.
      dwarf_logg, giant_logg: (Teff, log g) points; log g is interpolated between them, plus a
        Gaussian `logg_scatter` (dex), kept within the model's range.
      feh: mean and standard deviation, dex; clipped to `feh_range`.
      label_errors: standard deviations of the errors of observed labels: K, dex, dex. Drawn, and quoted.
      calibration_errors: the same for calibration stars.
      missing_labels: fraction of the other labelled stars that lack one of their labels, NaN in `labels.ecsv`.
      abundance_scatter: standard deviation of [X/M] of each metal but Fe, dex, drawn for each star.
      vmic, vsini, macroturbulence: uniform ranges, km/s; macroturbulence is the σ of a Gaussian.
      rv_scatter: standard deviation of what is left of the radial velocity, km/s.

    Raises:
      ValueError: counts that are negative, labelled stars that outnumber the stars or calibration stars that
        outnumber the labelled, a value that is out of its range.
    """

    dwarfs: int
    giants: int
    labelled_dwarfs: int
    labelled_giants: int
    calibration_dwarfs: int
    calibration_giants: int
    dwarf_teff: tuple[float, float]
    dwarf_logg: tuple[tuple[float, float], ...]
    giant_teff: tuple[float, float]
    giant_logg: tuple[tuple[float, float], ...]
    logg_scatter: float
    feh: tuple[float, float]
    feh_range: tuple[float, float]
    label_errors: tuple[float, float, float]
    calibration_errors: tuple[float, float, float]
    missing_labels: float
    abundance_scatter: float
    vmic: tuple[float, float]
    vsini: tuple[float, float]
    macroturbulence: tuple[float, float]
    rv_scatter: float

    def __post_init__(self) -> None:
        for kind, count, labelled, best in (
            ("dwarfs", self.dwarfs, self.labelled_dwarfs, self.calibration_dwarfs),
            ("giants", self.giants, self.labelled_giants, self.calibration_giants),
        ):
            if not 0 <= labelled <= count:
                raise ConfigError(f"cannot label {labelled} of {count} {kind}")
            if not 0 <= best <= labelled:
                raise ConfigError(f"cannot take {best} calibration stars from {labelled} labelled {kind}")
        if not 0 <= self.missing_labels <= 1:
            raise ConfigError(f"missing_labels must be in [0, 1], found {self.missing_labels}")
        for name in ("logg_scatter", "abundance_scatter", "rv_scatter"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} must not be negative, found {getattr(self, name)}")
        if self.stars == 0:
            raise ConfigError("the survey has no stars")

    @property
    def stars(self) -> int:
        """Number of all stars; dwarfs come first."""
        return self.dwarfs + self.giants

    def first(self, dwarfs: int, giants: int) -> Bool[np.ndarray, " stars"]:
        """True for so many stars of each kind, the first ones."""
        number = np.arange(self.stars)
        dwarf = number < self.dwarfs
        return np.where(dwarf, number, number - self.dwarfs) < np.where(dwarf, dwarfs, giants)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SurveySettings(SampleSettings, InstrumentSettings):
    """A mock survey: its stars, its instrument, and what concerns neither. One flat section of a config.

    Attributes:
      seed: of every random draw.
      loggf_scatter: standard deviation of the error of each line's log gf, dex; the same for all stars.
      chunk: spectra under way at a time, see `synthesize_batch`.

    Raises:
      ValueError: see `SampleSettings` and `InstrumentSettings`; a value that is out of its range.
    """

    seed: int
    loggf_scatter: float
    chunk: int

    def __post_init__(self) -> None:
        SampleSettings.__post_init__(self)
        InstrumentSettings.__post_init__(self)
        if self.seed < 0 or not self.loggf_scatter >= 0:
            raise ConfigError(
                f"seed and loggf_scatter must not be negative, found {self.seed} and {self.loggf_scatter}"
            )
        if self.chunk < 1:
            raise ConfigError(f"chunk must be at least 1, found {self.chunk}")


def make_survey(
    folder: str | os.PathLike[str], settings: SurveySettings, *, lines: LineList | None = None
) -> Table:
    """Writes a mock survey: `spectra/*.fits`, `labels.ecsv` and `truth.ecsv` in `folder`.

    Each star is synthesised with line strengths and abundances that differ from the library's, broadened,
    shifted, seen through an instrument and given noise. The same settings give the same files, byte for byte
    on one machine. Cosmic rays and bright features are left unmarked for the pipeline to find; dead
    pixels have ivar 0.

    Args:
      folder: where to write; made if absent. `folder/spectra` must be absent or empty.
      lines: the library's line list; None takes `default_lines()`.

    Returns:
      The truth table, one row per star: file, star_id, kind (dwarf or giant), labelled, calibration, split
      ("train" if labelled, else "test"), teff [K], logg, feh [dex], vmic, vsini, vmac, rv [km/s], snr,
      lsf_scale, and [X/M] of the metals as mg_m and so on [dex]; its meta has the pixels of the bright features
      and the dead ones.

    Raises:
      ValueError: labels or wavelengths outside the model's range.
      FileExistsError: `folder/spectra` already has files.
    """
    folder = Path(folder)
    spectra = folder / "spectra"
    if spectra.is_dir() and any(spectra.iterdir()):
        raise FileExistsError(f"{spectra} already has files; a survey is written into an empty folder")

    # one stream for the survey and one per star, so that a star does not depend on how many follow it
    survey_seed, *star_seeds = np.random.SeedSequence(settings.seed).spawn(1 + settings.stars)
    rng = np.random.default_rng(survey_seed)
    lines = default_lines() if lines is None else lines
    wrong = settings.loggf_scatter * rng.standard_normal(lines.log_gf.shape)
    lines = lines._replace(log_gf=lines.log_gf + wrong)
    detector = make_detector(settings, rng)
    stars = [np.random.default_rng(s) for s in star_seeds]
    truth = _draw_stars(stars, settings)
    flux, continuum = _model_spectra(truth, lines, detector, settings.chunk)

    spectra.mkdir(parents=True, exist_ok=True)
    for i, (row, star) in enumerate(zip(truth, stars, strict=True)):
        seen = broaden(
            detector.fine, flux[i], vsini=row["vsini"], macroturbulence=row["vmac"], velocity=row["rv"]
        )
        counts, ivar = expose(
            seen * continuum[i], detector, settings, star, snr=row["snr"], lsf_scale=row["lsf_scale"]
        )
        _write_spectrum(spectra / row["file"], detector.wave, counts, ivar, star_id=row["star_id"])

    truth.meta = {"title": "Mock survey: true labels", "seed": settings.seed, "medium": "air"}
    truth.meta["bright_pixels"] = np.sort(detector.bright).tolist()
    truth.meta["dead_pixels"] = np.sort(detector.dead).tolist()
    truth.write(folder / "truth.ecsv", format="ascii.ecsv", overwrite=True)
    observed = _observed_labels(truth, stars, settings)
    observed.write(folder / "labels.ecsv", format="ascii.ecsv", overwrite=True)
    return truth


def _draw_stars(stars: Sequence[np.random.Generator], settings: SurveySettings) -> Table:
    """True labels and nuisances of every star, one generator each."""
    labelled = settings.first(settings.labelled_dwarfs, settings.labelled_giants)
    calibration = settings.first(settings.calibration_dwarfs, settings.calibration_giants)
    rows = []
    for i, rng in enumerate(stars):
        row = {"file": f"star_{i:04d}.fits", "star_id": f"MOCK-{i:04d}"}
        row |= _draw_star(rng, settings, dwarf=i < settings.dwarfs, calibration=bool(calibration[i]))
        row |= {
            "labelled": bool(labelled[i]),
            "calibration": bool(calibration[i]),
            "split": "train" if labelled[i] else "test",
        }
        row |= _draw_abundances(rng, settings.abundance_scatter)
        rows.append(row)
    return Table(rows=rows, units=_UNITS)


def _draw_star(
    rng: np.random.Generator, settings: SurveySettings, *, dwarf: bool, calibration: bool
) -> dict[str, str | float]:
    """Kind, true labels and nuisances of one star; the order of the draws is part of what a seed means."""
    teff_range, track = (
        (settings.dwarf_teff, settings.dwarf_logg) if dwarf else (settings.giant_teff, settings.giant_logg)
    )
    teff = rng.uniform(*teff_range)
    points = np.asarray(track, np.float64)
    logg = np.interp(teff, points[:, 0], points[:, 1]) + settings.logg_scatter * rng.standard_normal()
    mean, spread = settings.feh
    return {
        "kind": "dwarf" if dwarf else "giant",
        "teff": teff,
        "logg": np.clip(logg, *LABEL_RANGES["logg"]),
        "feh": np.clip(mean + spread * rng.standard_normal(), *settings.feh_range),
        "vmic": rng.uniform(*settings.vmic),
        "vsini": rng.uniform(*settings.vsini),
        "vmac": rng.uniform(*settings.macroturbulence),
        "rv": settings.rv_scatter * rng.standard_normal(),
        "snr": rng.uniform(*(settings.calibration_snr if calibration else settings.snr)),
        "lsf_scale": max(1 + settings.lsf_drift * rng.standard_normal(), 0.1),
    }


def _draw_abundances(rng: np.random.Generator, scatter: float) -> dict[str, float]:
    """[X/M] of the metals, dex; 0 for Fe."""
    drawn = np.clip(scatter * rng.standard_normal(len(_METALS)), *OFFSET_RANGE)
    return {f"{e.lower()}_m": 0.0 if e == "Fe" else x for e, x in zip(_METALS, drawn, strict=True)}


def _model_spectra(
    truth: Table, lines: LineList, detector: Detector, chunk: int
) -> tuple[Float[np.ndarray, "stars M"], Float[np.ndarray, "stars M"]]:
    """Normalised flux and continuum [erg/s/cm²/Å] of every star at the detector's fine wavelengths."""
    labels = np.stack([truth[n] for n in ("teff", "logg", "feh", "vmic")], axis=1)
    offsets = np.stack(
        [truth[f"{e.lower()}_m"] if e != "H" else np.zeros(len(truth)) for e in ELEMENTS], axis=1
    )
    # fine points as pixels of their own, so that nothing is averaged before the broadening
    return synthesize_batch(
        labels, offsets=offsets, lines=lines, wave=detector.fine, oversample=1, chunk=chunk
    )


def _observed_labels(truth: Table, stars: Sequence[np.random.Generator], settings: SurveySettings) -> Table:
    """The labelled stars with labels in error, NaN where missing, and the errors' standard deviations."""
    calibration = np.asarray(truth["calibration"])
    errors = np.where(calibration[:, None], settings.calibration_errors, settings.label_errors)  # [stars, 3]
    table = Table({"file": truth["file"], "star_id": truth["star_id"]})
    draws = np.array([rng.standard_normal(3) for rng in stars])
    lacking = np.array([rng.random() < settings.missing_labels for rng in stars]) & ~calibration
    lost = lacking[:, None] & (np.array([rng.integers(3) for rng in stars])[:, None] == np.arange(3))
    names = ("teff", "logg", "feh")
    for j, name in enumerate(names):
        table[name] = np.where(lost[:, j], np.nan, np.asarray(truth[name]) + errors[:, j] * draws[:, j])
        table[name].unit = _UNITS[name]
    for j, name in enumerate(names):
        table[f"{name}_err"] = np.where(lost[:, j], np.nan, errors[:, j])
        table[f"{name}_err"].unit = _UNITS[name]
    table.meta = {"title": "Mock survey: observed labels", "seed": settings.seed}
    return table[np.asarray(truth["labelled"])]


def _write_spectrum(
    path: Path,
    wave: Float[np.ndarray, " N"],
    flux: Float[np.ndarray, " N"],
    ivar: Float[np.ndarray, " N"],
    *,
    star_id: str,
) -> None:
    """One star as a FITS binary table."""
    columns = [
        fits.Column("wavelength", "D", unit="Angstrom", array=wave),
        fits.Column("flux", "E", unit="photon", array=flux.astype(np.float32)),
        fits.Column("ivar", "E", unit="photon-2", array=ivar.astype(np.float32)),
    ]
    table = fits.BinTableHDU.from_columns(columns, name="SPECTRUM")
    table.header["OBJECT"] = star_id
    table.header["WAVEMED"] = ("air", "medium of the wavelengths")
    table.header["SPECSYS"] = ("STELLAR", "rest frame, up to small errors of the velocity")
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(path)
