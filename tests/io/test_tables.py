"""Tables: rows, segments, units, masks, line spreads and facts."""

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from remap import io
from remap.config import ConfigError
from remap.spectra import SpectrumError

N = 300
WAVE = 5000 + 0.5 * np.arange(N)
FLUX = np.linspace(1, 2, N)
TABLE = {
    "format": "table",
    "medium": "vacuum",
    "axis": "linear",
    "wave_unit": "Angstrom",
    "wave_column": "WAVE",
    "flux_column": "FLUX",
}


def hdu(name=None, **columns):
    """A table of columns: arrays, or (array, unit), or a `fits.Column`."""
    made = []
    for key, values in ({"WAVE": WAVE, "FLUX": FLUX} | columns).items():
        if isinstance(values, fits.Column):
            made.append(values)
            continue
        values, unit = values if isinstance(values, tuple) else (values, None)
        values = np.asarray(values)
        kind = fits.column.NUMPY2FITS[values.dtype.str[1:]]
        size = values[0].size if values.ndim > 1 else ""
        made.append(fits.Column(key, f"{size}{kind}", unit=unit, array=values))
    return fits.BinTableHDU.from_columns(made, name=name)


def write(path, *hdus, **primary):
    fits.HDUList([fits.PrimaryHDU(header=fits.Header(primary)), *hdus]).writeto(path, overwrite=True)
    return path


def one(path, **source):
    (spectra,) = io.read_segments(path, source=TABLE | source)
    return spectra


# Rows
EVERY = {"segments": ({"rows": (0, None), "segment": "{n}"},)}


def test_a_row_of_many_is_chosen_or_each_is_a_segment(tmp_path):
    rows = {
        "WAVE": WAVE + 200 * np.arange(3)[:, None],
        "FLUX": FLUX + np.arange(3)[:, None],
        "ORDER": np.array([9, 8, 7]),
    }
    path = write(tmp_path / "a.fits", hdu(**rows))
    with pytest.raises(
        SpectrumError, match=r"a\.fits: expected a column 'WAVE' of N numbers, .*; row says which"
    ):
        io.read(path, source=TABLE)
    read = io.read(path, source=TABLE | {"row": 1})
    np.testing.assert_array_equal(read.wave, WAVE + 200)
    np.testing.assert_array_equal(read.flux, [FLUX + 1])
    every = io.read_segments(path, source=TABLE | EVERY | {"segment_column": "ORDER"})
    assert [s.facts["segment"].tolist() for s in every] == [["9"], ["8"], ["7"]]
    assert [s.flux[0, 0] for s in every] == [1, 2, 3]
    with pytest.raises(SpectrumError, match=r"a\.fits: .*read_segments"):
        io.read(path, source=TABLE | EVERY)
    with pytest.raises(SpectrumError, match="expected row 3 of the column 'WAVE', found 3 rows"):
        io.read(path, source=TABLE | {"row": 3})
    within = io.read_segments(path, source=TABLE | EVERY, within=(5390, 5400))
    assert [s.facts["segment"].tolist() for s in within] == [["3"]]


@pytest.mark.parametrize("row", [None, 1])
def test_columns_of_variable_length(tmp_path, row):
    lengths = (N,) if row is None else (5, N, 7)
    cells = {
        name: np.array([values[:n] for n in lengths] + [None], dtype=object)[:-1]
        for name, values in {"WAVE": WAVE, "FLUX": FLUX}.items()
    }
    columns = {k: fits.Column(k, "PD()", array=v) for k, v in cells.items()}
    path = write(tmp_path / "v.fits", hdu(**columns))
    read = one(path, row=row)
    np.testing.assert_array_equal(read.wave, WAVE)
    np.testing.assert_array_equal(read.flux, [FLUX])
    if row is not None:
        with pytest.raises(SpectrumError, match="row says which row is meant"):
            one(path)


def test_cells_of_shape_n_1(tmp_path):
    column = fits.Column("FLUX", f"{N}D", dim=f"(1,{N})", array=FLUX.reshape(1, N, 1))
    read = one(write(tmp_path / "a.fits", hdu(WAVE=WAVE[None], FLUX=column)))
    np.testing.assert_array_equal(read.flux, [FLUX])


# Axes


