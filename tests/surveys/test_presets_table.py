"""Surveys of tables and of many targets: the shared files, and made ones of the layouts that are not among them."""

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from remap import io, surveys
from remap.spectra import SPEED_OF_LIGHT, SpectrumError

N = 300
WAVE = 5000 + 0.5 * np.arange(N)
FLUX = np.linspace(1, 2, N).astype(np.float32)


def shared(path):
    try:
        return io.find_data(f"surveys/{path}")
    except SpectrumError as error:
        pytest.skip(str(error))


def read(name, path, **options):
    return io.read_segments(path, source=surveys.get(name).source, **options)


def write(path, *hdus, **primary):
    fits.HDUList([fits.PrimaryHDU(header=fits.Header(primary)), *hdus]).writeto(path, overwrite=True)
    return path


def velocity(spectra, line, width):
    """km/s of the deepest point near a line, of the parabola through three pixels."""
    inside = (np.abs(spectra.wave - line) < width) & spectra.valid[0]
    wave, flux = spectra.wave[inside], spectra.flux[0, inside].astype(float)
    at = int(np.clip(np.argmin(flux), 1, len(flux) - 2))
    left, middle, right = flux[at - 1 : at + 2]
    centre = wave[at] + 0.5 * (left - right) / (left - 2 * middle + right) * (wave[at] - wave[at - 1])
    return (centre / line - 1) * SPEED_OF_LIGHT


def facts(spectra, *names):
    return [spectra.fact(name)[0] for name in names]


# LAMOST, medium resolution

MRS = {
    "med-58268-HIP95119KP01_sp12-076.fits.gz": ("LAMOST J192814.09+435531.0", 9),
    "med-58269-HIP95119KP01_sp12-076.fits.gz": ("LAMOST J192814.09+435531.0", 5),
    "med-58408-TD230151N343645T01_sp01-015.fits": ("LAMOST J230311.44+321335.5", 7),
}


@pytest.mark.parametrize("name", MRS)
def test_lamost_mrs(name):
    star, exposures = MRS[name]
    path = shared(f"lamost_mrs/{name}")
    found = read("lamost_mrs", path)
    assert [s.fact("segment")[0] for s in found] == ["B", "R", *"B" * exposures, *"R" * exposures]
    assert [s.fact("exposure")[0] for s in found[:2]] == ["", ""]
    assert len({s.fact("exposure")[0] for s in found[2:]}) == exposures
    assert {s.fact("star_id")[0] for s in found} == {star}
    with fits.open(path) as hdus:
        for spectra, hdu in zip(found, hdus[1:], strict=True):
            data = hdu.data if hdu.data["LOGLAM"][0] < hdu.data["LOGLAM"][-1] else hdu.data[::-1]
            mask = data["ANDMASK" if "ANDMASK" in data.names else "PIXMASK"]
            np.testing.assert_allclose(spectra.wave, 10.0 ** data["LOGLAM"].astype(float), rtol=1e-12)
            np.testing.assert_array_equal(spectra.flux[0], data["FLUX"])
            np.testing.assert_array_equal(spectra.ivar[0], data["IVAR"])
            np.testing.assert_array_equal(spectra.valid[0], (data["IVAR"] > 0) & (mask == 0))
            assert spectra.fact("snr")[0] == hdu.header["SNR"]
    np.testing.assert_allclose(found[0].fwhm, found[0].wave / 7500)
    assert len(read("lamost_mrs", path, exposures=False)) == 2
    blue = read("lamost_mrs", path, within=(5000.0, 5300.0))
    assert {s.fact("segment")[0] for s in blue} == {"B"}


