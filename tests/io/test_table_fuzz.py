"""Mutated tables: each is read as the original is, or refused; never anything else, and never something else."""

import time
from io import BytesIO

import numpy as np
import pytest
from astropy.io import fits

from benchmarks import small_files
from remap import io
from remap.spectra import SpectrumError

MUTANTS = 100


def headers(content):
    """Whether each byte belongs to a header; the others are data."""
    out = np.zeros(len(content), bool)
    with fits.open(BytesIO(content)) as hdus:
        for hdu in hdus:
            info = hdu.fileinfo()
            out[info["hdrLoc"] : info["datLoc"]] = True
    return out


def mutate(content, inside, rng):
    """A changed copy, and where data bytes were changed."""
    out = np.frombuffer(content, np.uint8).copy()
    kind = rng.integers(5)
    if kind == 0:  # bits of headers
        at = rng.choice(np.flatnonzero(inside), rng.integers(1, 9))
        out[at] ^= (1 << rng.integers(0, 8, at.size)).astype(np.uint8)
    elif kind == 1:  # the number of a card is another
        digits = np.flatnonzero(inside & (out >= ord("0")) & (out <= ord("9")))
        at = rng.choice(digits, rng.integers(1, 4))
        out[at] = rng.integers(ord("0"), ord("9") + 1, at.size)
    elif kind == 2:  # cut short
        return out[: rng.integers(0, out.size)].tobytes(), False
    elif kind == 3:  # bits of data
        at = rng.choice(np.flatnonzero(~inside), rng.integers(1, 50))
        out[at] ^= (1 << rng.integers(0, 8, at.size)).astype(np.uint8)
        return out.tobytes(), True
    else:  # a block of zeros or NaN in the data
        at = rng.choice(np.flatnonzero(~inside))
        out[at : at + 800][~inside[at : at + 800]] = rng.choice([0, 255])
        return out.tobytes(), True
    return out.tobytes(), False


def same(found, whole):
    """Whether what is read are pixels of the original."""
    for spectra in found:
        match = [w for w in whole if np.isin(spectra.wave, w.wave).all()]
        if not match:
            return False
        at = np.searchsorted(match[0].wave, spectra.wave)
        valid = spectra.valid
        for name in ("flux", "ivar"):
            rows = getattr(match[0], name)[: len(spectra), at]
            if not np.array_equal(getattr(spectra, name)[valid], rows[valid]):
                return False
    return True


@pytest.mark.parametrize("write", [small_files.pixels, small_files.vectors, small_files.targets])
def test_mutants(tmp_path, write):
    path = tmp_path / "whole.fits"
    source = write(path)
    whole = io.read_segments(path, source=source)
    content = path.read_bytes()
    inside = headers(content)
    rng = np.random.default_rng(1)
    mutant = tmp_path / "mutant.fits"
    read = 0
    for _ in range(MUTANTS):
        changed, data = mutate(content, inside, rng)
        mutant.write_bytes(changed)
        start = time.monotonic()
        found, message = (), "mutant.fits"
        try:
            found = io.read_segments(mutant, source=source)
        except SpectrumError as error:
            message = str(error)
        assert "mutant.fits" in message
        assert data or same(found, whole)
        read += len(found) > 0
        assert time.monotonic() - start < 5
    assert 0 < read < MUTANTS
