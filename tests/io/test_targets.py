"""Files with many targets: rows, names, what tables say, blanked rows and the line spread of resolution matrices."""

import tracemalloc

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from remap import io
from remap.config import ConfigError
from remap.io.targets import matrix_fwhm
from remap.spectra import SpectrumError

N, S = 40, 4
WAVE = 5000 + 0.8 * np.arange(N)
SIGMA = 0.8  # pixels, of the resolution matrices below
TARGETS = np.array([39633297352951412, -17, 39633300968442591, 12])
SOURCE = {
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
    "no_target": {"column": "OBJTYPE", "values": ("SKY", "BAD")},
    "facts": {
        "star_id": {"column": "TARGETID"},
        "exposure": {"column": "EXPID"},
        "ra": {"column": "TARGET_RA"},
        "snr": {"column": "SNR_{segment}", "hdu": "SCORES"},
    },
}


def flux(shift):
    return (shift + np.arange(S)[:, None] + np.linspace(1, 2, N)).astype(np.float32)


def write(path, *, arms="BR", scores=TARGETS, drop=(), unit="Angstrom", **changes):
    """Row 1 is blanked, row 3 has no target, and pixel 5 of row 2 is masked."""
    ivar = np.full((S, N), 4.0, np.float32)
    ivar[1] = 0
    mask = np.zeros((S, N), np.uint32)
    mask[2, 5] = 2**31
    x = np.arange(-5, 6)
    matrix = np.broadcast_to(np.exp(-0.5 * (x / SIGMA) ** 2)[:, None], (S, 11, N)).astype(np.float32)
    table = Table(
        {"TARGETID": TARGETS, "TARGET_RA": [10.0, 20.0, 30.0, 40.0], "OBJTYPE": ["TGT", "TGT", "TGT", "SKY"]}
        | changes.pop("FIBERMAP", {})
    )
    hdus = [fits.PrimaryHDU(), fits.BinTableHDU(table, name="FIBERMAP")]
    for i, arm in enumerate(arms):
        images = {"WAVELENGTH": WAVE + 1000 * i, "FLUX": np.where(ivar > 0, flux(100 * i), 0), "IVAR": ivar}
        for name, data in (images | {"MASK": mask, "RESOLUTION": matrix} | changes).items():
            if name not in drop:
                hdus.append(fits.ImageHDU(data, name=f"{arm}_{name}"))
                if name == "WAVELENGTH":
                    hdus[-1].header["BUNIT"] = unit
    columns = {"TARGETID": scores} | {
        f"SNR_{arm}": 10.0 * (i + 1) + np.arange(len(scores)) for i, arm in enumerate(arms)
    }
    hdus.append(fits.BinTableHDU(Table(columns), name="SCORES"))
    fits.HDUList(hdus).writeto(path, overwrite=True)
    return path


def test_every_arm_has_every_target(tmp_path):
    blue, red = io.read_segments(write(tmp_path / "c.fits"), source=SOURCE)
    for i, arm in enumerate((blue, red)):
        np.testing.assert_array_equal(arm.wave, WAVE + 1000 * i)
        np.testing.assert_array_equal(arm.flux[[0, 2]], flux(100 * i)[[0, 2]])
        np.testing.assert_array_equal(arm.ivar[[0, 2]], 4)
        assert arm.valid.sum(1).tolist() == [N, 0, N - 1, 0]
        assert not arm.valid[2, 5]
        assert arm.names == tuple(f"c.fits[{t}]" for t in TARGETS)
        assert arm.fact("star_id").tolist() == [str(t) for t in TARGETS]
        assert arm.fact("ra").tolist() == [10, 20, 30, 40]
        assert arm.fact("exposure").tolist() == [""] * S
        assert arm.fact("segment").tolist() == ["BR"[i]] * S
        np.testing.assert_allclose(arm.fact("snr"), 10 * (i + 1) + np.arange(S))
        np.testing.assert_allclose(arm.fwhm, 2.3548 * SIGMA * 0.8, rtol=1e-3)


def test_several_exposures_of_a_target(tmp_path):
    same = {"TARGETID": [7, 7, 8, 8], "EXPID": [101, 102, 101, 102]}
    (blue,) = io.read_segments(
        write(tmp_path / "s.fits", arms="B", FIBERMAP=same, scores=[7, 7, 8, 8]), source=SOURCE
    )
    assert blue.names == ("s.fits[7,101]", "s.fits[7,102]", "s.fits[8,101]", "s.fits[8,102]")
    assert blue.fact("star_id").tolist() == ["7", "7", "8", "8"]
    assert blue.fact("exposure").tolist() == ["101", "102", "101", "102"]
    (blue,) = io.read_segments(
        write(tmp_path / "t.fits", arms="B", FIBERMAP={"TARGETID": [7, 7, 8, 9]}), source=SOURCE
    )
    assert blue.names == ("t.fits[7#0]", "t.fits[7#1]", "t.fits[8]", "t.fits[9]")


