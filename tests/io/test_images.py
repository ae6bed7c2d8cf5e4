"""Images with rows and HDUs of flux, errors, masks and wavelengths; facts, line spreads, segments, layouts."""

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from remap import io
from remap.config import ConfigError
from remap.io import places
from remap.spectra import SpectrumError

SOURCE = {"format": "image", "medium": "air", "axis": "linear", "wave_unit": "Angstrom"}
N = 300
WAVE = 5000 + 0.5 * np.arange(N)
FLUX = np.linspace(1, 2, N)
AXIS = {"CRVAL1": 5000.0, "CDELT1": 0.5, "CRPIX1": 1.0}


def write(path, *arrays, cards=AXIS, names=()):
    hdus = [fits.PrimaryHDU(arrays[0], fits.Header(cards)), *(fits.ImageHDU(a) for a in arrays[1:])]
    for hdu, name in zip(hdus, names, strict=False):
        hdu.name = name
    fits.HDUList(hdus).writeto(path, overwrite=True)
    return path


def test_rows_of_one_image(tmp_path):
    mask = np.zeros(N)
    mask[5] = 2
    path = write(tmp_path / "x.fits", np.stack([FLUX, np.full(N, 4.0), mask]).astype(np.float32))
    source = SOURCE | {"flux": {"row": 0}, "ivar": {"row": 1}, "mask": {"row": 2}, "mask_good": "zero"}
    read = io.read(path, source=source)
    np.testing.assert_array_equal(read.flux, [FLUX.astype(np.float32)])
    np.testing.assert_array_equal(read.ivar, np.full((1, N), 4.0))
    assert np.flatnonzero(~read.valid).tolist() == [5]
    assert io.read(path, source=source | {"mask_bits": 1}).valid.all()


def test_hdus_of_errors_and_wavelengths(tmp_path):
    error = np.full(N, 0.5)
    error[[1, 2, 3]] = 0, np.nan, 1e10
    path = write(tmp_path / "x.fits", FLUX, error, WAVE[::-1].copy(), names=("FLUX", "ERR", "WAVE"))
    source = SOURCE | {"error": {"hdu": "ERR"}, "wave": "WAVE", "bad_error": 1e9}
    read = io.read(path, source=source)
    np.testing.assert_array_equal(read.wave, WAVE)
    np.testing.assert_array_equal(read.flux, [FLUX[::-1]])
    assert np.flatnonzero(~read.valid[0, ::-1]).tolist() == [1, 2, 3]
    assert read.ivar[0, 0] == 4
    relative = io.read(path, source=source | {"error_kind": "relative"})
    np.testing.assert_allclose(relative.ivar[0, ::-1][5:], 4 / FLUX[5:] ** 2)


@pytest.mark.parametrize("kind", [np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint8])
@pytest.mark.parametrize("bit", [0, 7, 15, 20, 31, 40, 63])
def test_bits_that_the_type_of_a_mask_cannot_hold_are_not_set(kind, bit):
    width = np.dtype(kind).itemsize * 8
    mask = np.zeros(3, f"u{width // 8}")
    mask[1] = np.iinfo(mask.dtype).max
    good = places.good_pixels(mask.view(kind), Path("x.fits"), good="zero", bits=1 << bit, what="it")
    assert good.tolist() == [True, bit >= width, True]


@pytest.mark.parametrize("packed", ["primary", "alone", "extension"])
def test_compressed_images(tmp_path, packed):
    path = tmp_path / "x.fits.fz"
    data = (1000 * FLUX).astype(np.int32)[None]
    hdus = [fits.PrimaryHDU(), fits.CompImageHDU(data, fits.Header(AXIS), name="SCI")]
    fits.HDUList(hdus).writeto(path)
    if packed == "primary":  # what fpack makes of an image in the primary HDU
        content = path.read_bytes()
        card = b"EXTNAME = 'SCI     '          "
        assert card in content
        path.write_bytes(content.replace(card, b"ZSIMPLE =                    T"))
    hdu = {"primary": 0, "alone": 0, "extension": 1}[packed]
    read = io.read(path, source=SOURCE | {"hdu": hdu})
    np.testing.assert_array_equal(read.flux[0], data[0])
    np.testing.assert_array_equal(read.wave, WAVE)