def test_lamost_mrs_with_one_row_of_arrays(tmp_path):
    columns = {"FLUX": FLUX, "IVAR": FLUX, "WAVELENGTH": WAVE[::-1].astype(np.float32)}
    hdus = []
    for name in ("COADD_R", "R-84107311"):
        mask = {"ANDMASK" if name.startswith("COADD") else "PIXMASK": (np.arange(N) == 2).astype(np.int16)}
        hdus.append(fits.BinTableHDU(Table({k: v[None] for k, v in (columns | mask).items()}), name=name))
    found = read("lamost_mrs", write(tmp_path / "med-1.fits", *hdus, DESIG="LAMOST J1"))
    assert [facts(s, "segment", "exposure", "star_id") for s in found] == [
        ["R", "", "LAMOST J1"],
        ["R", "84107311", "LAMOST J1"],
    ]
    for spectra in found:
        np.testing.assert_array_equal(spectra.wave, WAVE)
        np.testing.assert_array_equal(spectra.flux, [FLUX[::-1]])
        assert np.flatnonzero(~spectra.valid).tolist() == [N - 3]


# SDSS


@pytest.mark.parametrize(
    ("name", "exposures", "star", "rv"),
    [
        ("sdss_spec/spec-0266-51602-0031.fits", 0, "1237648721216405598", -11.07),
        ("boss_spec/spec-3586-55181-0500.fits", 14, "96714281", -30.35),
    ],
)
def test_sdss(name, exposures, star, rv):
    path = shared(name)
    found = read("sdss", path)
    assert len(found) == 1 + exposures
    with fits.open(path) as hdus:
        data = hdus[1].data
        bad = (
            data["and_mask"] & (2**0 + 2**1 + 2**2 + 2**3 + 2**18 + 2**22 + 2**23 + 2**24 + 2**25 + 2**26)
        ) != 0
        np.testing.assert_allclose(found[0].wave, 10.0 ** data["loglam"].astype(float), rtol=1e-12)
        np.testing.assert_array_equal(found[0].valid[0], ~bad & (data["ivar"] > 0))
        assert bad.any()
        sigma = np.interp(found[0].wave, found[0].wave[data["wdisp"] > 0], data["wdisp"][data["wdisp"] > 0])
        np.testing.assert_allclose(
            found[0].fwhm, 2.3548 * sigma * 1e-4 * np.log(10) * found[0].wave, rtol=1e-4
        )
        assert facts(found[0], "ra", "dec") == [hdus[0].header["PLUG_RA"], hdus[0].header["PLUG_DEC"]]
    assert facts(found[0], "star_id", "segment", "exposure") == [star, "", ""]
    assert facts(found[0], "rv", "snr") == pytest.approx([rv, {0: 7.26, 14: 54.98}[exposures]], abs=0.01)
    for spectra in found[1:]:
        assert spectra.fact("segment")[0] in ("B1", "R1")
        assert np.isnan(spectra.fact("snr")[0])
        assert spectra.fact("star_id")[0] == star
        # the spread of the exposures is that of the sum, although their pixels are not
        inside = (spectra.wave > found[0].wave[0]) & (spectra.wave < found[0].wave[-1])
        inside &= spectra.wave < 5500 if spectra.fact("segment")[0] == "B1" else spectra.wave > 6600
        ratio = spectra.fwhm[inside] / np.interp(spectra.wave[inside], found[0].wave, found[0].fwhm)
        assert np.median(ratio) == pytest.approx(1, abs=0.02)


def boss(name, mask="and_mask", upper=False, **columns):
    made = {
        "flux": FLUX,
        "loglam": np.log10(WAVE).astype(np.float32),
        "ivar": FLUX,
        mask: np.zeros(N, np.int32),
        "wdisp": np.ones(N, np.float32),
    } | columns
    return fits.BinTableHDU(Table({k.upper() if upper else k: v for k, v in made.items()}), name=name)


def spall(**columns):
    made = {
        "SN_MEDIAN_ALL": [20.0],
        "Z": [1e-4],
        "Z_ERR": [1e-5],
        "ZWARNING": [0],
        "CLASS": ["STAR"],
    } | columns
    return fits.BinTableHDU(Table(made), name="SPALL")


@pytest.mark.parametrize("upper", [False, True])
def test_sdss_v(tmp_path, upper):
    table = spall(
        SDSS_ID=[-999], CATALOGID=[27021597843567890], XCSAO_RV=[12.5], XCSAO_ERV=[1.5], RACAT=[10.0]
    )
    exposures = [boss(f"MJD_EXP_59710-0{i}", upper=upper) for i in range(2)]
    found = read("sdss", write(tmp_path / "spec-1-2-3.fits", boss("COADD", upper=upper), table, *exposures))
    assert [s.fact("exposure")[0] for s in found] == ["", "59710-00", "59710-01"]
    assert facts(found[0], "star_id", "ra", "rv", "rv_err", "snr") == [
        "27021597843567890",
        10.0,
        12.5,
        1.5,
        20.0,
    ]
    assert np.isnan(found[1].fact("snr")[0])