def test_tables_of_other_rows_say_nothing(tmp_path):
    for scores in (TARGETS[::-1], TARGETS[:2]):
        (blue,) = io.read_segments(write(tmp_path / "c.fits", arms="B", scores=scores), source=SOURCE)
        assert np.isnan(blue.fact("snr")).all()


def test_all_rows_blanked_and_nothing_known_of_the_line_spread(tmp_path):
    (blue,) = io.read_segments(write(tmp_path / "c.fits", arms="B", IVAR=np.zeros((S, N))), source=SOURCE)
    assert not blue.valid.any()
    assert blue.fwhm is None
    (blue,) = io.read_segments(write(tmp_path / "c.fits", arms="B", drop=("RESOLUTION",)), source=SOURCE)
    assert blue.valid.any()
    assert blue.fwhm is None
    constant = SOURCE | {"line_spread": {"resolution": 4000}}
    (blue,) = io.read_segments(tmp_path / "c.fits", source=constant)
    np.testing.assert_allclose(blue.fwhm, blue.wave / 4000)


def assert_rows(found, whole, rows):
    """Pieces of both arms are those of the whole, with its line spread."""
    for part, all_of_it in zip(found, whole, strict=True):
        expected = all_of_it.rows(np.array(rows))
        assert part.names == expected.names
        for field in ("wave", "flux", "ivar", "valid", "fwhm"):
            np.testing.assert_array_equal(getattr(part, field), getattr(expected, field))
        for fact in ("star_id", "exposure", "ra", "snr", "segment"):
            np.testing.assert_array_equal(part.fact(fact), expected.fact(fact))


@pytest.mark.parametrize("name", ["c.fits", "c.fits.gz"])
def test_pieces_are_those_of_the_whole_with_all_rows_of_a_target(tmp_path, name):
    x, width = np.arange(-5, 6)[:, None], np.array([0.7, 0.8, 0.9, 1.0])
    matrix = np.broadcast_to(np.exp(-0.5 * (x / width[:, None, None]) ** 2), (S, 11, N)).astype(np.float32)
    same = {"TARGETID": [7, 8, 7, 9], "EXPID": [101, 101, 102, 101], "OBJTYPE": ["TGT"] * 4}
    path = write(tmp_path / name, FIBERMAP=same, scores=same["TARGETID"], RESOLUTION=matrix)
    whole = io.read_segments(path, source=SOURCE)
    for together, rows in ((True, ([0, 2], [1], [3])), (False, ([0], [1], [2], [3]))):
        pieces = io.split(path, source=SOURCE, most=1, together=together)
        if name.endswith("gz"):  # nothing of it can be unpacked alone
            assert [piece.spectra for piece in pieces] == [S]
        for i, own in enumerate(rows):
            more = {"rows": (i, i + 1), "together": together}
            assert_rows(io.read_segments(path, source=SOURCE, **more), whole, own)
            assert [star.name for star in io.stars(path, source=SOURCE, **more)] == [
                str(same["TARGETID"][own[0]])
            ]
    assert io.stars(path, source=SOURCE) == tuple(map(io.Star, "789"))
    if name == "c.fits":
        assert [tuple(piece) for piece in io.split(path, source=SOURCE, most=3)] == [(0, 2, 3), (2, 3, 1)]
    with pytest.raises(SpectrumError, match="expected targets 1 to 4, found 3"):
        io.read_segments(path, source=SOURCE, rows=(1, 4))


def test_of_many_matrices_a_sample_is_looked_at_whatever_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("remap.io.targets.SAMPLE", 2)
    x, width = np.arange(-5, 6)[:, None], np.array([0.7, 2.0, 2.0, 0.9])
    matrix = np.broadcast_to(np.exp(-0.5 * (x / width[:, None, None]) ** 2), (S, 11, N)).astype(np.float32)
    path = write(tmp_path / "c.fits", FIBERMAP={"OBJTYPE": ["TGT"] * 4}, RESOLUTION=matrix)
    whole = io.read_segments(path, source=SOURCE)
    np.testing.assert_allclose(whole[0].fwhm, 2.3548 * 0.8 * 0.8, rtol=1e-3)  # rows 0 and 3, pixels of 0.8 Å
    assert_rows(io.read_segments(path, source=SOURCE, rows=(1, 3)), whole, [1, 2])


def test_a_piece_is_not_read_with_the_rest(tmp_path, monkeypatch):
    """A thousand targets of 8 MB and their matrices of 20 MB, of which ten are read in less."""
    monkeypatch.setattr("remap.io.targets.SAMPLE", 20)
    count, pixels = 1000, 1000
    table = Table({"TARGETID": np.arange(count)})
    images = {
        "WAVELENGTH": 5000 + np.arange(pixels, dtype=float),
        "FLUX": np.ones((count, pixels), np.float32),
        "IVAR": np.ones((count, pixels), np.float32),
        "RESOLUTION": np.ones((count, 5, pixels), np.float32),
    }
    hdus = [fits.ImageHDU(data, name=f"B_{name}") for name, data in images.items()]
    path = tmp_path / "c.fits"
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU(table, name="FIBERMAP"), *hdus]).writeto(path)
    source = SOURCE | {"mask_hdu": None, "mask_good": None, "no_target": None}
    del hdus, images
    io.read_segments(path, source=source, rows=(0, 2))
    tracemalloc.start()
    try:
        (found,) = io.read_segments(path, source=source, rows=(500, 510))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.flux.shape == (10, pixels)
    assert peak < 6e6
    assert path.stat().st_size > 27e6


