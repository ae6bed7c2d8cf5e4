"""Cleaning: how many cosmic rays and stationary features of a spoiled mock survey are found, and what it costs?

    python -m benchmarks.bench_cleaning --output=workdirs/bench_cleaning            about 3 minutes
    python -m benchmarks.bench_cleaning --output=workdirs/bench_cleaning --short    under a minute

Stars of `lte_grid.npz` at R = 11,000 in 0.1 Å pixels and at R = 2,100 in 0.9 Å, velocities within ±100 km/s (for
stationary features at R = 2,100 within ±300: less is refused), S/N 20 to 200, a smooth continuum. Cosmic rays are 1
to 3 pixels wide, 5 to 1,000σ, log-uniform; stationary features 1 to 6 pixels, 3 to 8σ, of either sign. Writes
cleaning.md.
"""

import argparse
import logging
import time
from pathlib import Path

import numpy as np
from scipy.interpolate import CubicSpline

from remap import io
from remap.io import find_data
from remap.preprocess import (
    CleaningSettings,
    LineSpread,
    degrade,
    find_stationary,
    mask_bad,
    mask_cosmic_rays,
    mask_cosmic_rays_in_stack,
)
from remap.spectra import Spectra, doppler_shift, make_spectra

SURVEYS = {11_000: np.arange(4860, 5740, 0.1), 2_100: np.arange(4862, 5738, 0.9)}
HEIGHTS = ((5, 10), (10, 30), (30, 1000))  # σ
SETTINGS = CleaningSettings()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for the table")
    parser.add_argument("--short", action="store_true", help="fewer stars")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    logging.disable(logging.WARNING)
    count = 60 if arguments.short else 200
    heads = [f"{a}-{b}σ" for a, b in HEIGHTS]
    text = f"| R | noise | width | {' | '.join(heads)} | pixels over 5σ | clean pixels lost | good pixels lost |\n"
    text += "|" + "---|" * 9 + "\n"
    for resolution in SURVEYS:
        for known in (True, False):
            text += along_wavelength(resolution, count, known=known)
    text += "\n| R | exposures | cosmic-ray pixels over 5σ | good pixels lost |\n|---|---|---|---|\n"
    for resolution in SURVEYS:
        for exposures in (2, 3, 5):
            text += in_stack(resolution, count // 5, exposures)
    text += (
        "\n| R | stars | share | features | their pixels | good pixels lost |\n|---|---|---|---|---|---|\n"
    )
    for resolution, speed in ((11_000, 100.0), (2_100, 300.0)):
        for share in (1.0, 0.2):
            text += standing(resolution, count, share, speed)
    text += "\n| real stars | spectra | masked by `mask_cosmic_rays` |\n|---|---|---|\n" + real(count)
    text += "\n| function | spectra of 4,000 pixels per second, one core |\n|---|---|\n" + speeds(count)
    (arguments.output / "cleaning.md").write_text(text)
    print(text)


def mock(resolution: int, count: int, seed: int, speed: float = 100.0) -> tuple[np.ndarray, ...]:
    """Flux without noise [S, N], σ [S, N], velocities [S], and the generator."""
    rng, wave = np.random.default_rng(seed), SURVEYS[resolution]
    with np.load(find_data("lte_grid.npz")) as file:
        rows = rng.integers(0, len(file["flux"]), count)
        fine, flux = file["wave_air"], file["flux"][rows].astype(np.float64)
    flux, _ = degrade(fine, flux, lsf=LineSpread(resolution=float(resolution)))
    velocities, place = rng.uniform(-speed, speed, count), np.linspace(-1, 1, wave.size)
    out = np.array(
        [
            CubicSpline(fine, f)(np.clip(doppler_shift(wave, -v), fine[0], fine[-1]))
            * (1 + rng.uniform(-0.3, 0.3) * place + rng.uniform(-0.2, 0.2) * place**2)
            for f, v in zip(flux, velocities, strict=True)
        ]
    )
    level = np.median(out, axis=1, keepdims=True)
    sigma = np.sqrt(np.maximum(out / level, 0.05)) * level / rng.uniform(20, 200, (count, 1))
    return out, sigma, velocities, rng


def observed(resolution: int, flux: np.ndarray, sigma: np.ndarray | None) -> Spectra:
    wave = SURVEYS[resolution][: flux.shape[1]]
    ivar = None if sigma is None else sigma**-2
    return make_spectra(wave, flux, medium="air", ivar=ivar, fwhm=wave / resolution)


def rays(
    shape: tuple[int, int], rng: np.random.Generator
) -> tuple[np.ndarray, list[tuple[int, slice, float]]]:
    """Heights [S, N] in σ of two rays per thousand pixels, and (row, pixels, height) of each."""
    heights, places = np.zeros(shape), []
    for row in range(shape[0]):
        for _ in range(max(2, round(shape[1] / 500))):
            width, height = int(rng.integers(1, 4)), float(np.exp(rng.uniform(np.log(5), np.log(1000))))
            start = int(rng.integers(5, shape[1] - 8))
            if heights[row, start - 5 : start + 8].any():
                continue
            profile = np.ones(width) if width < 3 else np.array([rng.uniform(0.5, 1), 1, rng.uniform(0.5, 1)])
            heights[row, start : start + width] = height * profile
            places.append((row, slice(start, start + width), height))
    return heights, places


def along_wavelength(resolution: int, count: int, *, known: bool) -> str:
    flux, sigma, _, rng = mock(resolution, count, 0)
    flux += sigma * rng.standard_normal(flux.shape)
    errors = sigma if known else None
    lost = ~mask_cosmic_rays(observed(resolution, flux, errors), SETTINGS).valid
    heights, places = rays(flux.shape, rng)
    found = ~mask_cosmic_rays(observed(resolution, flux + heights * sigma, errors), SETTINGS).valid
    text = ""
    for width in (1, 2, 3):
        some = [(found[r, p].all(), h) for r, p, h in places if p.stop - p.start == width]
        cells = [f"{np.mean([f for f, h in some if a <= h < b]):.2f}" for a, b in HEIGHTS]
        totals = ["", "", ""]
        if width == 1:
            totals = [
                f"{found[heights > 5].mean():.3f}",
                f"{lost.mean():.3%}",
                f"{found[heights == 0].mean():.3%}",
            ]
        noise = "known" if known else "measured"
        text += f"| {resolution} | {noise} | {width} | {' | '.join(cells)} | {' | '.join(totals)} |\n"
    return text


def in_stack(resolution: int, count: int, exposures: int) -> str:
    flux, sigma, _, rng = mock(resolution, count, 1)
    hits = good = struck = lost = 0
    for f, s in zip(flux, sigma, strict=True):
        heights = [rays((1, f.size), rng)[0] for _ in range(exposures)]
        stack = [observed(resolution, f + s * (rng.standard_normal(f.size) + h), s[None]) for h in heights]
        for cleaned, h in zip(mask_cosmic_rays_in_stack(stack, SETTINGS), heights, strict=True):
            hits, struck = hits + np.sum(~cleaned.valid[h > 5]), struck + np.sum(h > 5)
            lost, good = lost + np.sum(~cleaned.valid[h == 0]), good + np.sum(h == 0)
    return f"| {resolution} | {exposures} | {hits / struck:.3f} | {lost / good:.3%} |\n"


def standing(resolution: int, count: int, share: float, speed: float) -> str:
    flux, sigma, velocities, rng = mock(resolution, count, 3, speed)
    flux += sigma * rng.standard_normal(flux.shape)
    truth, features = np.zeros(flux.shape[1], bool), []
    while len(features) < (30 if resolution > 5000 else 8):
        start, width = int(rng.integers(8, truth.size - 14)), int(rng.integers(1, 7))
        if truth[start - 8 : start + width + 8].any():
            continue
        pixels, shown = slice(start, start + width), rng.random(count) < share
        height = rng.uniform(3, 8) * rng.choice([-1, 1])
        flux[shown, pixels] += height * sigma[shown, pixels] * rng.uniform(0.7, 1.3, (shown.sum(), 1))
        truth[pixels] = True
        features.append(pixels)
    mask = find_stationary(observed(resolution, flux, sigma), velocities=velocities, settings=SETTINGS)
    found = mask.pixels(SURVEYS[resolution], "air")
    seen = np.mean([found[p].any() for p in features])
    where = f"| {resolution} | {count} | {share:g} | {seen:.2f} "
    return f"{where}| {found[truth].mean():.3f} | {found[~truth].mean():.3%} |\n"


def real(count: int) -> str:
    """MILES: stars whose spectra were combined and looked at, so that hardly a cosmic ray is left."""
    source = {"format": "image", "medium": "air", "axis": "linear", "wave_unit": "Angstrom"}
    files = io.list_files(find_data("miles/spectra"), "*.fits")[:count]
    lost = total = 0
    for file in files:
        read = io.read(file, source=source)
        spectrum = make_spectra(read.wave, read.flux, medium="air", valid=read.valid, fwhm=2.5)
        cleaned = mask_cosmic_rays(mask_bad(spectrum, SETTINGS), SETTINGS)
        lost, total = lost + np.sum(~cleaned.valid), total + cleaned.valid.size
    return f"| MILES | {len(files)} | {lost / total:.4%} |\n"


def speeds(count: int) -> str:
    flux, sigma, velocities, rng = mock(11_000, count, 4)
    flux, sigma = flux[:, :4000] + sigma[:, :4000] * rng.standard_normal((count, 4000)), sigma[:, :4000]
    flux += rays(flux.shape, rng)[0] * sigma
    spectra = observed(11_000, flux, sigma)
    triples = [[spectra.rows(slice(i + k, i + k + 1)) for k in range(3)] for i in range(0, count - 2, 3)]
    jobs = {
        "mask_bad": lambda: mask_bad(spectra, SETTINGS),
        "mask_cosmic_rays": lambda: mask_cosmic_rays(spectra, SETTINGS),
        "mask_cosmic_rays_in_stack": lambda: [mask_cosmic_rays_in_stack(t, SETTINGS) for t in triples],
        "find_stationary": lambda: find_stationary(spectra, velocities=velocities, settings=SETTINGS),
    }
    text = ""
    for name, job in jobs.items():
        start = time.process_time()
        job()
        text += f"| `{name}` | {count / (time.process_time() - start):.0f} |\n"
    return text


if __name__ == "__main__":
    main()
