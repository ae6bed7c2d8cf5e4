"""Networks applied to other surveys' spectra that they were not trained on, degraded to them: bias, scatter, flags.

    python -m benchmarks.bench_surveys --network=fgk_r1800
    python -m benchmarks.bench_surveys --workdir=workdirs/miles

Needs the real files of the data root's folder `surveys` (its README names them) and a network that ships or a working
folder with fine-tuned ones. Every survey is read by its preset (`remap.surveys`), cleaned, brought to the networks'
line spread and to rest, and predicted as `launch.predict --survey=NAME` does it. Prints Markdown.
"""

import dataclasses
import itertools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from astropy.table import Table
from scipy import constants

from launch import cli
from remap import io, surveys
from remap.config import ConfigError
from remap.predict import release
from remap.predict.catalogue import Catalogue, Flag
from remap.predict.loading import load
from remap.predict.predictor import Predictor
from remap.spectra import Spectra
from remap.surveys import Survey

NETWORK = flags.DEFINE_string(
    "network", "", "Name or folder of a released network, in place of a working folder."
)
STAGE = flags.DEFINE_enum("stage", "finetune", ["finetune", "pretrain"], "Which networks.")
LABELS = ("teff", "logg", "feh")
UNITS = {"teff": 0, "logg": 2, "feh": 2}  # decimals


class Star(NamedTuple):
    """A file outside the big surveys, and what is known of its star."""

    folder: str
    file: str
    survey: Survey
    name: str
    truth: tuple[float, float, float] | None  # None: what it is, not its labels, is known
    velocity: float | None = None  # km/s, measured by others


def _image(name: str, resolution: float, frame: str, **source: Any) -> Survey:
    """An echelle spectrum on a linear axis in air, which no preset is about."""
    declared = {"format": "image", "medium": "air", "axis": "linear", "wave_unit": "Angstrom"}
    return Survey(
        name=name,
        about="",
        source=declared | {"line_spread": {"resolution": resolution}} | source,
        patterns=("*.fits",),
        frame=frame,
        reference="",
    )


def stars() -> tuple[Star, ...]:
    """The single stars, with labels from the literature."""
    mike = surveys.get("mike")
    text = surveys.get("text").with_source({"medium": "air", "line_spread": {"resolution": 80000.0}})
    text = dataclasses.replace(text, frame="rest")
    sun = _image("sun", 100000.0, "rest")
    stis = surveys.get("calspec")
    return (
        Star("sun_image", "sun-450-530.fits", sun, "Sun", (5772.0, 4.44, 0.0), 0.0),
        Star("sun_text", "UVES_Sun-1_cleaned_norm.txt", text, "Sun", (5772.0, 4.44, 0.0), 0.0),
        Star(
            "harps",
            "HARPS.2006-09-08T02-12-38.604_s1d_A.fits",
            surveys.get("harps"),
            "HD 189733",
            (5050.0, 4.5, -0.03),
            -2.0,
        ),
        Star("mike", "hd122563.fits", mike, "HD 122563", (4587.0, 1.61, -2.64), 0.0),
        Star("mike", "g64-12.fits", mike, "G64-12", (6435.0, 4.26, -3.3), 0.0),
        Star("calspec", "p330e_001.fits", stis, "P330E", (5800.0, 4.4, 0.0)),
        Star("calspec", "alpha_lyr_stis_005.fits", stis, "Vega (A0 V)", None),
        Star("elodie", "exStar.fits", surveys.get("elodie"), "γ Peg (B2 IV)", None, -18.0),
        Star("hires", "rj59.1926_adj.fits", surveys.get("hires"), "GJ 880 (M1.5 V)", None),
        Star("uves", "", surveys.get("uves"), "MN Lup (T Tauri)", None),
        Star("sdss_spec", "", surveys.get("sdss"), "hot star", None),
        Star("boss_spec", "", surveys.get("sdss"), "G star", None),
        Star("sdss_spSpec", "", surveys.get("sdss_spspec"), "galaxy", None),
    )


HBETA = 4861.3  # Å, air


