"""What a user may call spectra: arrays, `Spectra`, and spectra as specutils has them, alone or several."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from remap.spectra import Spectra, SpectrumError, make_spectra


def spectra_of(
    spectra: Any,
    flux: Any = None,
    *,
    medium: str | None = None,
    ivar: Any = None,
    valid: Any = None,
    names: Iterable[str] | None = None,
) -> list[list[Spectra]]:
    """The segments of every file, as `remap.preprocess.observe` takes them.

    Args:
      spectra: wavelengths [Å, or a length with a unit] with `flux` beside them; or, without, one or a sequence of:
        `Spectra`, specutils' Spectrum, SpectrumCollection, or (in a sequence) a sequence of these, which holds
        the segments of one spectrum: arms, chips, orders. specutils' SpectrumList is a sequence of spectra.
      flux: float[N] or float[S, N], to arrays of wavelengths; any kind that `make_spectra` takes.
      medium: "air" or "vacuum"; needed for all but `Spectra`, since neither arrays nor specutils say.
      ivar, valid: beside `flux`, see `make_spectra`.
      names: one per spectrum; None = of `Spectra` their own, of others their number. Names that several entries of
        a sequence have get its number before them ("0/a", "1/a").

    Raises:
      SpectrumError: what is none of these, or says what it cannot say; and what `make_spectra` refuses.
      ValueError: there is no spectrum.
    """
    if flux is None and (ivar is not None or valid is not None):
        raise SpectrumError("expected flux beside ivar and valid, found none; other spectra bring their own")
    names = None if names is None else [str(name) for name in names]
    if flux is not None:
        if isinstance(spectra, Spectra) or _is_spectrum(spectra):
            raise SpectrumError("expected a spectrum or wavelengths and flux, found a spectrum and flux")
        made = make_spectra(spectra, flux, medium=_declared(medium), ivar=ivar, valid=valid, names=names)
        return [[made]]
    if isinstance(spectra, Spectra) or _is_spectrum(spectra):
        return [_parts(spectra, medium, names, "")]
    if isinstance(spectra, str | bytes | np.ndarray) or not isinstance(spectra, Sequence):
        raise SpectrumError(_expected(spectra))
    if names is not None and len(names) != len(spectra):
        raise SpectrumError(f"expected {len(spectra)} names, found {len(names)}")
    files = []
    for i, each in enumerate(spectra):
        own = None if names is None else [names[i]]
        segments = [each] if isinstance(each, Spectra) or _is_spectrum(each) else each
        if isinstance(segments, str | bytes | np.ndarray) or not isinstance(segments, Sequence):
            raise SpectrumError(f"spectrum {i}: {_expected(each)}")
        files.append([part for segment in segments for part in _parts(segment, medium, own, str(i))])
    if not any(len(part) for file in files for part in file):
        raise ValueError("expected at least one spectrum, found none")
    return _told_apart(files)


def _told_apart(files: list[list[Spectra]]) -> list[list[Spectra]]:
    """Files with names that are in no other: containers number their spectra, each from 0."""
    times = Counter(name for file in files for name in {name for part in file for name in part.names})
    return [
        [_renamed(part, [f"{i}/{n}" if times[n] > 1 else n for n in part.names]) for part in file]
        for i, file in enumerate(files)
    ]


def _renamed(spectra: Spectra, names: Sequence[str]) -> Spectra:
    return dataclasses.replace(spectra, names=tuple(names)) if tuple(names) != spectra.names else spectra


def _is_spectrum(value: Any) -> bool:
    return hasattr(value, "spectral_axis") and hasattr(value, "flux")


def _parts(spectrum: Any, medium: str | None, names: Sequence[str] | None, number: str) -> list[Spectra]:
    """One object's spectra. Segments of one file are parts of one spectrum where their names are the same."""
    if isinstance(spectrum, Spectra):
        if medium not in (None, spectrum.medium):
            raise SpectrumError(
                f"{spectrum.names[0]}: expected spectra in {medium}, found {spectrum.medium}: they say so themselves"
            )
        if names is None:
            return [spectrum]
        return [_renamed(spectrum, _count(names, len(spectrum)))]
    if not _is_spectrum(spectrum):
        raise SpectrumError(f"spectrum {number or 0}: {_expected(spectrum)}")
    where = _declared(medium)
    count = int(np.prod(np.shape(spectrum.flux)[:-1]))
    if names is None and number:
        names = [number] if count == 1 else [f"{number}[{k}]" for k in range(count)]
    names = None if names is None else _count(names, count)
    if np.ndim(spectrum.spectral_axis) == 1:
        return [make_spectra(spectrum, medium=where, names=names)]
    # A SpectrumCollection has wavelengths of their own for each.
    names = [str(k) for k in range(count)] if names is None else names
    return [make_spectra(spectrum[k], medium=where, names=[names[k]]) for k in range(count)]


def _count(names: Sequence[str], count: int) -> Sequence[str]:
    """Names of `count` spectra: they are as many, or one that is numbered."""
    if len(names) == count:
        return names
    if len(names) == 1:
        return [f"{names[0]}[{k}]" for k in range(count)]
    raise SpectrumError(f"expected {count} names, found {len(names)}")


def _declared(medium: str | None) -> str:
    if medium is None:
        raise SpectrumError(
            "expected medium='air' or medium='vacuum' with these spectra, found neither: they do not say it, and the "
            "two differ by 83 km/s"
        )
    return medium


def _expected(found: Any) -> str:
    return (
        "expected Spectra (remap.make_spectra), spectra as specutils has them, or wavelengths and flux, found "
        f"{type(found).__name__}"
    )