@pytest.mark.parametrize(
    ("columns", "known"), [({}, True), ({"ZWARNING": [4]}, False), ({"CLASS": ["QSO"], "Z": [0.8]}, False)]
)
def test_the_velocity_of_what_is_no_star_is_not_known(tmp_path, columns, known):
    (found,) = read("sdss", write(tmp_path / "spec-1-2-3.fits", boss("COADD"), spall(**columns), THING_ID=-1))
    assert found.fact("rv")[0] == pytest.approx(1e-4 * SPEED_OF_LIGHT if known else np.nan, nan_ok=True)
    assert found.fact("star_id")[0] == ""


@pytest.mark.parametrize(
    ("columns", "rv"),
    [({}, 1e-4 * SPEED_OF_LIGHT), ({"CLASS": ["QSO"]}, np.nan), ({"XCSAO_RV": [40.0]}, 40.0)],
)
def test_cross_correlation_of_what_is_no_star_or_was_not_done(tmp_path, columns, rv):
    table = spall(**{"XCSAO_RV": [0.0], "XCSAO_ERV": [0.0]} | columns)
    (found,) = read("sdss", write(tmp_path / "spec-1-2-3.fits", boss("COADD"), table, THING_ID=-1))
    assert found.fact("rv")[0] == pytest.approx(rv, nan_ok=True)


# DESI


def test_desi():
    found = read("desi", shared("desi/coadd-5-169-thru20210419.fits"))
    assert [s.fact("segment")[0] for s in found] == ["B", "R", "Z"]
    assert [s.wave[[0, -1]].round(3).tolist() for s in found] == [[3600, 5800], [5760, 7620], [7520, 9824]]
    for spectra in found:
        assert spectra.valid.any(1).tolist() == [False] * 4 + [True]
        assert spectra.valid[4].all()
        assert spectra.fact("star_id")[4] == "39633300968442591"
        assert spectra.names[4] == "coadd-5-169-thru20210419.fits[39633300968442591]"
        assert spectra.fact("snr")[4] == pytest.approx(0.53, abs=0.02)
    # DESI's design: R 2,000 to 3,400 in the blue, to 4,900 in the red and to 5,500 in the infrared arm, fibres vary
    resolution = [np.median(s.wave / s.fwhm) for s in found]
    assert 2500 < resolution[0] < 3400 < resolution[1] < 4900 < resolution[2] < 6000


def test_desi_spectra(tmp_path):
    table = Table(
        {
            "TARGETID": [39633300968442591] * 2 + [5],
            "EXPID": [85502, 85503, 85502],
            "OBJTYPE": ["TGT", "TGT", "SKY"],
        }
    )
    hdus = [fits.BinTableHDU(table, name="FIBERMAP")]
    scores = Table({"TARGETID": table["TARGETID"], "MEDIAN_CALIB_SNR_B": [3.0, 4.0, 0.0]})
    rows = np.stack([FLUX] * 3)
    for name, data in {
        "WAVELENGTH": WAVE,
        "FLUX": rows,
        "IVAR": rows,
        "MASK": np.zeros((3, N), np.int32),
    }.items():
        hdus.append(fits.ImageHDU(data, name=f"B_{name}"))
    path = write(tmp_path / "spectra-x.fits", *hdus, fits.BinTableHDU(scores, name="SCORES"))
    (found,) = read("desi", path)
    assert found.names == tuple(
        f"spectra-x.fits[{n}]" for n in ("39633300968442591,85502", "39633300968442591,85503", "5,85502")
    )
    assert found.fact("exposure").tolist() == ["85502", "85503", "85502"]
    assert found.fact("snr").tolist() == [3, 4, 0]
    assert found.valid.any(1).tolist() == [True, True, False]
    assert found.fwhm is None


