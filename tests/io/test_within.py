"""The range of wavelengths that a reader is asked for is cut out before anything is checked."""

import numpy as np
import pytest
from astropy.io import fits
from helpers import tiny

from remap import io
from remap.spectra import SpectrumError, make_spectra

TABLE = {
    "format": "table",
    "medium": "vacuum",
    "axis": "linear",
    "wave_unit": "Angstrom",
    "wave_column": "WAVELENGTH",
    "flux_column": "FLUX",
}
IMAGE = {"format": "image", "medium": "vacuum", "axis": "linear", "wave_unit": "Angstrom"}


def write_uv_table(path, spoil=None):
    """A library spectrum that begins at 88 Å, with wavelengths that are no numbers beyond 20000 Å."""
    wave = np.concatenate([np.geomspace(88.0, 20000.0, 2000), [np.nan, np.nan]])
    if spoil is not None:
        wave[spoil] = np.nan
    columns = [fits.Column("WAVELENGTH", "D", array=wave), fits.Column("FLUX", "D", array=np.arange(2002.0))]
    fits.BinTableHDU.from_columns(columns).writeto(path)
    return path, wave


def test_a_table_that_begins_in_the_ultraviolet_is_read_where_it_is_needed(tmp_path):
    path, wave = write_uv_table(tmp_path / "uv.fits")
    with pytest.raises(SpectrumError, match="expected wavelengths within 500 to"):
        io.read(path, source=TABLE)
    found = io.read(path, source=TABLE, within=(4800.0, 5800.0))
    keep = (wave >= 4800) & (wave <= 5800)
    np.testing.assert_array_equal(found.wave, wave[keep])
    np.testing.assert_array_equal(found.flux[0], np.arange(2002.0)[keep])


def test_a_wavelength_missing_inside_the_range_is_still_an_error(tmp_path):
    path, _ = write_uv_table(tmp_path / "hole.fits", spoil=1500)  # at 5100 Å
    with pytest.raises(SpectrumError, match=r"hole\.fits"):
        io.read(path, source=TABLE, within=(4800.0, 5800.0))


def test_a_file_without_any_of_the_range_says_which_it_has(tmp_path):
    path, _ = write_uv_table(tmp_path / "uv.fits")
    with pytest.raises(SpectrumError, match="30000 to 31000 Å, found 88 to 20000 Å"):
        io.read(path, source=TABLE, within=(30000.0, 31000.0))


def test_images_and_bundles_are_cut_too(tmp_path):
    tiny.write_image(tmp_path / "image.fits", 100.0, 1.0, np.arange(9000.0))
    found = io.read(tmp_path / "image.fits", source=IMAGE, within=(5000.0, 5010.0))
    np.testing.assert_array_equal(found.flux[0], np.arange(4900.0, 4911.0))
    wave = np.linspace(5000.0, 5100.0, 1001)
    spectra = make_spectra(wave, 1 + wave[None] / 1e4, medium="air", labels={"teff": [5000.0]})
    continuum = np.array([[2.0, 4.0]])
    io.write_bundle(
        tmp_path / "b.npz", spectra, cont_wave_air=np.array([4990.0, 5110.0]), continuum=continuum
    )
    source = {"format": "bundle", "medium": "air", "absolute": True, "label_columns": ("teff",)}
    whole = io.read(tmp_path / "b.npz", source=source)
    part = io.read(tmp_path / "b.npz", source=source, within=(5020.0, 5040.0))
    keep = (whole.wave >= 5020) & (whole.wave <= 5040)
    np.testing.assert_array_equal(part.flux, whole.flux[:, keep])
    np.testing.assert_array_equal(part.wave, whole.wave[keep])


def test_a_kurucz_model_from_88_angstrom(data_root):
    path = data_root / "surveys" / "calspec" / "k93_4500_0_5_rn_box.fits"
    if not path.exists():
        pytest.skip(f"needs {path}")
    found = io.read(path, source=TABLE, within=(4800.0, 5800.0))
    assert found.wave[0] >= 4800
    assert found.wave[-1] <= 5800
    assert found.valid.all()
    assert len(found.wave) > 40