def test_axes_that_decrease_tie_or_are_padded(tmp_path):
    mask = (np.arange(N) == 7).astype(np.int16)
    columns = {"FLUX": FLUX[::-1], "IVAR": FLUX[::-1], "MASK": mask[::-1], "W": 10 * FLUX[::-1]}
    keys = {
        "ivar_column": "IVAR",
        "mask_column": "MASK",
        "mask_good": "zero",
        "line_spread": {"place": {"column": "W"}, "kind": "fwhm"},
    }
    read = one(write(tmp_path / "a.fits", hdu(WAVE=WAVE[::-1], **columns)), **keys)
    np.testing.assert_array_equal(read.wave, WAVE)
    np.testing.assert_array_equal(read.flux, [FLUX])
    np.testing.assert_array_equal(read.ivar, [FLUX])
    np.testing.assert_allclose(read.fwhm, 10 * FLUX)
    assert np.flatnonzero(~read.valid).tolist() == [7]
    for value in (0.0, np.nan):
        wave = WAVE.copy()
        wave[:3] = wave[-5:] = value
        np.testing.assert_array_equal(one(write(tmp_path / "b.fits", hdu(WAVE=wave))).wave, WAVE[3:-5])
        wave[50] = value
        path = write(tmp_path / "b.fits", hdu(WAVE=wave))
        with pytest.raises(SpectrumError, match=r"expected a wavelength in every pixel .* at pixel 50"):
            one(path)


def test_float32_ties_are_merged_by_inverse_variance(tmp_path):
    wave = (50000 + 0.002 * np.arange(N)).astype(np.float32)
    ties = np.flatnonzero(np.diff(wave) == 0)
    assert ties.size
    ivar = np.where(np.arange(N) % 2, 1.0, 3.0)
    read = one(write(tmp_path / "a.fits", hdu(WAVE=wave, IVAR=ivar)), ivar_column="IVAR")
    assert read.wave.size == N - ties.size
    values, starts = np.unique(wave, return_index=True)
    np.testing.assert_allclose(read.wave, values, rtol=1e-7)
    total = np.add.reduceat(ivar, starts)
    np.testing.assert_allclose(read.ivar, [total])
    np.testing.assert_allclose(read.flux, [np.add.reduceat(FLUX * ivar, starts) / total])


# Units


@pytest.mark.parametrize(
    "unit", ["Hz", "cm-1", "1/cm", "km/s", "eV", "GHz", "KM/S", "CM**-1", "keV", "pixel"]
)
@pytest.mark.parametrize("axis", ["linear", "log10"])
def test_what_is_no_wavelength_is_refused_with_the_key_to_set(tmp_path, unit, axis):
    path = write(tmp_path / "x.fits", hdu(WAVE=(WAVE if axis == "linear" else np.log10(WAVE), unit)))
    with pytest.raises(
        SpectrumError, match=r"x\.fits: expected wavelengths in WAVE, found the unit .* set wave_column"
    ):
        one(path, axis=axis)


@pytest.mark.parametrize("unit", ["nm", "NM", "um", "micron", "MICRONS", "m", "[nm]", "Nanometers"])
def test_another_unit_of_length_than_declared_is_refused(tmp_path, unit):
    path = write(tmp_path / "x.fits", hdu(WAVE=(WAVE, unit)))
    with pytest.raises(
        SpectrumError, match=r"expected WAVE in Angstrom as declared, found .*; set wave_unit"
    ):
        one(path)


@pytest.mark.parametrize(
    "unit", ["A", "ANGSTROMS", "angstrom", "Ang", "[Angstrom]", "0.1 nm", "NONE", "", "???"]
)
def test_spellings_of_the_declared_unit_and_what_nobody_knows(tmp_path, unit):
    path = write(tmp_path / "x.fits", hdu(WAVE=(WAVE, unit)))
    np.testing.assert_array_equal(one(path).wave, WAVE)


def test_a_unit_in_the_name_of_the_column(tmp_path):
    for name, good in (
        ("wave (A)", True),
        ("lambda [Angstrom]", True),
        ("wave (nm)", False),
        ("wave (obs)", True),
    ):
        path = write(tmp_path / "x.fits", hdu(**{name: WAVE}))
        if good:
            np.testing.assert_array_equal(one(path, wave_column=name).wave, WAVE)
        else:
            with pytest.raises(
                SpectrumError, match=r"expected wave \(nm\) in Angstrom as declared, found 'nm'"
            ):
                one(path, wave_column=name)