# ESO


def adp(
    path,
    *,
    ucd="em.wl;obs.atmos",
    unit="angstrom",
    factor=1.0,
    specsys="BARYCENT",
    columns=("FLUX", "ERR"),
    **cards,
):
    """A phase-3 table: one row of arrays."""
    values = {"FLUX": FLUX, "ERR": np.full(N, 0.1), "FLUX_REDUCED": 10 * FLUX, "ERR_REDUCED": np.ones(N)}
    values |= {"QUAL": (np.arange(N) == 3).astype(np.int16), "NAN": np.full(N, np.nan)}
    made = [fits.Column("WAVE", f"{N}D", unit=unit, array=[WAVE * factor])]
    for name in columns:
        name, source = name if isinstance(name, tuple) else (name, name)
        kind = "I" if name == "QUAL" else "E"
        made.append(fits.Column(name, f"{N}{kind}", array=[values[source]]))
    table = fits.BinTableHDU.from_columns(made, name="SPECTRUM")
    if ucd is not None:
        table.header["TUCD1"] = ucd
    told = {"OBJECT": "HD 1", "RA": 10.0, "DEC": -20.0, "SNR": 50.0, "SPEC_RES": 40000.0, "INSTRUME": "UVES"}
    return write(path, table, **(told | {"SPECSYS": specsys} | cards))


@pytest.mark.parametrize("unit", ["angstrom", "nm", "Angstroms"])
@pytest.mark.parametrize(
    ("ucd", "medium"), [("em.wl;obs.atmos", "air"), ("em.wl", "vacuum"), (None, "air"), ("", "air")]
)
def test_eso(tmp_path, unit, ucd, medium):
    (found,) = read("eso", adp(tmp_path / "a.fits", ucd=ucd, unit=unit, factor=0.1 if unit == "nm" else 1.0))
    np.testing.assert_allclose(found.wave, WAVE, rtol=1e-12)
    np.testing.assert_array_equal(found.flux, [FLUX])
    np.testing.assert_allclose(found.ivar, 100, rtol=1e-6)
    np.testing.assert_allclose(found.fwhm, WAVE / 40000)
    assert found.medium == medium
    assert facts(found, "star_id", "ra", "dec", "snr") == ["HD 1", 10, -20, 50]


def test_eso_flux_and_error_are_a_pair(tmp_path):
    every = ("FLUX_REDUCED", "ERR_REDUCED", "FLUX", "ERR", "QUAL")
    (found,) = read("eso", adp(tmp_path / "a.fits", columns=every))
    np.testing.assert_array_equal(found.flux, [FLUX])
    np.testing.assert_allclose(found.ivar, 100, rtol=1e-6)
    assert np.flatnonzero(~found.valid).tolist() == [3]
    (found,) = read("eso", adp(tmp_path / "b.fits", columns=("FLUX_REDUCED", "ERR_REDUCED", "ERR")))
    np.testing.assert_array_equal(found.flux, [10 * FLUX])
    np.testing.assert_allclose(found.ivar, 1, rtol=1e-6)
    (found,) = read("eso", adp(tmp_path / "c.fits", columns=("FLUX", ("ERR", "NAN")), INSTRUME="HARPS"))
    assert found.ivar is None
    assert found.valid.all()


def test_eso_frames_and_media_are_not_guessed(tmp_path):
    path = adp(tmp_path / "t.fits", specsys="TOPOCENT")
    with pytest.raises(SpectrumError, match=r"t\.fits: expected SPECSYS = \(BARY\|HELIO\) in the header"):
        read("eso", path)
    (found,) = read("eso_observed", path)
    assert found.medium == "air"
    assert surveys.get("eso").frame == "heliocentric"
    assert surveys.get("eso_observed").frame == "observed"
    for name, frame, known in (("eso", "BARYCENT", True), ("eso_observed", "TOPOCENT", False)):
        path = adp(tmp_path / "r.fits", specsys=frame, **{"HIERARCH ESO DRS CCF RVC": 12.0})
        assert (read(name, path)[0].fact("rv")[0] == 12) == known  # RVC is barycentric
    with pytest.raises(SpectrumError, match=r"u\.fits: expected .*TUCD1 = "):
        read("eso", adp(tmp_path / "u.fits", ucd=None, INSTRUME="XSHOOTER"))
    with pytest.raises(SpectrumError, match=r"v\.fits: expected a unit of length for WAVE"):
        read("eso", adp(tmp_path / "v.fits", unit=None))


