"""Damaged copies of small files, through every reader of files of one's own making: refused, or read as they are."""

import numpy as np
import pytest
from astropy.io import fits

from benchmarks import bench_readers
from remap import io, surveys
from remap.io import write_bundle
from remap.spectra import SpectrumError, make_spectra

N = 200
RNG = np.random.default_rng(3)
FLUX = RNG.normal(1, 0.1, N).astype(np.float32)
BASE = {"medium": "air", "wave_unit": "Angstrom"}
AXIS = {"CRVAL1": 5000.0, "CD1_1": 0.5, "CDELT1": 0.5, "CRPIX1": 1}
# Numbers that nothing else in a file repeats: a change in one of them cannot be seen.
UNSEEN = {
    "CRVAL1",
    "CD1_1",
    "CDELT1",
    "CRPIX1",
    "BITPIX",
    "NAXIS1",
    "NAXIS2",
    "WAT2_001",
    "WAT2_002",
    "WAT2_003",
}


def image(path):
    header = fits.Header(AXIS | {"OBJECT": "a star", "RA": 10.0})
    fits.writeto(path, np.stack([FLUX, FLUX**2, np.zeros(N, np.float32)]), header)
    source = {"format": "image", "axis": "linear", "flux": {"row": 0}, "ivar": {"row": 1}, "mask": {"row": 2}}
    return source | BASE | {"mask_good": "zero", "facts": {"star_id": "OBJECT", "ra": "RA"}}


def hdus(path):
    wave = (6000 - 0.5 * np.arange(N)).astype(np.float64)
    parts = [
        fits.ImageHDU(FLUX, name="F"),
        fits.ImageHDU(np.abs(FLUX), name="E"),
        fits.ImageHDU(wave, name="W"),
    ]
    fits.HDUList([fits.PrimaryHDU(), *parts]).writeto(path)
    return {
        "format": "image",
        "axis": "linear",
        "hdu": "F",
        "error": {"hdu": "E"},
        "wave": {"hdu": "W"},
    } | BASE


def packed(path):
    data = (1000 * FLUX).astype(np.int32)[None]
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(data, fits.Header(AXIS))]).writeto(path)
    return {"format": "image", "axis": "linear"} | BASE


def iraf(path):
    specs = f"1 1 0 5000. 0.5 {N} 0. 0 0", f"2 2 2 0 0 {N} 0. 0 0 1. 0. 2 2 1 {N} 5200 50"
    text = f'wtype=multispec spec1 = "{specs[0]}" spec2 = "{specs[1]}"'
    header = fits.Header({"CTYPE1": "MULTISPE"})
    for i in range(0, len(text), 68):
        header[f"WAT2_{i // 68 + 1:03d}"] = text[i : i + 68]
    fits.writeto(path, np.stack([FLUX, FLUX]), header)
    return {"format": "iraf"} | BASE


def text(path):
    np.savetxt(path, np.c_[5000 + 0.5 * np.arange(N), FLUX], fmt="%.6f", header="wave flux")
    return {"format": "text", "axis": "linear"} | BASE


def bundle(path):
    wave = 5000 + 0.5 * np.arange(N)
    spectra = make_spectra(wave, np.stack([FLUX, FLUX]), medium="air", labels={"teff": [5e3, 6e3]})
    write_bundle(path, spectra)
    return {"format": "bundle", "medium": "air", "absolute": False, "label_columns": ("teff",)}


MAKERS = {
    "image.fits": image,
    "hdus.fits": hdus,
    "packed.fits.fz": packed,
    "iraf.fits": iraf,
    "x.txt": text,
    "x.npz": bundle,
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_mutant_is_refused_or_read_as_it_is(tmp_path, name):
    path = tmp_path / name
    source = MAKERS[name](path)
    content, before = path.read_bytes(), io.read_segments(path, source=source)
    outcomes = []
    for mutant in bench_readers.mutants(content, 100, seed=1):
        got = bench_readers.outcome(path, mutant, source, before)
        card = content[mutant.start // 80 * 80 :][:8].decode("latin-1").strip()
        # A byte of packed data moves all that follows in its tile.
        spreads = name.endswith(".fz") and mutant.in_data
        assert got != "changed" or card in UNSEEN or spreads, (mutant.what, card)
        outcomes.append(got)
    assert "refused" in outcomes


def test_the_judge_sees_what_has_changed(tmp_path):
    path = tmp_path / "x.fits"
    source = image(path)
    before = io.read_segments(path, source=source)
    content = path.read_bytes()
    shifted = content.replace(b"5000.0", b"5001.0")
    mutant = bench_readers.Mutant(shifted, "card", content.index(b"CRVAL1"), 0, False)
    assert bench_readers.outcome(path, mutant, source, before) == "changed"
    assert (
        bench_readers.outcome(path, bench_readers.Mutant(content, "", 0, 0, False), source, before) == "equal"
    )
    at = 2880 + 40
    assert content[at - 40 :][:4] == FLUX[:1].astype(">f4").tobytes()
    mutant = bench_readers.Mutant(
        content[:at] + b"\x3f\x01" + content[at + 2 :], "flip data", at, at + 2, True
    )
    expected = "touched" if content[at : at + 2] != b"\x3f\x01" else "equal"
    assert bench_readers.outcome(path, mutant, source, before) == expected


def test_identification_of_damaged_files_ends_in_matches_or_one_kind_of_error(tmp_path):
    path = tmp_path / "x.fits"
    image(path)
    for mutant in bench_readers.mutants(path.read_bytes(), 100, seed=2):
        path.write_bytes(mutant.content)
        try:
            found = surveys.identify(path)
        except SpectrumError:
            continue
        assert all(match.score > 0 for match in found)
