"""Mutated tables: each is read as the original is, or refused; never anything else, and never something else."""

import time
from io import BytesIO

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from remap import io
from remap.spectra import SpectrumError

N = 200
MUTANTS = 100
WAVE = 5000 + 0.5 * np.arange(N)
FLUX = np.random.default_rng(0).uniform(0.9, 1.1, N).astype(np.float32)
TABLE = {
    "format": "table",
    "medium": "vacuum",
    "axis": "linear",
    "wave_unit": "Angstrom",
    "wave_column": "WAVE",
    "flux_column": "FLUX",
    "ivar_column": "IVAR",
    "mask_column": "MASK",
    "mask_good": "zero",
    "facts": {"star_id": "OBJECT", "snr": "SNR", "rv": {"column": "Z", "hdu": 2, "factor": 299792.458}},
    "line_spread": {"place": {"column": "W"}, "kind": "fwhm"},
}
TARGETS = {
    "format": "targets",
    "medium": "vacuum",
    "axis": "linear",
    "wave_unit": "Angstrom",
    "wave_hdu": r"(?P<segment>[A-Z]+)_WAVELENGTH",
    "flux_hdu": "{segment}_FLUX",
    "ivar_hdu": "{segment}_IVAR",
    "mask_hdu": "{segment}_MASK",
    "mask_good": "zero",
    "resolution_hdu": "{segment}_RESOLUTION",
    "targets_hdu": "FIBERMAP",
    "facts": {"star_id": {"column": "TARGETID"}, "ra": {"column": "RA"}},
}


def pixels(path):
    columns = {"WAVE": WAVE, "FLUX": FLUX, "IVAR": FLUX, "MASK": np.zeros(N, np.int16), "W": FLUX}
    table = fits.BinTableHDU(Table(columns), name="COADD")
    table.columns["WAVE"].unit = "Angstrom"
    facts = fits.BinTableHDU(Table({"Z": [1e-4], "CLASS": ["STAR"]}), name="SPALL")
    fits.HDUList([fits.PrimaryHDU(header=fits.Header({"OBJECT": "A", "SNR": 20.0})), table, facts]).writeto(
        path
    )


def vectors(path):
    columns = {"WAVE": WAVE, "FLUX": FLUX, "IVAR": FLUX, "W": FLUX, "MASK": np.zeros(N, np.int16)}
    kinds = {"WAVE": f"{N}D", "FLUX": f"{N}E", "IVAR": f"{N}E", "W": "PE()", "MASK": f"{N}I"}
    cells = {k: np.array([v, None], dtype=object)[:1] if k == "W" else v[None] for k, v in columns.items()}
    made = [fits.Column(k, kinds[k], array=v) for k, v in cells.items()]
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns(made)]).writeto(path)


def targets(path):
    table = Table({"TARGETID": np.arange(3), "RA": np.arange(3.0)})
    hdus = [fits.PrimaryHDU(), fits.BinTableHDU(table, name="FIBERMAP")]
    for arm in "BR":
        rows = np.stack([FLUX] * 3)
        images = {"WAVELENGTH": WAVE, "FLUX": rows, "IVAR": rows, "MASK": np.zeros((3, N), np.uint32)}
        images["RESOLUTION"] = np.ones((3, 5, N), np.float32)
        hdus += [fits.ImageHDU(data, name=f"{arm}_{name}") for name, data in images.items()]
    fits.HDUList(hdus).writeto(path)


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


@pytest.mark.parametrize(("write", "source"), [(pixels, TABLE), (vectors, TABLE), (targets, TARGETS)])
def test_mutants(tmp_path, write, source):
    path = tmp_path / "whole.fits"
    write(path)
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