@pytest.mark.parametrize(
    ("unit", "axis", "right"),
    [
        ("log10(Angstrom)", "log10", True),
        ("LOG(A)", "log10", True),
        ("dex(Angstrom)", "log10", True),
        ("ln(Angstrom)", "ln", True),
        ("Angstrom", "log10", True),
        ("log(Angstrom)", "linear", False),
        ("ln(Angstrom)", "log10", False),
        ("log10(nm)", "log10", False),
        ("log10(Hz)", "log10", False),
    ],
)
def test_units_of_logarithms(tmp_path, unit, axis, right):
    values = {"linear": WAVE, "ln": np.log(WAVE), "log10": np.log10(WAVE)}[axis]
    path = write(tmp_path / "x.fits", hdu(WAVE=(values, unit)))
    if right:
        np.testing.assert_allclose(one(path, axis=axis).wave, WAVE, rtol=1e-12)
    else:
        with pytest.raises(SpectrumError, match=r"set (axis|wave_unit|wave_column)"):
            one(path, axis=axis)


def test_the_unit_that_the_column_states(tmp_path):
    for unit, factor in (("nm", 10), ("angstrom", 1), ("um", 1e4), ("ANGSTROMS", 1)):
        path = write(tmp_path / "x.fits", hdu(WAVE=(WAVE / factor, unit)))
        np.testing.assert_allclose(one(path, wave_unit="column").wave, WAVE, rtol=1e-12)
    for unit in (None, "Hz", "???"):
        path = write(tmp_path / "x.fits", hdu(WAVE=(WAVE, unit)))
        with pytest.raises(SpectrumError, match="expected a unit of length for WAVE in the file"):
            one(path, wave_unit="column")


def test_wavelengths_in_nm_of_which_the_file_says_nothing(tmp_path):
    path = write(tmp_path / "x.fits", hdu(WAVE=WAVE / 10))
    with pytest.raises(
        SpectrumError, match=r"found 500 to 514.95 Å .*; with wave_unit='nm' they would lie there"
    ):
        io.read(path, source=TABLE, within=(4000, 7000))
    np.testing.assert_allclose(
        io.read(path, source=TABLE | {"wave_unit": "nm"}, within=(4000, 7000)).wave, WAVE
    )


# Masks, nulls, errors


@pytest.mark.parametrize("kind", ["u1", "i2", "i4", "i8", "u2", "u4", "u8"])
@pytest.mark.parametrize("bit", [0, 7, 15, 20, 31, 40, 63])
def test_bits_that_the_column_cannot_hold_are_not_set(tmp_path, kind, bit):
    width = 8 * np.dtype(kind).itemsize
    mask = np.zeros(N, f"u{width // 8}")
    mask[3] = 1 << (bit if bit < width else 0)
    mask[4] = 1 << (1 if bit != 1 else 2)
    mask = mask.view(kind) if kind[0] == "i" else mask
    path = tmp_path / "x.fits"
    Table({"WAVE": WAVE, "FLUX": FLUX, "MASK": mask}).write(path)
    read = one(path, mask_column="MASK", mask_good="zero", mask_bits=1 << bit)
    assert np.flatnonzero(~read.valid).tolist() == ([3] if bit < width else [])


def test_nulls_are_numbers_of_the_file_before_its_scaling(tmp_path):
    column = fits.Column("FLUX", "I", null=17, array=np.arange(N, dtype=np.int16))
    path = write(tmp_path / "x.fits", hdu(FLUX=column))
    fits.setval(path, "TSCAL2", value=0.5, ext=1)
    fits.setval(path, "TZERO2", value=100.0, ext=1)
    read = one(path)
    assert np.flatnonzero(~read.valid).tolist() == [17]
    np.testing.assert_allclose(read.flux[read.valid], 100 + 0.5 * np.delete(np.arange(N), 17))


def test_errors_that_are_not_known(tmp_path):
    for nothing in (np.nan, 0.0):
        path = write(tmp_path / "x.fits", hdu(ERR=np.full(N, nothing)))
        assert not one(path, error_column="ERR").valid.any()
        read = one(path, error_column="ERR", error_optional=True)
        assert read.valid.all()
        assert read.ivar is None
    assert one(path, error_column="SIGMA", error_optional=True).ivar is None
    error = np.full(N, 0.1)
    error[5] = np.nan
    read = one(write(tmp_path / "x.fits", hdu(ERR=error)), error_column="ERR", error_optional=True)
    assert np.flatnonzero(~read.valid).tolist() == [5]


