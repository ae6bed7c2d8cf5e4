"""The record of observed spectra as networks take them, a row each, and how rows are made, put and taken."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from remap.preprocess.blocks import in_blocks
from remap.preprocess.description import Preprocessing
from remap.preprocess.grid import snr_estimate
from remap.spectra import Spectra


class ArmOnGrid(NamedTuple):
    """Spectra of one arm on its grid, scaled to a largest value of 1."""

    flux: np.ndarray  # float32[S, N], 0 where invalid
    valid: np.ndarray  # bool[S, N]
    ivar: np.ndarray  # float32[S, N], of the scaled flux; NaN in rows where it is not known
    snr: np.ndarray  # float[S], per pixel; NaN = unknown
    scale: np.ndarray  # float[S], the largest value of before


@dataclasses.dataclass(frozen=True, eq=False)
class Observed:
    """Spectra as the networks take them, one row each.

    Attributes:
      names: S names of inputs.
      star_ids: S identifiers, "" = not known.
      arms: arm -> its spectra.
      velocity: float[S], km/s, that was taken out; NaN where it had to be measured and could not be.
      velocity_error: float[S], km/s, NaN = not known.
      measured: float[S], km/s, by cross-correlation; NaN = was not measured (as where a quick look at the spectrum
        has no doubt of the velocity that was taken out), or poorly.
      poor: bool[S], the velocity that was taken out was measured, poorly.
      doubtful: bool[S], it is poor, or contradicts the measured one.
      coarse: bool[S], the lines are wider than the networks know them, or of unknown width on very fine pixels.
      ra, dec: float[S], degrees, NaN = not known.
      star_within: float[S], arcsec: spectra so near are of one star, whatever identifiers they have; NaN = these are
        names.
      inputs: int[S], how many exposures a row is made of.
      messages: S reasons why a row cannot be used, "" elsewhere.
      told: for the provenance: where the spectra came from and how they were read.
    """

    names: tuple[str, ...]
    star_ids: tuple[str, ...]
    arms: Mapping[str, ArmOnGrid]
    velocity: np.ndarray
    velocity_error: np.ndarray
    measured: np.ndarray
    poor: np.ndarray
    doubtful: np.ndarray
    coarse: np.ndarray
    ra: np.ndarray
    dec: np.ndarray
    star_within: np.ndarray
    inputs: np.ndarray
    messages: tuple[str, ...]
    told: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)


def rows_of(observed: Observed, index: slice) -> Observed:
    """Some rows of a record."""
    names = [field.name for field in dataclasses.fields(Observed) if field.name not in ("arms", "told")]
    arms = {arm: ArmOnGrid(*(x[index] for x in on)) for arm, on in observed.arms.items()}
    rows = {name: getattr(observed, name)[index] for name in names}
    return Observed(arms=arms, told=observed.told, **rows)


def concatenate(parts: Sequence[Observed]) -> Observed:
    """Rows of several, in their order."""
    return Observed(
        names=tuple(n for p in parts for n in p.names),
        star_ids=tuple(n for p in parts for n in p.star_ids),
        arms={
            arm: ArmOnGrid(*(np.concatenate(x) for x in zip(*(p.arms[arm] for p in parts), strict=True)))
            for arm in parts[0].arms
        },
        messages=tuple(m for p in parts for m in p.messages),
        **{
            name: np.concatenate([getattr(p, name) for p in parts])
            for name in (
                "velocity",
                "velocity_error",
                "measured",
                "poor",
                "doubtful",
                "coarse",
                "ra",
                "dec",
                "star_within",
                "inputs",
            )
        },
    )


def nothing(name: str, preprocessing: Preprocessing, message: str) -> Observed:
    """The row of an input that could not be read."""
    none = np.full(1, np.nan)
    arms = {}
    for arm in preprocessing.arms:
        shape = (1, len(preprocessing.wave(arm)))
        arms[arm] = ArmOnGrid(
            np.zeros(shape, np.float32),
            np.zeros(shape, bool),
            np.full(shape, np.nan, np.float32),
            none,
            np.ones(1),
        )
    no = np.zeros(1, bool)
    one = np.ones(1, int)
    return Observed((name,), ("",), arms, none, none, none, no, no, no, none, none, none, one, (message,))


def empty_arm(count: int, pixels: int) -> ArmOnGrid:
    """Rows without a valid pixel."""
    return ArmOnGrid(
        np.zeros((count, pixels), np.float32),
        np.zeros((count, pixels), bool),
        np.full((count, pixels), np.nan, np.float32),
        np.full(count, np.nan),
        np.ones(count),
    )


def put(arm: ArmOnGrid, rows: int | np.ndarray, spectra: Spectra) -> None:
    """Writes spectra into rows, scaled to a largest value of 1: fluxes of 1e-17 would leave float32's range."""
    rows, stated = np.atleast_1d(rows), spectra.fact("snr")

    def write(some: slice) -> None:
        to, valid = rows[some], spectra.valid[some]
        flux = np.where(valid, spectra.flux[some], 0.0)
        peak = np.abs(flux).max(axis=1, keepdims=True)
        peak = np.where(peak > 0, peak, 1)
        ivar = None if spectra.ivar is None else spectra.ivar[some]
        snr = snr_estimate(spectra.flux[some], valid, ivar)
        if ivar is None:
            # the scatter of pixels takes lines for noise
            snr = np.where(np.isfinite(snr) & (stated[some] > 0), stated[some], snr)
        else:
            # Signal to noise first: the square of a damaged file's flux of 1e200 is no number, and 0 of it NaN.
            with np.errstate(over="ignore"):
                scaled = (np.sqrt(np.where(valid, ivar, 0.0).astype(np.float64)) * peak) ** 2
                scaled = scaled.astype(np.float32)
            valid = valid & np.isfinite(scaled)
            arm.ivar[to] = scaled
        arm.flux[to] = (flux / peak).astype(np.float32)
        arm.valid[to] = valid
        arm.snr[to] = snr
        arm.scale[to] = peak[:, 0]

    in_blocks(write, len(spectra), spectra.wave.size)


def either(take: np.ndarray, yes: ArmOnGrid, no: ArmOnGrid) -> ArmOnGrid:
    """Rows of one where `take` bool[S], of the other elsewhere."""
    return ArmOnGrid(
        *(np.where(take.reshape(-1, *[1] * (a.ndim - 1)), a, b) for a, b in zip(yes, no, strict=True))
    )


def without_rows(arm: ArmOnGrid, rows: np.ndarray) -> ArmOnGrid:
    """The same without a valid pixel in some rows."""
    if not rows.any():
        return arm
    return either(~rows, arm, empty_arm(len(arm.flux), arm.flux.shape[1]))