# Others


@pytest.mark.parametrize(
    ("name", "errors", "spread"),
    [("alpha_lyr_stis_005", True, True), ("k93_4500_0_5_rn_box", False, False), ("p330e_001", False, False)],
)
def test_calspec(name, errors, spread):
    (found,) = read("calspec", shared(f"calspec/{name}.fits"), within=(4000, 7000))
    assert found.valid.all()
    assert 4000 <= found.wave[0] < found.wave[-1] <= 7000
    assert (found.ivar is not None) == errors
    assert (found.fwhm is not None) == spread


def test_calspec_outside_of_what_can_be(tmp_path):
    with pytest.raises(SpectrumError, match="expected wavelengths within 500 to"):
        read("calspec", shared("calspec/k93_4500_0_5_rn_box.fits"))
    table = Table(
        {
            "WAVELENGTH": WAVE.astype(np.float32),
            "FLUX": FLUX,
            "DATAQUAL": (np.arange(N) != 4).astype(np.int16),
        }
    )
    (found,) = read("calspec", write(tmp_path / "x.fits", fits.BinTableHDU(table), TARGETID="VEGA"))
    assert np.flatnonzero(~found.valid).tolist() == [4]
    assert found.fact("star_id")[0] == "VEGA"


def test_hires():
    path = shared("hires/rj59.1926_adj.fits")
    (found,) = read("hires", path)
    data = fits.getdata(path, 1)
    np.testing.assert_array_equal(found.wave, data["w"])
    np.testing.assert_array_equal(found.valid[0], np.isfinite(data["s"]))
    np.testing.assert_allclose(found.ivar[found.valid], data["serr"][found.valid[0]] ** -2.0)
    assert found.fact("rv")[0] == 0


def test_ferre():
    (found,) = read("ferre", next(shared("ferre").iterdir()))
    assert found.wave.size == 36476
    assert found.valid.all()
    assert (found.ivar, found.fwhm) == (None, None)


@pytest.mark.parametrize(
    ("survey", "name", "lines", "expected", "within"),
    [
        ("hires", "hires/rj59.1926_adj.fits", (5889.951, 5895.924, 6122.217), 0, 3),  # air
        (
            "ferre",
            "ferre/FERRE_FEH+0.00_AFE+0.00_VMIC+0.00_TEFF+5750_LOGG+4.50.fits",
            (6562.797, 5183.604),
            0,
            3,
        ),
        (
            "lamost_mrs",
            "lamost_mrs/med-58408-TD230151N343645T01_sp01-015.fits",
            (5185.05, 6564.61),
            -50,
            5,
        ),  # vacuum
        ("sdss", "boss_spec/spec-3586-55181-0500.fits", (4862.68, 6564.61), -30.35, 25),
    ],
)
def test_lines_lie_where_medium_and_frame_put_them(survey, name, lines, expected, within):
    """The other medium were 83 km/s off. Both arms of LAMOST's star agree; SDSS has pixels of 69 km/s."""
    found = read(survey, shared(name), exposures=False)
    for line in lines:
        (spectra,) = (s for s in found if s.wave[0] < line < s.wave[-1])
        assert velocity(spectra, line, 4) == pytest.approx(expected, abs=within)


# What is no optical spectrum of these kinds


@pytest.mark.parametrize("name", ["crires/220325_1.fits", "nirspec/NS.20011009.54395_60_flux_tbl.fits"])
@pytest.mark.parametrize("survey", ["eso", "sdss", "lamost_mrs", "desi", "calspec", "hires"])
def test_files_of_others_are_refused_by_name(name, survey):
    path = shared(name)
    with pytest.raises(SpectrumError, match=rf"{path.name}: expected .*found "):
        read(survey, path)