def test_systematic_errors_are_added_in_quadrature(tmp_path):
    path = write(tmp_path / "x.fits", hdu(ERR=np.full(N, 0.3), SYS=np.where(np.arange(N) == 2, np.nan, 0.4)))
    read = one(path, error_column="ERR", systematic_column="SYS")
    np.testing.assert_allclose(read.ivar[read.valid], 4)
    assert np.flatnonzero(~read.valid).tolist() == [2]


# Segments


def survey(path):
    """Two arms, their exposures (the red ones decrease), and a table that is no spectrum."""
    hdus = [
        hdu("COADD_B", IVAR=np.full(N, 4.0), ANDMASK=(np.arange(N) == 1).astype(np.int16)),
        hdu("COADD_R", WAVE=WAVE + 1000, IVAR=np.full(N, 4.0), ANDMASK=np.zeros(N, np.int16)),
        fits.BinTableHDU(Table({"NAME": ["a"]}), name="B-LIST"),
    ]
    for arm, shift in (("B", 0), ("R", 1000)):
        for number in (11, 12):
            columns = {"IVAR": np.full(N, 2.0), "PIXMASK": (np.arange(N) == number).astype(np.int16)}
            wave = (WAVE + shift)[:: -1 if arm == "R" else 1]
            exposure = hdu(f"{arm}-000{number}", WAVE=wave, **columns)
            exposure.header["SNR"] = float(number)
            hdus.append(exposure)
    return write(path, *hdus, DESIG="A 1", SNR=99.0)


SURVEY = TABLE | {
    "ivar_column": "IVAR",
    "mask_column": "ANDMASK",
    "mask_good": "zero",
    "facts": {"star_id": "DESIG", "snr": "SNR"},
    "segments": (
        {"hdus": r"COADD_(?P<segment>\w)"},
        {"hdus": r"(?P<segment>[BR])-(?P<exposure>\d+)", "mask_column": "PIXMASK"},
    ),
}


def test_segments(tmp_path):
    read = io.read_segments(survey(tmp_path / "s.fits"), source=SURVEY)
    found = [(s.fact("segment")[0], s.fact("exposure")[0]) for s in read]
    exposures = [(arm, f"000{n}") for arm in "BR" for n in (11, 12)]
    assert found == [("B", ""), ("R", ""), *exposures]
    assert [s.wave[0] for s in read] == [5000, 6000, 5000, 5000, 6000, 6000]
    assert [np.flatnonzero(~s.valid).tolist() for s in read] == [[1], [], [11], [12], [N - 12], [N - 13]]
    assert [s.fact("snr")[0] for s in read] == [99, 99, 11, 12, 11, 12]
    assert {s.fact("star_id")[0] for s in read} == {"A 1"}
    assert {s.names for s in read} == {("s.fits",)}


def test_segments_of_a_range(tmp_path):
    path = survey(tmp_path / "s.fits")
    read = io.read_segments(path, source=SURVEY, within=(6000, 6010))
    assert {s.fact("segment")[0] for s in read} == {"R"}
    assert {s.wave.size for s in read} == {21}
    with pytest.raises(
        SpectrumError, match=r"s\.fits: expected pixels within 7000 to 7100 Å, found 6000 to 6149.5 Å"
    ):
        io.read_segments(path, source=SURVEY, within=(7000, 7100))


def test_segments_that_are_not_there(tmp_path):
    path = survey(tmp_path / "s.fits")
    with pytest.raises(SpectrumError, match=r"s\.fits: expected segments, found none among 0 'PRIMARY'"):
        io.read_segments(path, source=TABLE | {"segments": [{"hdus": "SPEC.*"}]})
    with pytest.raises(SpectrumError, match=r"s\.fits: expected a column 'WAVE', found NAME"):
        io.read_segments(path, source=TABLE | {"segments": [{"hdus": "B-.*"}]})
    (read,) = io.read_segments(
        path, source=TABLE | {"segments": [{"hdu": 2, "segment": "red", "exposure": 7}]}
    )
    assert (read.fact("segment")[0], read.fact("exposure")[0]) == ("red", "7")


