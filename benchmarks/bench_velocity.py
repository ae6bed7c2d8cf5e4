"""Velocities: how exact, how honest their errors, what is called poor, and how fast?

    python -m benchmarks.bench_velocity --output=workdirs/bench_velocity            about 3 minutes
    python -m benchmarks.bench_velocity --output=workdirs/bench_velocity --short    about a minute, for CI

Templates are nodes of `lte_grid.npz`. Mock stars have known velocities from -500 to 500 km/s and Gaussian noise:
labels between the nodes (the mean of two neighbours' logarithms), and `coolstars_grid.npz`, which another code
computed with another line list; all of 4000-7000 K and [M/H] from -2 up. Observed stars are read as their surveys
wrote them. Rates are per second of CPU time on one core.
Writes velocity.md and the numbers as JSON.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.table import Table

from remap.io import find_data
from remap.preprocess import LineSpread, Templates, Velocities, degrade_and_resample, make_templates
from remap.preprocess import measure_velocities as measure
from remap.spectra import Spectra, doppler_shift, make_spectra, to_medium

INSTRUMENTS = {
    "R = 11,000, 0.1 Å": (
        LineSpread(resolution=11_000.0),
        {"A": 4860.0 + 0.1 * np.arange(2000), "B": 5280.0 + 0.1 * np.arange(2000)},
    ),
    "FWHM 2.5 Å, 0.9 Å": (
        LineSpread(fwhm=2.5),
        {"A": 4855.4 + 0.9 * np.arange(472), "B": 5280.2 + 0.9 * np.arange(517)},  # of configs/miles.py
    ),
}
SNR = (200, 50, 10)
VELOCITIES = np.linspace(-500, 500, 11)
Arms = dict[str, tuple[np.ndarray, np.ndarray, np.ndarray | None]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for the tables and the numbers")
    parser.add_argument("--short", action="store_true", help="fewer mock stars, no sharp instrument")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    numbers, lines = {}, []
    for name, (spread, grids) in INSTRUMENTS.items():
        if arguments.short and len(numbers) == 0 and name != list(INSTRUMENTS)[-1]:
            continue
        templates = templates_of(grids, spread)
        numbers[name] = mocks(templates, spread, 44 if arguments.short else 220)
    lines += mock_table(numbers)
    numbers["observed"] = observed(templates, spread)  # of the last instrument
    lines += observed_table(numbers["observed"])
    numbers["nothing"] = {kind: nothing(kind, templates) for kind in KINDS}
    lines += ["", "| what has no velocity | called poor | 99th percentile of the quality |", "|---|---|---|"]
    lines += [f"| {k} | {v['poor']:.1%} | {v['quality']:.1f} |" for k, v in numbers["nothing"].items()]
    (arguments.output / "velocity.md").write_text("\n".join(lines) + "\n")
    (arguments.output / "velocity.json").write_text(json.dumps(numbers, indent=1))
    print("\n".join(lines))


# Spectra


def library(name: str) -> tuple[Spectra, np.ndarray]:
    with np.load(find_data(f"{name}.npz")) as file:
        flux = file["flux"].astype(np.float64)
        if "continuum" in file:
            lines = zip(flux, file["continuum"], strict=True)
            grid, coarse = file["wave_air"], file["cont_wave_air"]
            flux = np.stack([f * np.interp(grid, coarse, c / c.max()) for f, c in lines])
        return make_spectra(file["wave_vac"], flux, medium="vacuum"), file["labels"][:, :3]


def on_grids(
    spectra: Spectra, grids: Mapping[str, np.ndarray], spread: LineSpread | None, velocity: float = 0
) -> Arms:
    vacuum = to_medium(spectra.wave, source=spectra.medium, target="vacuum")
    moved = dataclasses.replace(spectra, wave=doppler_shift(vacuum, velocity), medium="vacuum")
    out = {a: degrade_and_resample(moved, w, medium="air", lsf=spread) for a, w in grids.items()}
    return {arm: (s.flux, s.valid, s.ivar) for arm, s in out.items()}


def joined(parts: list[Arms]) -> Arms:
    pick = {arm: [p[arm] for p in parts] for arm in parts[0]}
    return {
        arm: tuple(None if x[0] is None else np.concatenate(x) for x in zip(*stars, strict=True))
        for arm, stars in pick.items()
    }


def templates_of(grids: Mapping[str, np.ndarray], spread: LineSpread) -> Templates:
    spectra, labels = library("lte_grid")
    arms = on_grids(spectra, grids, spread)
    flux, valid = {a: x[0] for a, x in arms.items()}, {a: x[1].all(axis=0) for a, x in arms.items()}
    return make_templates(flux, valid, grids, labels, "air")


def between_nodes(rng: np.random.Generator, count: int) -> Spectra:
    spectra, labels = library("lte_grid")
    scaled = labels / [250, 0.5, 0.5]
    flux = []
    while len(flux) < count:
        i = rng.integers(len(labels))
        far = np.abs(scaled - scaled[i])
        others = np.flatnonzero((far.max(axis=1) < 1.01) & (far.sum(axis=1) > 1.5))
        if others.size:
            flux.append(np.sqrt(spectra.flux[i] * spectra.flux[rng.choice(others)]))
    return make_spectra(spectra.wave, np.stack(flux), medium="vacuum")


def another_code(rng: np.random.Generator, count: int) -> Spectra:
    spectra, labels = library("coolstars_grid")
    inside = (labels[:, 0] >= 4000) & (labels[:, 0] <= 7000) & (labels[:, 2] >= -2)
    return spectra.rows(rng.permutation(np.flatnonzero(inside))[:count])


# Mock stars


def mocks(templates: Templates, spread: LineSpread, count: int) -> dict:
    rng = np.random.default_rng(0)
    out = {}
    for source, make in (("between nodes", between_nodes), ("another code", another_code)):
        stars = make(rng, count)
        groups = np.array_split(np.arange(len(stars)), len(VELOCITIES))
        arms = joined(
            [
                on_grids(stars.rows(g), templates.wave, spread, v)
                for g, v in zip(groups, VELOCITIES, strict=True)
            ]
        )
        truth = np.repeat(VELOCITIES, [g.size for g in groups])
        for snr in SNR:
            noisy = {}
            for arm, (flux, valid, _) in arms.items():
                noise = np.abs(flux) / snr + 1e-30
                noisy[arm] = (flux + noise * rng.standard_normal(flux.shape), valid, 1 / noise**2)
            start = time.process_time()
            found = measure(noisy, templates)
            rate = len(found) / (time.process_time() - start)
            off = found.velocity - truth
            out[f"{source}, S/N {snr}"] = scores(off, found) | {
                "slope": float(np.nanmedian(off[truth >= 300]) - np.nanmedian(off[truth <= -300])) / 2,
                "wrong": float(np.mean(np.abs(off[~found.poor]) > 100)),
                "rate": rate,
            }
    return out


def scores(off: np.ndarray, found: Velocities) -> dict:
    known = ~found.poor & np.isfinite(off)
    return {
        "stars": int(off.size),
        "median": float(np.median(off[known])),
        "scatter": robust(off[known]),
        "error": float(np.median(found.error[known])),
        "inside": float(np.mean(np.abs(off[known]) < found.error[known])),
        "poor": float(found.poor.mean()),
    }


def robust(x: np.ndarray) -> float:
    return float(1.4826 * np.median(np.abs(x - np.median(x))))


def mock_table(numbers: Mapping[str, dict]) -> list[str]:
    lines = [
        "| instrument | mock stars | median [km/s] | robust scatter | predicted error | within it "
        "| half the change from -400 to 400 km/s | poor | not poor, and wrong by 100 km/s | spectra per second |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for instrument, rows in numbers.items():
        for name, r in rows.items():
            lines.append(
                f"| {instrument} | {name} | {r['median']:+.2f} | {r['scatter']:.2f} | {r['error']:.2f} | "
                f"{r['inside']:.0%} | {r['slope']:+.2f} | {r['poor']:.1%} | {r['wrong']:.1%} | {r['rate']:.0f} |"
            )
    return lines


# Observed stars


def observed(templates: Templates, spread: LineSpread) -> dict:
    grids = templates.wave

    def read(wave, flux, medium: str, *, ivar=None, valid=None, lsf=None) -> Arms:
        near = (wave > 4700) & (wave < 5900) & (np.diff(wave, prepend=0) > 0)
        cut = [None if x is None else np.asarray(x, np.float64)[near] for x in (wave, flux, ivar, valid)]
        spectra = make_spectra(
            cut[0], cut[1], medium=medium, ivar=cut[2], valid=None if valid is None else cut[3] > 0
        )
        return on_grids(spectra, grids, lsf)

    def linear(path: Path) -> tuple[np.ndarray, np.ndarray]:
        header, flux = fits.getheader(path), np.squeeze(fits.getdata(path))
        return header["CRVAL1"] + header["CDELT1"] * np.arange(flux.size), flux

    out = {}
    labels = Table.read(find_data("miles/labels.ecsv"))
    found = measure(
        joined([read(*linear(find_data(f"miles/spectra/{f}")), "air") for f in labels["file"]]), templates
    )
    for name, part in (("dwarfs", labels["logg"] >= 3.5), ("giants", labels["logg"] < 3.5)):
        out[f"MILES {name}, at rest"] = scores(found.velocity[part], rows(found, np.asarray(part)))
    labels = Table.read(find_data("surveys/lamost_lrs/labels.ecsv"))
    stars = []
    for file in labels["file"]:
        path = find_data(f"surveys/lamost_lrs/spectra/{file}")
        header, data = fits.getheader(path), fits.getdata(path)
        wave = 10 ** (header["CRVAL1"] + header["CD1_1"] * np.arange(data.shape[1]))
        stars.append(read(wave, data[0], "vacuum", ivar=data[1], valid=data[3] == 0))
    found, rv = measure(joined(stars), templates), np.asarray(labels["rv"], float)
    for name, part in (("> 20", labels["snr_g"] > 20), ("up to 20", labels["snr_g"] <= 20)):
        part = np.asarray(part) & (rv > -9000)
        out[f"LAMOST, S/N {name}, less its pipeline's"] = scores(
            (found.velocity - rv)[part], rows(found, part)
        )
    out["LAMOST, pairs of one star"] = pairs(templates, read)
    singles = {
        "HARPS HD 189733 (-2)": ("harps/HARPS.2006-09-08T02-12-38.604_s1d_A.fits", "air"),
        "MIKE HD 122563 (0)": ("mike/hd122563.fits", "air"),
        "MIKE G64-12, [Fe/H] -3.3 (0)": ("mike/g64-12.fits", "air"),
        "Sun, image (0)": ("sun_image/sun-450-530.fits", "air"),
        "ELODIE γ Peg, B2": ("elodie/exStar.fits", "air"),
    }
    out["single"] = {}
    for name, (path, medium) in singles.items():
        wave, flux = linear(find_data(f"surveys/{path}"))
        arms = read(wave, flux, medium, valid=np.isfinite(flux) & (flux != 0), lsf=spread)
        out["single"][name] = one(measure(arms, templates))
    text = np.loadtxt(find_data("surveys/sun_text/UVES_Sun-1_cleaned_norm.txt"))
    out["single"]["Sun, text (0)"] = one(measure(read(text[:, 0], text[:, 1], "air", lsf=spread), templates))
    table = Table.read(find_data("surveys/hires/rj59.1926_adj.fits"))
    out["single"]["HIRES GJ 880, M dwarf (0)"] = one(
        measure(read(table["w"], table["s"], "air", lsf=spread), templates)
    )
    for name, path in (
        ("SDSS hot star", "sdss_spec/spec-0266-51602-0031"),
        ("BOSS G star", "boss_spec/spec-3586-55181-0500"),
    ):
        table = fits.getdata(find_data(f"surveys/{path}.fits"), 1)
        wave = 10 ** table["loglam"].astype(float)
        out["single"][name] = one(measure(read(wave, table["flux"], "vacuum", ivar=table["ivar"]), templates))
    data = fits.getdata(find_data("surveys/sdss_spSpec/sample_sdss.fits"))
    wave = 10 ** (3.5796 + 1e-4 * np.arange(data.shape[1]))
    ivar = np.where(data[2] > 0, data[2], np.inf) ** -2.0
    out["single"]["SDSS galaxy"] = one(measure(read(wave, data[0], "vacuum", ivar=ivar), templates))
    table = fits.getdata(find_data("surveys/calspec/alpha_lyr_stis_005.fits"), 1)
    out["single"]["Vega, A0"] = one(measure(read(table["WAVELENGTH"], table["FLUX"], "vacuum"), templates))
    return out


def rows(found: Velocities, part: np.ndarray) -> Velocities:
    return Velocities(**{f.name: getattr(found, f.name)[part] for f in dataclasses.fields(found)})


def one(found: Velocities) -> dict:
    return {k: float(getattr(found, k)[0]) for k in ("velocity", "error", "quality", "parts", "poor")}


def pairs(templates: Templates, read) -> dict:
    """Differences between spectra of one star that were taken at different times, over √2 for the error of one."""
    table = Table.read(find_data("surveys/lamost_repeats/repeats.csv"))
    stars = []
    for file in table["file"]:
        data = fits.getdata(find_data(f"surveys/lamost_repeats/spectra/{file}")).astype(float)
        stars.append(read(data[2], data[0], "vacuum", ivar=data[1], valid=data[0] != 0))
    found = measure(joined(stars), templates)
    group, good = np.asarray(table["group"]), ~found.poor
    both = [
        (i, j) for i in range(len(found)) for j in range(i) if group[i] == group[j] and good[i] and good[j]
    ]
    i, j = np.array(both).T
    off, error = found.velocity[i] - found.velocity[j], np.hypot(found.error[i], found.error[j])
    return {
        "stars": len(both),
        "median": 0.0,
        "scatter": robust(np.concatenate([off, -off])) / np.sqrt(2),
        "error": float(np.median(error)) / np.sqrt(2),
        "inside": float(np.mean(np.abs(off) < error)),
        "poor": float(np.mean(~good)),
    }


def observed_table(numbers: Mapping[str, dict]) -> list[str]:
    lines = [
        "",
        "| observed stars | number | median [km/s] | robust scatter | predicted error | within it | poor |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, r in numbers.items():
        if name != "single":
            lines.append(
                f"| {name} | {r['stars']} | {r['median']:+.2f} | {r['scatter']:.2f} | {r['error']:.2f} | "
                f"{r['inside']:.0%} | {r['poor']:.1%} |"
            )
    lines += [
        "",
        "| one spectrum (known velocity) | velocity [km/s] | error | quality | parts | poor |",
        "|---|---|---|---|---|---|",
    ]
    for name, r in numbers["single"].items():
        lines.append(
            f"| {name} | {r['velocity']:+.1f} | {r['error']:.1f} | {r['quality']:.1f} | {r['parts']:.1f} | "
            f"{'yes' if r['poor'] else 'no'} |"
        )
    return lines


# What has no velocity

KINDS = {
    "noise about zero": lambda wave, noise, rng: noise,
    "black body of 4,500 K, S/N 100": lambda wave, noise, rng: black_body(wave) * (1 + noise / 100),
    "continuum with noise over three pixels": lambda wave, noise, rng: 1 + smooth(noise) / 20,
    "Hβ of a hot star alone, S/N 50": lambda wave, noise, rng: balmer(wave, rng) * (1 + noise / 50),
}


def black_body(wave: np.ndarray) -> np.ndarray:
    flux = wave**-5 / np.expm1(1.4388e8 / (wave * 4500))
    return flux / flux.mean()


def smooth(noise: np.ndarray) -> np.ndarray:
    return noise + np.roll(noise, 1, axis=1) + np.roll(noise, -1, axis=1)


def balmer(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    width = rng.uniform(5, 14, (500, 1))
    return 1 - 0.6 / (1 + ((wave - 4861.3) / width) ** 2)


def nothing(kind: str, templates: Templates) -> dict:
    rng = np.random.default_rng(0)
    arms = {}
    for arm, wave in templates.wave.items():
        flux = KINDS[kind](wave, rng.standard_normal((500, wave.size)), rng)
        arms[arm] = (flux, np.ones(flux.shape, bool), None)
    found = measure(arms, templates)
    return {"poor": float(found.poor.mean()), "quality": float(np.nanpercentile(found.quality, 99))}


if __name__ == "__main__":
    main()