def test_damage_anywhere_is_damage_to_every_piece(tmp_path):
    path = write(tmp_path / "c.fits")
    with fits.open(path) as hdus:
        hdus.writeto(path, overwrite=True, checksum=True)
    assert len(io.read_segments(path, source=SOURCE, rows=(0, 1))) == 2
    content = bytearray(path.read_bytes())
    at = content.find(flux(100)[3].astype(">f4").tobytes())
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(SpectrumError, match=r"c\.fits: .*not those of its DATASUM"):
        io.read_segments(path, source=SOURCE, rows=(0, 1))


def test_a_range(tmp_path):
    path = write(tmp_path / "c.fits")
    (red,) = io.read_segments(path, source=SOURCE, within=(6000, 6005))
    np.testing.assert_allclose(red.wave, WAVE[:7] + 1000)
    assert red.fwhm.shape == red.wave.shape
    with pytest.raises(SpectrumError, match=r"c\.fits: expected pixels within 7000 to 8000 Å"):
        io.read_segments(path, source=SOURCE, within=(7000, 8000))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"drop": ("WAVELENGTH",)}, r"expected HDUs like .*_WAVELENGTH.*found 0 'PRIMARY'"),
        ({"drop": ("IVAR",)}, "expected HDU 'B_IVAR', found 0 'PRIMARY'"),
        (
            {"MASK": np.zeros((S, N - 1), np.uint32)},
            r"expected an image \[4, 40\] in HDU 'B_MASK'.*found \[4, 39\]",
        ),
        ({"FLUX": np.zeros((S + 1, N))}, r"expected an image \[4, 40\] in HDU 'B_FLUX'.*found \[5, 40\]"),
        ({"RESOLUTION": np.zeros((S, N))}, r"expected an image \[4, D, 40\] in HDU 'B_RESOLUTION'"),
        ({"WAVELENGTH": np.zeros((2, N))}, "expected a 1-D image"),
        ({"unit": "nm"}, "expected B_WAVELENGTH in Angstrom as declared, found 'nm'"),
        ({"unit": "Hz"}, "expected wavelengths in B_WAVELENGTH, found the unit 'Hz'"),
        ({"WAVELENGTH": WAVE[[*range(20), *range(20)]]}, "increase strictly"),
    ],
)
def test_files_that_contradict_themselves(tmp_path, changes, message):
    with pytest.raises(SpectrumError, match=rf"c\.fits: .*{message}"):
        io.read_segments(write(tmp_path / "c.fits", **changes), source=SOURCE)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"error_hdu": "{segment}_ERR"}, "ivar_hdu or error_hdu, not both"),
        ({"mask_good": None}, "mask_good must be one of"),
        ({"mask_hdu": None}, "need a mask_hdu"),
        ({"wave_hdu": "WAVELENGTH"}, "needs a group"),
        ({"wave_hdu": "(?P<segment>"}, "in wave_hdu"),
        ({"segments": ({"hdu": 1},)}, "leave segments out"),
        ({"no_target": {"column": "OBJTYPE"}}, "no_target must have a column and values"),
        ({"line_spread": {"place": "R", "kind": "resolution"}}, "that of resolution_hdu"),
        ({"row": 1}, "unknown 'row'"),
    ],
)
def test_declarations_that_cannot_be_right(tmp_path, source, message):
    with pytest.raises(ConfigError, match=message):
        io.read_segments(write(tmp_path / "c.fits"), source=SOURCE | source)


def test_the_width_of_a_matrix_ignores_shifts_and_empty_columns():
    x = np.arange(-7, 8)[:, None]
    centre = np.array([0.0, 0.3, -0.4, 0.0])
    matrix = np.exp(-0.5 * ((x - centre) / 1.1) ** 2)
    matrix[:, 3] = 0
    width = matrix_fwhm(matrix)
    np.testing.assert_allclose(width[:3], 2.3548 * 1.1, rtol=1e-3)
    assert np.isnan(width[3])


def test_a_declared_line_spread_goes_before_the_matrices(tmp_path):
    """It is what `launch.predict --resolution` sets, where the resolution is known better."""
    path = write(tmp_path / "c.fits")
    for spectra in io.read_segments(path, source=SOURCE | {"line_spread": {"resolution": 1000.0}}):
        np.testing.assert_allclose(spectra.fwhm, spectra.wave / 1000)
    for spectra in io.read_segments(path, source=SOURCE | {"resolution_hdu": None}):
        assert spectra.fwhm is None