def test_facts_of_some_segments(tmp_path):
    path = survey(tmp_path / "s.fits")
    first, second = SURVEY["segments"]
    changed = (first, second | {"facts": {"snr": None, "rv": {"value": 7.0}}})
    read = io.read_segments(path, source=SURVEY | {"segments": changed})
    assert [s.fact("snr")[0] for s in read[:2]] == [99, 99]
    assert np.isnan([s.fact("snr")[0] for s in read[2:]]).all()
    assert [s.fact("rv")[0] for s in read[2:]] == [7] * 4
    assert {s.fact("star_id")[0] for s in read} == {"A 1"}
    assert len(io.read_segments(path, source=SURVEY, exposures=False)) == 2


def test_facts_that_count_only_in_some_rows(tmp_path):
    table = Table({"Z": [1e-4], "CLASS": ["STAR  "], "ZWARNING": [0], "ID": [-1]})
    where = ({"column": "ZWARNING", "values": (0,)}, {"column": "CLASS", "values": ("STAR",)})
    facts = {
        "rv": {"column": "Z", "hdu": 2, "factor": 299792.458, "where": where},
        "star_id": {"column": "ID", "hdu": 2, "missing": (-1,)},
    }
    for change in ({}, {"ZWARNING": [4]}, {"CLASS": ["GALAXY"]}):
        for name, values in change.items():
            table[name] = values
        path = write(tmp_path / "x.fits", hdu(), fits.BinTableHDU(table))
        read = one(path, facts=facts)
        assert read.fact("star_id")[0] == ""
        assert np.isclose(read.fact("rv")[0], 29.9792458) == (not change)
        table["ZWARNING"] = [0]
    with pytest.raises(ConfigError, match="where of the fact 'rv' must have a column and values"):
        one(path, facts={"rv": {"column": "Z", "where": {"column": "CLASS"}}})


# Line spreads


def test_a_line_spread_in_units_of_the_logarithm(tmp_path):
    sigma = np.full(N, 1.2)
    sigma[[0, 5]] = 0.0, np.nan  # not known: that of the neighbours
    place = {"place": {"column": "WDISP"}, "kind": "sigma_log10", "factor": 1e-4}
    for wave in (WAVE, WAVE[::2]):  # whatever the step of the file is
        path = write(tmp_path / "x.fits", hdu(WAVE=wave, FLUX=FLUX[: wave.size], WDISP=sigma[: wave.size]))
        read = one(path, line_spread=place)
        np.testing.assert_allclose(read.fwhm, 2.3548 * 1.2e-4 * np.log(10) * read.wave, rtol=1e-4)
    with pytest.raises(ConfigError, match="factor of line_spread must be positive"):
        one(path, line_spread=place | {"factor": 0})


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"segments": ({"name": "x"},)}, "a segment has the keys"),
        ({"segments": ()}, "segments must be a sequence"),
        ({"segments": ({"hdus": "("},)}, "in hdus"),
        ({"segments": ({"hdu": 1, "medium": "air"},)}, "a segment has the keys"),
        ({"segments": ({"hdu": 1, "mask_column": "M"},)}, "mask_good must be one of"),
        ({"row": -1}, "row must be 0 or more"),
        ({"row": "some"}, "row must be int"),
        ({"systematic_column": "S"}, "needs an error_column"),
        ({"error_optional": 2}, "error_optional must be one of"),
        ({"wave_column": 3}, "wave_column must be str"),
        ({"mask_column": "M", "mask_good": "zero", "mask_bits": "7"}, "mask_bits must be int"),
        ({"wave_unit": "row"}, "wave_unit must be a unit of length"),
        ({"facts": {"age": "AGE"}}, "facts must be among"),
        ({"line_spread": {"place": {"column": "W"}, "kind": "width"}}, "kind must be one of"),
    ],
)
def test_declarations_that_cannot_be_right(tmp_path, source, message):
    with pytest.raises(ConfigError, match=message):
        io.read_segments(write(tmp_path / "x.fits", hdu()), source=TABLE | source)


def test_rows_of_another_width_than_their_columns(tmp_path):
    path = write(tmp_path / "x.fits", hdu())
    content = path.read_bytes()
    path.write_bytes(content.replace(b"NAXIS1  =                   16", b"NAXIS1  =                   17"))
    with pytest.raises(SpectrumError, match=r"x\.fits: expected"):
        one(path)