def test_compressed_data_are_held_against_their_sum(tmp_path):
    path = tmp_path / "x.fits.fz"
    data = np.random.default_rng(0).integers(0, 1000, (1, N)).astype(np.int32)
    hdus = [fits.PrimaryHDU(), fits.CompImageHDU(data, fits.Header(AXIS))]
    fits.HDUList(hdus).writeto(path, checksum=True)
    np.testing.assert_array_equal(io.read(path, source=SOURCE).flux, data)
    content = bytearray(path.read_bytes())
    with fits.open(path, disable_image_compression=True) as opened:
        content[opened.fileinfo(1)["datLoc"] + 100] ^= 4
    path.write_bytes(content)
    with pytest.raises(SpectrumError, match="not those of its DATASUM"):
        io.read(path, source=SOURCE)


def test_an_axis_in_the_primary_header(tmp_path):
    fits.HDUList([fits.PrimaryHDU(header=fits.Header(AXIS)), fits.ImageHDU(FLUX)]).writeto(
        tmp_path / "x.fits"
    )
    np.testing.assert_array_equal(io.read(tmp_path / "x.fits", source=SOURCE | {"hdu": 1}).wave, WAVE)


def test_segments_and_exposures(tmp_path):
    rows = np.stack([FLUX + i for i in range(4)])
    path = write(tmp_path / "x.fits", rows)
    exposures = {"rows": (1, None), "exposure": "visit{n}"}
    source = SOURCE | {"segments": ({"row": 0, "segment": "A"}, exposures)}
    found = io.read_segments(path, source=source)
    assert [(s.fact("segment")[0], s.fact("exposure")[0]) for s in found] == [
        ("A", ""),
        ("", "visit1"),
        ("", "visit2"),
        ("", "visit3"),
    ]
    assert [s.flux[0, 0] for s in found] == [1, 2, 3, 4]
    assert len(io.read_segments(path, source=source, exposures=False)) == 1
    assert io.read(path, source=source).flux[0, 0] == 1
    several = SOURCE | {"segments": ({"row": 0, "segment": "A"}, {"row": 1, "segment": "B"})}
    with pytest.raises(SpectrumError, match=r"expected one segment, found 2 \(A, B\): read_segments reads"):
        io.read(path, source=several)
    with pytest.raises(SpectrumError, match="expected a row 7"):
        io.read(path, source=SOURCE | {"row": 7})


def test_segments_outside_the_range_are_left_out(tmp_path):
    wave = np.stack([WAVE, WAVE + 1000])
    path = write(tmp_path / "x.fits", np.stack([FLUX, FLUX]), wave)
    source = SOURCE | {"wave": 1, "segments": ({"row": 0, "segment": "A"}, {"row": 1, "segment": "B"})}
    (found,) = io.read_segments(path, source=source, within=(6000.0, 6010.0))
    assert (found.fact("segment")[0], found.wave[0], found.wave[-1]) == ("B", 6000, 6010)
    with pytest.raises(SpectrumError, match="expected pixels within 7000 to 8000 Å"):
        io.read_segments(path, source=source, within=(7000.0, 8000.0))