def main() -> None:
    root = io.find_data("surveys")
    if bool(NETWORK.value) == bool(cli.WORKDIR.value):
        raise ConfigError("expected either --network or --workdir")
    predictor = release.load(NETWORK.value) if NETWORK.value else load(cli.WORKDIR.value, stage=STAGE.value)
    logging.getLogger("remap").setLevel(logging.ERROR)
    print("**LAMOST low resolution** against LASP\n")
    for line in lamost(predictor, root):
        print(line)
    print("\n**LAMOST, the same stars again**: scatter between visits over the predicted errors\n")
    for line in repeats(predictor, root):
        print(line)
    print("\n**Single stars**\n")
    for line in singles(predictor, root):
        print(line)
    print("\n**MILES, spoiled**: change of the labels\n")
    for line in spoiled(predictor, root):
        print(line)
    print("\n**MILES, normalised, and the same times a black body of 4,500 K**\n")
    for line in slopes(predictor, root):
        print(line)


def lamost(predictor: Predictor, root: Path) -> Iterator[str]:
    """Bias, robust scatter and coverage against the survey's own labels, and velocities against its own."""
    survey, folder = surveys.get("lamost_lrs"), root / "lamost_lrs"
    files = io.list_files(folder / "spectra", survey.patterns)
    table = Table.read(folder / "labels.ecsv")
    row = {str(name): i for i, name in enumerate(table["file"])}
    table = table[[row[f.name] for f in files]]
    found = predictor.predict_files(files, survey=survey, velocities="measure")
    known = np.all([np.asarray(table[x], float) > -9000 for x in LABELS], axis=0)
    velocity = np.asarray(table["rv"], float)
    yield (
        "| S/N (g) | n | "
        + " | ".join(f"{x}: bias, robust, in 68 %" for x in LABELS)
        + " | rv: median, robust |"
    )
    yield "|---|---|" + "---|" * (len(LABELS) + 1)
    snr = np.asarray(table["snr_g"], float)
    for low, high in ((0, 10), (10, 20), (20, 30), (30, np.inf)):
        some = (snr > low) & (snr <= high) & known & _clean(found, ~(Flag.LOW_SNR | Flag.BAD_PIXELS))
        cells = []
        for label in LABELS:
            difference = np.asarray(found.table[label])[some] - np.asarray(table[label], float)[some]
            width = (found.table[f"{label}_p84"] - found.table[f"{label}_p16"])[some] / 2
            joint = np.hypot(width, np.asarray(table[f"{label}_err"], float)[some])
            inside = np.mean(np.abs(difference) < joint) if some.any() else np.nan
            cells.append(
                f"{np.median(difference):.{UNITS[label]}f}, {_robust(difference):.{UNITS[label]}f}, {inside:.2f}"
            )
        away = (np.asarray(found.table["rv"]) - velocity)[some & (velocity > -9000)]
        cells.append(f"{np.median(away):.1f}, {_robust(away):.1f}")
        yield f"| {low}-{high} | {np.count_nonzero(some)} | " + " | ".join(cells) + " |"
    yield ""
    flagged = {flag.name: int(np.count_nonzero(np.asarray(found.table["flags"]) & flag)) for flag in Flag}
    yield f"Flags of all {len(files)}: " + ", ".join(f"{k} {v}" for k, v in flagged.items() if v)


def repeats(predictor: Predictor, root: Path) -> Iterator[str]:
    """Differences between visits of a star, in units of their joint predicted error."""
    survey, folder = surveys.get("lamost_lrs"), root / "lamost_repeats"
    table = Table.read(folder / "repeats.csv", format="ascii.csv")
    files = [folder / "spectra" / str(name) for name in table["file"]]
    settings = dataclasses.replace(predictor.observe_settings, velocity="measure", join=False)
    # Not by the survey's preset as it is, which would make one row of a star's visits.
    found = predictor.predict_files(files, source=survey.source, settings=settings)
    first, second = visit_pairs(found.table, np.asarray(table["group"])).T
    yield "| label | pairs | robust scatter of a difference / √2 | the same in predicted errors |"
    yield "|---|---|---|---|"
    for label in LABELS:
        value, width = found.table[label], (found.table[f"{label}_p84"] - found.table[f"{label}_p16"]) / 2
        difference = np.asarray(value[first] - value[second])
        pull = difference / np.hypot(width[first], width[second])
        scatter = 1.4826 * np.median(np.abs(difference)) / np.sqrt(2)
        yield (
            f"| {label} | {len(first)} | {scatter:.{UNITS[label]}f} | {1.4826 * np.median(np.abs(pull)):.2f} |"
        )