def test_gaia_xp_is_no_fits():
    with pytest.raises(SpectrumError, match=r"expected a FITS file.*found"):
        read("lamost_mrs", shared("gaia_xp/SampledMeanSpectrum.csv"))


TABLE = {"format": "table", "medium": "vacuum", "axis": "linear", "wave_unit": "Angstrom"}


def test_nirspec_lies_outside_the_optical():
    path = shared("nirspec/NS.20011009.54395_60_flux_tbl.fits")
    source = TABLE | {"wave_column": "wave (A)", "flux_column": "flux (cnts)", "error_column": "noise (cnts)"}
    assert io.read(path, source=source).wave[0] == pytest.approx(12614.8, abs=0.1)
    with pytest.raises(
        SpectrumError, match=r"expected pixels within 4000 to 7000 Å, found 12614.8 to 12801.7 Å"
    ):
        io.read(path, source=source, within=(4000, 7000))
    with pytest.raises(SpectrumError, match=r"expected wave \(A\) in nm as declared, found 'A'"):
        io.read(path, source=source | {"wave_unit": "nm"})


def test_crires_has_orders_in_columns_and_no_units():
    path = shared("crires/220325_1.fits")
    orders = [
        {"hdu": f"CHIP{chip}.INT1", "segment": f"{order}-{chip}"}
        | {f"{what}_column": f"0{order}_01_{column}" for what, column in (("wave", "WL"), ("flux", "SPEC"))}
        for order in (2, 3)
        for chip in (1, 2, 3)
    ]
    source = TABLE | {"wave_unit": "nm", "wave_column": "-", "flux_column": "-", "segments": orders}
    found = io.read_segments(path, source=source)
    assert [s.fact("segment")[0] for s in found] == ["2-1", "2-2", "2-3", "3-1", "3-2", "3-3"]
    assert found[0].wave[0] == pytest.approx(24533.4, abs=0.1)
    with pytest.raises(SpectrumError, match=r"expected pixels within 4000 to 7000 Å, found \d+"):
        io.read_segments(path, source=source, within=(4000, 7000))


def test_stis_orders_are_rows():
    path = shared("iraf/odbue5030_x1d.fits")
    source = TABLE | {
        "wave_column": "WAVELENGTH",
        "flux_column": "FLUX",
        "error_column": "ERROR",
        "segments": ({"rows": (0, None), "segment_column": "SPORDER"},),
    }
    found = io.read_segments(path, source=source)
    assert len(found) == 40
    assert [s.fact("segment")[0] for s in found[:2]] == ["87", "88"]
    assert all(s.wave.size == 1024 for s in found)


# What a file is


@pytest.mark.parametrize(
    ("name", "best"),
    [
        ("lamost_mrs/med-58408-TD230151N343645T01_sp01-015.fits", "lamost_mrs"),
        ("sdss_spec/spec-0266-51602-0031.fits", "sdss"),
        ("boss_spec/spec-3586-55181-0500.fits", "sdss"),
        ("desi/coadd-5-169-thru20210419.fits", "desi"),
        ("calspec/alpha_lyr_stis_005.fits", "calspec"),
        ("calspec/p330e_001.fits", "calspec"),
        ("hires/rj59.1926_adj.fits", "hires"),
        ("ferre/FERRE_FEH+0.00_AFE+0.00_VMIC+0.00_TEFF+5750_LOGG+4.50.fits", "ferre"),
        ("crires/220325_1.fits", None),
        ("nirspec/NS.20011009.54395_60_flux_tbl.fits", None),
    ],
)
def test_files_are_told_apart(name, best):
    found = surveys.identify(shared(name))
    assert [m.name for m in found][:1] == ([best] if best else [])


@pytest.mark.parametrize(
    ("specsys", "best"), [("BARYCENT", "eso"), ("HELIOCEN", "eso"), ("TOPOCENT", "eso_observed")]
)
def test_phase_3_tables_are_told_apart_by_their_frame(tmp_path, specsys, best):
    path = adp(tmp_path / "a.fits", specsys=specsys, columns=("FLUX_REDUCED",), PRODCATG="SCIENCE.SPECTRUM")
    assert [m.name for m in surveys.identify(path)] == [best]