def test_facts(tmp_path):
    cards = AXIS | {
        "OBJECT": " 0012 ",
        "RA": "10:30:00",
        "DEC": "-00:30:00",
        "Z": 0.001,
        "SN": -9999.0,
        "BAD": "x",
    }
    path = tmp_path / "n_77.fits"
    table = Table({"id": np.array([1234567890123456789]), "snr": [55.0], "rv": [np.nan]})
    fits.HDUList([fits.PrimaryHDU(FLUX, fits.Header(cards)), fits.BinTableHDU(table)]).writeto(path)
    facts = {
        "star_id": "OBJECT",
        "exposure": {"name": r"n_(\d+)"},
        "segment": {"hdu": 1, "column": "ID"},
        "ra": "RA",
        "dec": "DEC",
        "snr": ({"keyword": "SN", "missing": (-9999,)}, {"hdu": 1, "column": "snr"}),
        "rv": {"keyword": "Z", "factor": 299792.458},
        "rv_err": ("BAD", {"hdu": 5, "column": "x"}, {"hdu": 1, "column": "none"}, "NOWHERE"),
    }
    read = io.read(path, source=SOURCE | {"facts": facts})
    assert {k: read.fact(k)[0] for k in facts if k != "rv_err"} == {
        "star_id": "0012",
        "exposure": "77",
        "segment": "1234567890123456789",
        "ra": 157.5,
        "dec": -0.5,
        "snr": 55,
        "rv": 299.792458,
    }
    assert np.isnan(read.fact("rv_err")[0])


def one_fact(tmp_path, name, value, **more):
    fits.writeto(tmp_path / "a.fits", FLUX, fits.Header(AXIS | {"KEY": value}), overwrite=True)
    return io.read(tmp_path / "a.fits", source=SOURCE | {"facts": {name: {"keyword": "KEY", **more}}}).fact(
        name
    )[0]


@pytest.mark.parametrize(
    ("name", "text", "degrees"),
    [
        ("ra", "05:19:00.", 79.75),
        ("ra", "05 19 00.0", 79.75),
        ("ra", "5h19m00.0s", 79.75),
        ("dec", "-00 30 36", -0.51),
        ("dec", "+33d30m36.0s", 33.51),
        ("dec", "33:30.5", 33 + 30.5 / 60),
        ("dec", "33:75:00", np.nan),
        ("ra", "79.75", 79.75),
    ],
)
def test_coordinates_as_they_are_written(tmp_path, name, text, degrees):
    """What is not read is not known, and then nothing tells apart two stars of one identifier."""
    np.testing.assert_allclose(one_fact(tmp_path, name, text), degrees, rtol=1e-12)


@pytest.mark.parametrize("text", ["-", "N/A", "unknown", "OBJECT", "sky", "-9999", "0"])
def test_what_is_no_name_is_no_identifier(tmp_path, text):
    assert one_fact(tmp_path, "star_id", text) == ""
    assert one_fact(tmp_path, "exposure", "0") == "0"


def test_the_redshift_of_a_galaxy_is_no_velocity(tmp_path):
    assert np.isnan(one_fact(tmp_path, "rv", 0.0454, factor=299792.458))
    assert one_fact(tmp_path, "rv", -0.003, factor=299792.458) == pytest.approx(-899.4, abs=0.1)


