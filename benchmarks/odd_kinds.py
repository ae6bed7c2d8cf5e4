"""Spectra that no network was trained on, made of MILES's stars or of nothing, for `bench_far`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from remap.spectra import SPEED_OF_LIGHT, Spectra

BAND = (4850.0, 5750.0)  # Å, in which levels are measured


@dataclasses.dataclass(frozen=True)
class Star:
    """One spectrum at rest, with its labels."""

    spectrum: Spectra
    teff: float
    logg: float
    feh: float

    @property
    def wave(self) -> np.ndarray:
        """float[N], Å."""
        return np.asarray(self.spectrum.wave).reshape(-1)

    @property
    def flux(self) -> np.ndarray:
        """float[N], 1 at the median of the band."""
        flux = np.asarray(self.spectrum.flux, float)[0]
        inside = (self.wave > BAND[0]) & (self.wave < BAND[1])
        return flux / np.median(flux[inside])

    def with_flux(self, flux: np.ndarray) -> Spectra:
        """The same star with another spectrum."""
        return dataclasses.replace(self.spectrum, flux=np.asarray(flux)[None])

    def moved(self, velocity: float) -> np.ndarray:
        """float[N], at a velocity [km/s]."""
        return np.interp(self.wave, self.wave * (1 + velocity / SPEED_OF_LIGHT), self.flux)


Make = Callable[[Star, Sequence[Star], np.random.Generator], np.ndarray]


def _line(wave: np.ndarray, centre: float, sigma: float) -> np.ndarray:
    return np.exp(-0.5 * ((wave - centre) / sigma) ** 2)


def _noise(wave: np.ndarray, rng: np.random.Generator, low: float, high: float) -> np.ndarray:
    return 1 + rng.standard_normal(wave.size) / rng.uniform(low, high)


def _blurred(flux: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    return np.convolve(flux, kernel / kernel.sum(), "same")


def _emission(star: Star, _: Sequence[Star], rng: np.random.Generator) -> np.ndarray:
    height, wave = rng.uniform(0.3, 2.0), star.wave
    lines = _line(wave, 4861.3, 2.0)
    if rng.integers(2):
        lines = lines + _line(wave, 4958.9, 2.0) / 3 + _line(wave, 5006.8, 2.0)
    return star.flux + height * lines


def _composite(star: Star, others: Sequence[Star], rng: np.random.Generator) -> np.ndarray:
    cool = [s for s in others if s.teff < 4900] or list(others)
    hot = [s for s in others if s.teff > 6200] or list(others)
    share, one, other = rng.uniform(0.35, 0.65), hot[rng.integers(len(hot))], cool[rng.integers(len(cool))]
    return share * np.interp(star.wave, one.wave, one.flux) + (1 - share) * np.interp(
        star.wave, other.wave, other.flux
    )


def _double(star: Star, others: Sequence[Star], rng: np.random.Generator) -> np.ndarray:
    share, other = rng.uniform(0.35, 0.65), others[rng.integers(len(others))]
    return share * star.flux + (1 - share) * np.interp(star.wave, other.wave, other.moved(120.0))


def _wiggles(star: Star, _: Sequence[Star], rng: np.random.Generator) -> np.ndarray:
    phase = star.wave / rng.uniform(60, 200) + rng.uniform()
    return star.flux * (1 + rng.uniform(0.1, 0.3) * np.sin(2 * np.pi * phase))


def _galaxy(_: Star, others: Sequence[Star], rng: np.random.Generator) -> np.ndarray:
    old = [s for s in others if s.logg < 3.2 and 4300 < s.teff < 5200 and s.feh > -0.6] or list(others)
    star = old[rng.integers(len(old))]
    sigma = rng.uniform(100, 300) / SPEED_OF_LIGHT * 5300 / np.median(np.diff(star.wave))
    flux = _blurred(star.flux, _line(np.arange(-40, 41.0), 0.0, sigma))
    return np.interp(star.wave, star.wave * (1 + rng.uniform(0.02, 0.15)), flux)


def _hot(star: Star, _: Sequence[Star], rng: np.random.Generator) -> np.ndarray:
    """A B star, roughly: Hβ and two lines of helium."""
    wave = star.wave
    hydrogen = rng.uniform(0.3, 0.6) / (1 + ((wave - 4861.3) / rng.uniform(4, 10)) ** 2)
    helium = 0.06 * rng.uniform(0.3, 1) * (_line(wave, 4921.9, 1.5) + _line(wave, 5015.7, 1.5))
    return (wave / 5300) ** -3.0 * (1 - hydrogen) * (1 - helium) * _noise(wave, rng, 60, 300)


def _white_dwarf(star: Star, _: Sequence[Star], rng: np.random.Generator) -> np.ndarray:
    wave = star.wave
    hydrogen = rng.uniform(0.4, 0.65) / (1 + ((wave - 4861.3) / rng.uniform(25, 60)) ** 2)
    return (wave / 5300) ** -3.0 * (1 - hydrogen) * _noise(wave, rng, 30, 150)


def _power_law(star: Star, _: Sequence[Star], rng: np.random.Generator) -> np.ndarray:
    return (star.wave / 5300) ** rng.uniform(-3, 3) * _noise(star.wave, rng, 50, 300)


def _rotation(star: Star, others: Sequence[Star], rng: np.random.Generator) -> np.ndarray:
    hot = [s for s in others if s.teff > 6000] or list(others)
    one = hot[rng.integers(len(hot))]
    reach = rng.uniform(120, 200) / SPEED_OF_LIGHT * 5300 / np.median(np.diff(one.wave))
    kernel = np.sqrt(np.clip(1 - (np.arange(-20, 21) / reach) ** 2, 0, None))
    return np.interp(star.wave, one.wave, _blurred(one.flux, kernel))


def _square(star: Star, _: Sequence[Star], rng: np.random.Generator) -> np.ndarray:
    wave = star.wave
    return (
        1 + 0.3 * np.sign(np.sin(2 * np.pi * wave / rng.uniform(5, 60))) + (_noise(wave, rng, 200, 201) - 1)
    )


def _saturated(star: Star, _: Sequence[Star], rng: np.random.Generator) -> np.ndarray:
    return np.minimum(star.flux, rng.uniform(0.6, 0.85))


# What is made of a star (or of others, or of its wavelengths alone).
ODD: Mapping[str, Make] = {
    "wrong velocity, 60 to 200 km/s": lambda s, _, r: s.moved(r.choice([-1, 1]) * r.uniform(60, 200)),
    "wrong medium (83 km/s)": lambda s, _, r: s.moved(r.choice([-1, 1]) * 83.0),
    "emission lines": _emission,
    "two stars, hot and cool, at rest": _composite,
    "two stars, 120 km/s apart": _double,
    "rotation, 120 to 200 km/s": _rotation,
    "bad continuum (waves of 10 to 30 %)": _wiggles,
    "veiled (lines 40 to 55 % as deep)": lambda s, _, r: s.flux + r.uniform(0.8, 1.5),
    "saturated": _saturated,
    "wavelengths reversed": lambda s, _, r: s.flux[::-1],
    "galaxy": _galaxy,
    "hot star (B)": _hot,
    "white dwarf (DA)": _white_dwarf,
    "power law without lines": _power_law,
    "noise": lambda s, _, r: 1 + r.uniform(0.2, 1.0) * r.standard_normal(s.wave.size),
    "square wave": _square,
}
NORMAL: Mapping[str, Make] = {
    "as observed": lambda s, _, r: s.flux,
    "S/N 80": lambda s, _, r: s.flux + r.standard_normal(s.wave.size) / 80,
    "S/N 40": lambda s, _, r: s.flux + r.standard_normal(s.wave.size) / 40,
    "S/N 20": lambda s, _, r: s.flux + r.standard_normal(s.wave.size) / 20,
    "S/N 10": lambda s, _, r: s.flux + r.standard_normal(s.wave.size) / 10,
    "velocity off by up to 20 km/s": lambda s, _, r: s.moved(r.uniform(-20, 20)),
}
