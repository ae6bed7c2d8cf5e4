"""Files with many targets: rows, names, what tables say, blanked rows and the line spread of resolution matrices."""

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