@pytest.mark.parametrize(
    ("declared", "at_5000"),
    [
        ({"resolution": 2000.0}, 2.5),
        ({"fwhm": 2.5}, 2.5),
        ({"wave": (4900.0, 5100.0), "resolution": (1000.0, 3000.0)}, 2.5),
        ({"wave": (5100.0, 5200.0), "fwhm": (2.5, 9.0)}, 2.5),
        ({"place": "RES", "kind": "resolution"}, 2.0),
        ({"place": {"hdu": 1}, "kind": "fwhm_pixels"}, 1.5),
        ({"place": {"hdu": 1}, "kind": "sigma"}, 3 * 2.3548200450309493),
        ({"place": {"hdu": 9}, "kind": "sigma"}, None),
        ({"place": "NOWHERE", "kind": "fwhm"}, None),
    ],
)
def test_line_spreads(tmp_path, declared, at_5000):
    path = write(tmp_path / "x.fits", FLUX, np.full(N, 3.0), cards=AXIS | {"RES": 2500.0})
    read = io.read(path, source=SOURCE | {"line_spread": declared})
    if at_5000 is None:
        assert read.fwhm is None
    else:
        np.testing.assert_allclose(read.fwhm[0], at_5000, rtol=1e-9)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"ivar": 1, "error": 1}, "ivar or error, not both"),
        ({"mask": 1}, "mask_good must be one of"),
        ({"mask_bits": 1}, "need a mask"),
        ({"flux": {"rows": 1}}, "flux must be a place"),
        ({"facts": {"colour": "X"}}, "facts must be among"),
        ({"facts": {"ra": {"keyword": "X", "column": "Y"}}}, "the fact 'ra' needs"),
        ({"facts": {"ra": {"name": "("}}}, "the fact 'ra': "),
        ({"facts": {"ra": {"name": "x"}}}, "needs one group"),
        ({"line_spread": {"sharpness": 1}}, "line_spread must have resolution or fwhm"),
        ({"line_spread": {"fwhm": -1.0}}, "must have positive numbers"),
        ({"line_spread": {"place": "X", "kind": "width"}}, "kind must be one of"),
        ({"line_spread": {"wave": (2.0, 1.0), "fwhm": (1.0, 1.0)}}, "must increase"),
        ({"segments": ({"colour": 1},)}, "a segment has the keys"),
        ({"segments": ()}, "segments must be a sequence"),
        ({"step_keyword": "CD2_2"}, "step_keyword must be one of"),
        ({"error_kind": "odd"}, "error_kind must be one of"),
    ],
)
def test_a_wrong_declaration_is_a_mistake_of_the_configuration(tmp_path, source, message):
    path = write(tmp_path / "x.fits", FLUX, FLUX)
    with pytest.raises(ConfigError, match=message):
        io.read(path, source=SOURCE | source)


def test_the_first_layout_that_fits_is_used(tmp_path):
    wave = write(tmp_path / "wave.fits", np.stack([FLUX, WAVE + 7]))
    noise = write(tmp_path / "noise.fits", np.stack([FLUX, np.cos(WAVE)]))
    three = write(tmp_path / "three.fits", np.stack([FLUX] * 3))
    options = (
        SOURCE | {"row": 0, "wave": {"row": 1}, "when": {"rises": {"hdu": 0, "row": 1}}},
        SOURCE | {"row": 0, "when": {"shape": {"hdu": 0, "shape": (2, None)}, "keywords": {"CRVAL1": "5"}}},
    )
    source = {"format": "any", "options": options}
    assert io.read(wave, source=source).wave[0] == 5007
    assert io.read(noise, source=source).wave[0] == 5000
    with pytest.raises(
        SpectrumError, match=r"expected an image \[2, N\] in HDU 0, found 0 'PRIMARY' \[3, 300\]"
    ):
        io.read(three, source={"format": "any", "options": options[1:]})
    (tmp_path / "x.txt").write_text("1 2\n3 4\n")
    with pytest.raises(SpectrumError, match="found a text file"):
        io.read(tmp_path / "x.txt", source=source)
    with pytest.raises(ConfigError, match="when knows"):
        io.read(wave, source={"format": "any", "options": (SOURCE | {"when": {"colour": 1}},)})
    with pytest.raises(ConfigError, match="options must be sources"):
        io.read(wave, source={"format": "any", "options": ()})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("NAXIS1", b"99999999999"),
        ("NAXIS1", b"         -5"),
        ("NAXIS1", b"        296"),
        ("NAXIS ", b"        999"),
        ("BITPIX", b"         33"),
        ("BITPIX", b"          x"),
    ],
)
def test_sizes_are_held_against_the_file_before_anything_is_read(tmp_path, key, value):
    path = write(tmp_path / "x.fits", FLUX)
    content = path.read_bytes()
    at = content.index(key.encode())
    path.write_bytes(content[: at + 19] + value + content[at + 30 :])
    with pytest.raises(SpectrumError, match=r"x\.fits: expected a FITS file, found"):
        io.read(path, source=SOURCE)


def test_files_of_macos_are_no_spectra(tmp_path):
    (tmp_path / "a.fits").touch()
    (tmp_path / "._a.fits").touch()
    assert [f.name for f in io.list_files(tmp_path, "*.fits")] == ["a.fits"]