def visit_pairs(table: Table, group: np.ndarray) -> np.ndarray:
    """int[P, 2]: rows of a catalogue that are two visits of one star, without flags that speak against either."""
    bad = Flag.UNREADABLE | Flag.EDGE | Flag.RESOLUTION | Flag.VELOCITY
    good = (np.asarray(table["flags"]) & int(bad)) == 0
    pairs = [
        pair
        for g in np.unique(group)
        for pair in itertools.combinations(np.flatnonzero((group == g) & good), 2)
    ]
    return np.array(pairs, int).reshape(-1, 2)


def singles(predictor: Predictor, root: Path) -> Iterator[str]:
    """One row per star: what is known, what is predicted, velocity and flags."""
    yield "| star | file of | known | predicted | rv: known, measured | flags |"
    yield "|---|---|---|---|---|---|"
    for star in stars():
        folder = root / star.folder
        file = folder / star.file if star.file else io.list_files(folder, star.survey.patterns)[0]
        for velocities in ("rest", "measure") if star.survey.frame == "rest" else ("measure",):
            found = predictor.predict_files([file], survey=star.survey, velocities=velocities)
            table = found.table
            known = "" if star.truth is None else _values(star.truth)
            said = ", ".join(
                f"{table[x][0]:.{UNITS[x]}f} ± {(table[f'{x}_p84'][0] - table[f'{x}_p16'][0]) / 2:.{UNITS[x]}f}"
                for x in LABELS
            )
            speed = f"{'' if star.velocity is None else f'{star.velocity:.0f}'}, {table['rv'][0]:.1f}"
            raised = ", ".join(f.name for f in Flag if table["flags"][0] & f) or "none"
            message = f" ({table['message'][0]})" if table["message"][0] else ""
            yield f"| {star.name} | {star.folder} | {known} | {said} | {speed} | {raised}{message} |"


def miles(root: Path) -> list[Spectra]:
    """Every eighth MILES star."""
    survey = surveys.get("miles")
    files = io.list_files(root.parent / "miles" / "spectra", survey.patterns)[::8]
    return [io.read(file, source=survey.source, within=(4800.0, 5800.0)) for file in files]


def spoiled(predictor: Predictor, root: Path) -> Iterator[str]:
    """What bad pixels do to the labels of MILES stars, as they are and cleaned."""
    stars, rng = miles(root), np.random.default_rng(0)
    kinds = {
        "nothing": lambda flux, level, wave: flux,
        "one pixel per arm ten times as bright": lambda flux, level, wave: _hit(flux, rng, 2, 9 * level),
        "ten pixels 1.1 to 2 times as bright": lambda flux, level, wave: _hit(
            flux, rng, 10, level * rng.uniform(0.1, 1, 10)
        ),
        "three stretches of ten zeros": lambda flux, level, wave: _blank(flux, rng),
        "one pixel of 1.5e21": lambda flux, level, wave: _hit(flux, rng, 1, 1.5e21),
        "one pixel per arm ten times as far below zero": lambda flux, level, wave: _hit(
            flux, rng, 2, -11 * level
        ),
        "4 Å masked in the core of Hβ": lambda flux, level, wave: _masked(flux, wave, HBETA, 2.0),
        "8 Å masked in the core of Hβ": lambda flux, level, wave: _masked(flux, wave, HBETA, 4.0),
        "8 Å masked elsewhere": lambda flux, level, wave: _masked(flux, wave, 4904.0, 4.0),
        "one pixel per arm half as far below zero": lambda flux, level, wave: _hit(
            flux, rng, 2, -1.5 * level
        ),
    }
    plain = dataclasses.replace(predictor.observe_settings, bad_pixels=False, cosmic_rays=False)
    ways = {
        "as they are": plain,
        "bad pixels masked": dataclasses.replace(plain, bad_pixels=True),
        "and cosmic rays": dataclasses.replace(plain, bad_pixels=True, cosmic_rays=True),
    }
    truth = predictor.predict(stars, settings=plain).table
    yield (
        "| spoiled by | treated | "
        + " | ".join(f"{x}: median change, 95 %" for x in LABELS)
        + " | unusable | BAD_PIXELS |"
    )
    yield "|---|---|" + "---|" * (len(LABELS) + 2)
    for kind, change in kinds.items():
        bad = [_changed(s, change(s.flux.copy(), float(np.median(s.flux)), s.wave)) for s in stars]
        for way, settings in ways.items():
            table = predictor.predict(bad, settings=settings).table
            cells = []
            for label in LABELS:
                difference = np.abs(np.asarray(table[label] - truth[label]))
                known = difference[np.isfinite(difference)]
                high = np.percentile(known, 95) if known.size else np.nan
                cells.append(f"{np.median(known):.{UNITS[label] + 1}f}, {high:.{UNITS[label]}f}")
            lost, told = (
                np.count_nonzero(np.asarray(table["flags"]) & flag)
                for flag in (Flag.UNREADABLE, Flag.BAD_PIXELS)
            )
            yield f"| {kind} | {way} | {' | '.join(cells)} | {lost} of {len(stars)} | {told} |"


