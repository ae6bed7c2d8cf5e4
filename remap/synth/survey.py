"""A mock survey with known truth and a domain gap: what the library does not know about real stars."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from astropy import units
from astropy.io import fits
from astropy.table import Table
from scipy import optimize

from remap.preprocess.rotation import broaden
from remap.synth.atoms import ELEMENTS, LABEL_RANGES, OFFSET_RANGE
from remap.synth.blanketing import default_lines
from remap.synth.library import pixel_grid
from remap.synth.lines import LineList
from remap.synth.model import synthesize_batch

_SIGMA_PER_FWHM = 1 / np.sqrt(8 * np.log(2))
_METALS = tuple(e for e in ELEMENTS if e != "H")


def make_survey(
    folder: str | os.PathLike,
    *,
    seed: int,
    dwarfs: int,
    giants: int,
    labelled_dwarfs: int,
    labelled_giants: int,
    calibration_dwarfs: int,
    calibration_giants: int,
    dwarf_teff: tuple[float, float],
    dwarf_logg: tuple[tuple[float, float], ...],
    giant_teff: tuple[float, float],
    giant_logg: tuple[tuple[float, float], ...],
    logg_scatter: float,
    feh: tuple[float, float],
    feh_range: tuple[float, float],
    label_errors: tuple[float, float, float],
    calibration_errors: tuple[float, float, float],
    missing_labels: float,
    abundance_scatter: float,
    loggf_scatter: float,
    vmic: tuple[float, float],
    vsini: tuple[float, float],
    macroturbulence: tuple[float, float],
    rv_scatter: float,
    lsf_fwhm: float,
    lsf_tilt: float,
    lsf_drift: float,
    response: float,
    blaze: float,
    snr: tuple[float, float],
    calibration_snr: tuple[float, float],
    bright_features: int,
    bright_height: tuple[float, float],
    bright_fwhm: float,
    bright_jitter: float,
    cosmic_rays: float,
    dead_pixels: int,
    wave_range: tuple[float, float],
    wave_step: float,
    oversample: int,
    chunk: int,
    lines: LineList | None = None,
) -> Table:
    """Writes a mock survey: `spectra/*.fits`, `labels.ecsv` and `truth.ecsv` in `folder`.

    Each star is synthesised with line strengths and abundances that differ from the library's, broadened,
    shifted, seen through an instrument and given noise. The same arguments give the same files, byte for byte
    on one machine. Cosmic rays and bright features are left unmarked for the pipeline to find; dead
    pixels have ivar 0.

    Args:
      folder: where to write; made if absent. `folder/spectra` must be absent or empty.
      seed: of every random draw.
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
      loggf_scatter: standard deviation of the error of each line's log gf, dex; the same for all stars.
      vmic, vsini, macroturbulence: uniform ranges, km/s; macroturbulence is the σ of a Gaussian.
      rv_scatter: standard deviation of what is left of the radial velocity, km/s.
      lsf_fwhm: full width at half maximum of the Gaussian line-spread function at mid-detector, Å.
      lsf_tilt: fraction by which the width grows to the red end and falls to the blue end.
      lsf_drift: standard deviation of a fractional change of the width from star to star.
      response: amplitude (fraction) of a smooth instrument response that varies from star to star.
      blaze: fraction of the light lost at both ends of the detector to a sinc² blaze, the same for all stars.
      snr: uniform range, per pixel at the median flux; the noise is Gaussian with photon scaling.
      calibration_snr: the same for calibration stars.
      bright_features: number of bright features at fixed places of the detector, such as sky residuals.
      bright_height: uniform range of their peaks over the median flux, drawn for each star.
      bright_fwhm: their width, Å.
      bright_jitter: standard deviation of their place from star to star, pixels.
      cosmic_rays: mean number per spectrum (Poisson).
      dead_pixels: number of dead pixels, the same in all spectra.
      wave_range, wave_step: pixel centres of the survey, Å in air.
      oversample: model points per pixel; wave_step / oversample <= 0.03 Å resolves the lines.
      chunk: spectra under way at a time, see `synthesize_batch`.
      lines: the library's line list; None takes `default_lines()`.

    Returns:
      The truth table, one row per star: file, star_id, kind (dwarf or giant), labelled, calibration, split
      ("train" if labelled, else "test"), teff [K], logg, feh [dex], vmic, vsini, vmac, rv [km/s], snr,
      lsf_scale, and [X/M] of the metals as mg_m and so on [dex]; its meta has the pixels of the bright features
      and the dead ones.

    Raises:
      ValueError: counts that are negative, labelled stars that outnumber the stars or calibration stars that
        outnumber the labelled, a fraction outside its range, labels or wavelengths outside the model's range.
      FileExistsError: `folder/spectra` already has files.
    """
    for kind, count, labelled, best in (
        ("dwarfs", dwarfs, labelled_dwarfs, calibration_dwarfs),
        ("giants", giants, labelled_giants, calibration_giants),
    ):
        if not 0 <= labelled <= count:
            raise ValueError(f"cannot label {labelled} of {count} {kind}")
        if not 0 <= best <= labelled:
            raise ValueError(f"cannot take {best} calibration stars from {labelled} labelled {kind}")
    if not 0 <= missing_labels <= 1:
        raise ValueError(f"missing_labels must be in [0, 1], found {missing_labels}")
    if not 0 <= blaze < 1:
        raise ValueError(f"blaze must be in [0, 1), found {blaze}")
    if dwarfs + giants == 0:
        raise ValueError("the survey has no stars")
    folder = Path(folder)
    spectra = folder / "spectra"
    if spectra.is_dir() and any(spectra.iterdir()):
        raise FileExistsError(f"{spectra} already has files; a survey is written into an empty folder")

    wave = pixel_grid(wave_range, wave_step)
    lines = default_lines() if lines is None else lines
    # one stream for the survey and one per star, so that a star does not depend on how many follow it
    survey_seed, *star_seeds = np.random.SeedSequence(seed).spawn(1 + dwarfs + giants)
    rng = np.random.default_rng(survey_seed)
    lines = lines._replace(log_gf=lines.log_gf + loggf_scatter * rng.standard_normal(lines.log_gf.shape))
    dead = rng.choice(wave.size, dead_pixels, replace=False)
    bright = rng.choice(wave.size, bright_features, replace=False)
    stars = [np.random.default_rng(s) for s in star_seeds]

    number = np.arange(dwarfs + giants)
    rank = np.where(number < dwarfs, number, number - dwarfs)
    labelled = rank < np.where(number < dwarfs, labelled_dwarfs, labelled_giants)
    calibration = rank < np.where(number < dwarfs, calibration_dwarfs, calibration_giants)
    truth = _draw_stars(
        stars,
        kinds=[("dwarf", dwarf_teff, dwarf_logg)] * dwarfs + [("giant", giant_teff, giant_logg)] * giants,
        labelled=labelled,
        calibration=calibration,
        logg_scatter=logg_scatter,
        feh=feh,
        feh_range=feh_range,
        vmic=vmic,
        vsini=vsini,
        macroturbulence=macroturbulence,
        rv_scatter=rv_scatter,
        snr=[calibration_snr if best else snr for best in calibration],
        lsf_drift=lsf_drift,
        abundance_scatter=abundance_scatter,
    )

    margin = int(np.ceil((4 * lsf_fwhm * (1 + abs(lsf_tilt)) + 3.0) / wave_step))
    padded = wave[0] + wave_step * np.arange(-margin, wave.size + margin)
    fine = (padded[:, None] + wave_step * ((np.arange(oversample) + 0.5) / oversample - 0.5)).ravel()
    labels = np.stack([truth[n] for n in ("teff", "logg", "feh", "vmic")], axis=1)
    offsets = np.stack(
        [truth[f"{e.lower()}_m"] if e != "H" else np.zeros(len(truth)) for e in ELEMENTS], axis=1
    )
    # fine points as pixels of their own, so that nothing is averaged before the broadening
    flux, continuum = synthesize_batch(
        labels, offsets=offsets, lines=lines, wave=fine, oversample=1, chunk=chunk
    )

    spectra.mkdir(parents=True, exist_ok=True)
    x = np.linspace(-1, 1, wave.size)
    throughput = blaze_function(x, blaze)
    bright_sigma = bright_fwhm * _SIGMA_PER_FWHM / wave_step  # pixels
    for i, star in enumerate(stars):
        row = truth[i]
        seen = broaden(fine, flux[i], vsini=row["vsini"], macroturbulence=row["vmac"], velocity=row["rv"])
        width = lsf_fwhm * row["lsf_scale"] * (1 + lsf_tilt * x)
        clean = line_spread(fine, seen * continuum[i], wave=wave, fwhm=width)
        clean *= throughput
        clean *= 1 + response * np.polynomial.chebyshev.chebval(x, np.r_[0, star.uniform(-0.5, 0.5, 4)])
        counts = clean / np.median(clean) * row["snr"] ** 2  # photons, so that σ = sqrt(counts)
        places = bright + bright_jitter * star.standard_normal(bright.size)
        heights = star.uniform(*bright_height, bright.size) * row["snr"] ** 2
        shapes = np.exp(-0.5 * ((np.arange(wave.size) - places[:, None]) / bright_sigma) ** 2)
        counts = counts + heights @ shapes  # their photons are noisy like any others
        sigma = np.sqrt(np.maximum(counts, 1.0))
        noisy = counts + sigma * star.standard_normal(wave.size)
        hits = star.integers(0, wave.size, star.poisson(cosmic_rays))
        noisy[hits] += star.uniform(0.2, 2.0, hits.size) * np.median(counts)
        ivar = 1 / sigma**2
        noisy[dead] = 0.0
        ivar[dead] = 0.0
        _write_spectrum(spectra / row["file"], wave, noisy, ivar, star_id=row["star_id"])

    truth.meta = {"title": "Mock survey: true labels", "seed": seed, "medium": "air"}
    truth.meta |= {"bright_pixels": np.sort(bright).tolist(), "dead_pixels": np.sort(dead).tolist()}
    truth.write(folder / "truth.ecsv", format="ascii.ecsv", overwrite=True)
    errors = np.where(calibration[:, None], calibration_errors, label_errors)
    _observed_labels(truth, stars, errors, missing_labels, seed).write(
        folder / "labels.ecsv", format="ascii.ecsv", overwrite=True
    )
    return truth


def blaze_function(x: np.ndarray, loss: float) -> np.ndarray:
    """sinc² blaze of a grating (Gray 2008, eq. 3.8), 1 at mid-detector and 1 - loss at its ends.

    Args:
      x: float[N], place on the detector, -1 to 1.
      loss: fraction lost at x = ±1, in [0, 1).

    Returns:
      float64[N].
    """
    edge = optimize.brentq(lambda a: np.sinc(a) ** 2 - (1 - loss), 0.0, 1.0)
    return np.sinc(edge * np.asarray(x, np.float64)) ** 2


def line_spread(fine: np.ndarray, flux: np.ndarray, *, wave: np.ndarray, fwhm: np.ndarray) -> np.ndarray:
    """Spectrum seen through a Gaussian line-spread function of varying width.

    Args:
      fine: float[M], evenly spaced, Å; must reach 4σ beyond `wave` at both ends.
      flux: float[M].
      wave: float[N], pixel centres, Å.
      fwhm: float[N], Å, full width at half maximum at each pixel.

    Returns:
      float64[N].

    Raises:
      ValueError: `fine` does not reach far enough.
    """
    step = (fine[-1] - fine[0]) / (fine.size - 1)
    sigma = fwhm * _SIGMA_PER_FWHM
    half = int(np.ceil(4 * np.max(sigma) / step))
    centre = np.rint((wave - fine[0]) / step).astype(int)
    if centre[0] < half or centre[-1] + half >= fine.size:
        raise ValueError(
            f"the model covers {fine[0]:g}-{fine[-1]:g} Å, too little for pixels at {wave[0]:g}-{wave[-1]:g} "
            f"Å with a line-spread function of {np.max(fwhm):g} Å"
        )
    windows = np.lib.stride_tricks.sliding_window_view(flux, 2 * half + 1)[centre - half]
    distance = (fine[centre] - wave)[:, None] + step * np.arange(-half, half + 1)
    weights = np.exp(-0.5 * (distance / sigma[:, None]) ** 2)
    return np.einsum("pk,pk->p", windows, weights) / weights.sum(axis=1)


def _draw_stars(
    stars,
    *,
    kinds,
    labelled,
    calibration,
    logg_scatter,
    feh,
    feh_range,
    vmic,
    vsini,
    macroturbulence,
    rv_scatter,
    snr,
    lsf_drift,
    abundance_scatter,
):
    """True labels and nuisances of every star, one generator each."""
    rows = []
    for i, (rng, (kind, teff_range, track)) in enumerate(zip(stars, kinds, strict=True)):
        teff = rng.uniform(*teff_range)
        points = np.asarray(track, np.float64)
        logg = np.interp(teff, points[:, 0], points[:, 1]) + logg_scatter * rng.standard_normal()
        row = {
            "file": f"star_{i:04d}.fits",
            "star_id": f"MOCK-{i:04d}",
            "kind": kind,
            "teff": teff,
            "logg": np.clip(logg, *LABEL_RANGES["logg"]),
            "feh": np.clip(feh[0] + feh[1] * rng.standard_normal(), *feh_range),
            "vmic": rng.uniform(*vmic),
            "vsini": rng.uniform(*vsini),
            "vmac": rng.uniform(*macroturbulence),
            "rv": rv_scatter * rng.standard_normal(),
            "snr": rng.uniform(*snr[i]),
            "lsf_scale": max(1 + lsf_drift * rng.standard_normal(), 0.1),
            "labelled": bool(labelled[i]),
            "calibration": bool(calibration[i]),
            "split": "train" if labelled[i] else "test",
        }
        scatter = np.clip(abundance_scatter * rng.standard_normal(len(_METALS)), *OFFSET_RANGE)
        row |= {f"{e.lower()}_m": 0.0 if e == "Fe" else x for e, x in zip(_METALS, scatter, strict=True)}
        rows.append(row)
    velocity = units.km / units.s
    unit = {"teff": units.K, "logg": units.dex, "feh": units.dex}
    unit |= dict.fromkeys(("vmic", "vsini", "vmac", "rv"), velocity)
    unit |= dict.fromkeys((f"{e.lower()}_m" for e in _METALS), units.dex)
    return Table(rows=rows, units=unit)


def _observed_labels(truth, stars, errors, missing, seed):
    """The labelled stars with labels in error, NaN where missing, and the errors' standard deviations [S, 3]."""
    table = Table({"file": truth["file"], "star_id": truth["star_id"]})
    draws = np.array([rng.standard_normal(3) for rng in stars])
    lacking = np.array([rng.random() < missing for rng in stars]) & ~np.asarray(truth["calibration"])
    lost = lacking[:, None] & (np.array([rng.integers(3) for rng in stars])[:, None] == np.arange(3))
    names = (("teff", units.K), ("logg", units.dex), ("feh", units.dex))
    for j, (name, unit) in enumerate(names):
        table[name] = np.where(lost[:, j], np.nan, np.asarray(truth[name]) + errors[:, j] * draws[:, j])
        table[name].unit = unit
    for j, (name, unit) in enumerate(names):
        table[f"{name}_err"] = np.where(lost[:, j], np.nan, errors[:, j])
        table[f"{name}_err"].unit = unit
    table.meta = {"title": "Mock survey: observed labels", "seed": seed}
    return table[np.asarray(truth["labelled"])]


def _write_spectrum(path, wave, flux, ivar, *, star_id):
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