def _changed(spectra: Spectra, flux: np.ndarray) -> Spectra:
    """Spectra of another flux, in which NaN is a bad pixel."""
    good = np.isfinite(flux)
    return dataclasses.replace(spectra, flux=np.where(good, flux, 0.0), valid=spectra.valid & good)


def _masked(flux: np.ndarray, wave: np.ndarray, middle: float, half: float) -> np.ndarray:
    """Flux without the pixels within `half` Å of a wavelength."""
    flux[0, np.abs(wave - middle) < half] = np.nan
    return flux


def _hit(flux: np.ndarray, rng: np.random.Generator, count: int, height: np.ndarray | float) -> np.ndarray:
    """Flux with so many pixels raised, evenly over both arms."""
    edges = np.linspace(80, flux.shape[1] - 80, count + 1).astype(int)
    at = [rng.integers(a, b) for a, b in itertools.pairwise(edges)]
    flux[0, at] += height
    return flux


def _blank(flux: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Flux with three stretches of zeros."""
    for start in rng.integers(80, flux.shape[1] - 90, 3):
        flux[0, start : start + 10] = 0.0
    return flux


def slopes(predictor: Predictor, root: Path) -> Iterator[str]:
    """Spectra that are normalised already, and the same under the slope of a black body of 4,500 K."""
    flat, tilted = [], []
    for spectra in miles(root):
        level = np.percentile(
            spectra.flux.reshape(-1)[: 9 * (spectra.flux.size // 9)].reshape(9, -1), 97, axis=1
        )
        middle = np.linspace(spectra.wave[0], spectra.wave[-1], 19)[1::2]
        smooth = np.polyval(np.polyfit(middle - 5300, level, 2), spectra.wave - 5300)
        wave = spectra.wave * 1e-10
        planck = wave**-5.0 / np.expm1(constants.h * constants.c / (wave * constants.k * 4500.0))
        flat.append(dataclasses.replace(spectra, flux=spectra.flux / smooth))
        tilted.append(dataclasses.replace(spectra, flux=spectra.flux / smooth * planck / planck.mean()))
    first, second = (predictor.predict(x).table for x in (flat, tilted))
    yield "| label | stars | median of the difference over the width | 95th percentile | largest |"
    yield "|---|---|---|---|---|"
    for label in LABELS:
        width = (first[f"{label}_p84"] - first[f"{label}_p16"]) / 2
        share = np.abs(np.asarray((first[label] - second[label]) / width))
        high = f"{np.percentile(share, 95):.3f} | {share.max():.3f}"
        yield f"| {label} | {len(flat)} | {np.median(share):.3f} | {high} |"


def _values(values: Sequence[float]) -> str:
    return ", ".join(f"{v:.{UNITS[x]}f}" for x, v in zip(LABELS, values, strict=True))


def _clean(found: Catalogue, flags: int) -> np.ndarray:
    """bool[S]: rows with none of these flags."""
    return (np.asarray(found.table["flags"]) & int(flags)) == 0


def _robust(values: np.ndarray) -> float:
    return float(1.4826 * np.median(np.abs(values - np.median(values)))) if values.size else float("nan")


if __name__ == "__main__":
    cli.run(main, required=())
