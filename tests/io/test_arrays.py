"""Files of arrays: npz, HDF5 and Parquet say the same, whole and in pieces, and damage is told."""

import sys

import numpy as np
import pytest
from helpers.containers import KINDS, write_arrays

from remap import io
from remap.config import ConfigError
from remap.io import containers, limits
from remap.spectra import SpectrumError

S, N = 7, 40
SOURCE = {"format": "arrays", "medium": "air"}
RNG = np.random.default_rng(2)
ARRAYS = {
    "wave": 5000 + 0.5 * np.arange(N),
    "flux": RNG.normal(1, 0.1, (S, N)).astype(np.float32),
    "ivar": RNG.uniform(50, 100, (S, N)).astype(np.float32),
    "mask": (RNG.uniform(size=(S, N)) < 0.1).astype(np.int16),
    "ids": np.array([f"Å {i}" for i in range(S)]),
    "ra": np.linspace(0, 300, S),
    "star_id": np.array([10, 10, 11, 12, 13, 14, 15]),
    "z": np.linspace(-1e-4, 1e-4, S),
}


def assert_equal(found, expected):
    assert found.names == expected.names
    for field in ("wave", "flux", "valid", "ivar"):
        np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))
    for name in ("star_id", "ra", "rv", "snr"):
        np.testing.assert_array_equal(found.fact(name), expected.fact(name))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_says_the_same_whole_and_in_pieces(tmp_path, kind):
    path = write_arrays(tmp_path / "x", kind, ARRAYS)
    source = SOURCE | {"facts": {"rv": {"column": "z", "factor": 299792.458}, "snr": {"value": 30.0}}}
    (whole,) = io.read_segments(path, source=source)
    assert whole.names == tuple(f"x[Å {i}]" for i in range(S))
    np.testing.assert_array_equal(whole.flux, ARRAYS["flux"])
    np.testing.assert_array_equal(whole.ivar, ARRAYS["ivar"])
    np.testing.assert_array_equal(whole.valid, ARRAYS["mask"] == 0)
    assert whole.fact("star_id").tolist() == ["10", "10", "11", "12", "13", "14", "15"]
    np.testing.assert_array_equal(whole.fact("ra"), ARRAYS["ra"])
    np.testing.assert_allclose(whole.fact("rv"), 299792.458 * ARRAYS["z"])
    assert whole.fact("snr").tolist() == [30.0] * S
    pieces = io.split(path, source=source, most=3)
    assert [tuple(piece) for piece in pieces] == [(0, 3, 3), (3, 6, 3), (6, 7, 1)]
    for piece in pieces:
        (found,) = io.read_segments(path, source=source, rows=(piece.first, piece.last))
        assert_equal(found, whole.rows(slice(piece.first, piece.last)))
    with pytest.raises(SpectrumError, match=r"x: expected rows 5 to 9, found 7"):
        io.read_segments(path, source=source, rows=(5, 9))


@pytest.mark.parametrize(
    ("name", "told"), [("err", True), ("flux_error", True), ("e_flux", True), ("snr", False)]
)
def test_errors_that_nobody_declared_are_told(tmp_path, caplog, name, told):
    errors = {name: np.full((S, N) if told else S, 0.1)}
    plain = {key: ARRAYS[key] for key in ("wave", "flux")}
    path = write_arrays(tmp_path / "x", "npz", plain | errors)
    assert io.read_segments(path, source=SOURCE)[0].ivar is None
    assert (f"the array {name!r} is not read" in caplog.text) == told
    caplog.clear()
    if told:
        assert io.read_segments(path, source=SOURCE | {"error": name})[0].ivar is not None
    path = write_arrays(tmp_path / "y", "npz", plain | errors | {"ivar": ARRAYS["ivar"]})
    io.read_segments(path, source=SOURCE)
    assert "is not read" not in caplog.text


@pytest.mark.parametrize("kind", KINDS)
def test_names_units_and_ranges_are_declared(tmp_path, kind):
    arrays = {
        "lam": ARRAYS["wave"] / 10,
        "f": ARRAYS["flux"].astype(np.float64),
        "sigma": ARRAYS["ivar"] ** -0.5,
        "good": ARRAYS["mask"] == 0,
    }
    arrays["wave"] = arrays["lam"]  # for the writer's sake
    path = write_arrays(
        tmp_path / "x", kind, arrays | ({"lam": np.tile(arrays["lam"], (S, 1))} if kind == "parquet" else {})
    )
    source = SOURCE | {
        "wave": "lam", "flux": "f", "error": "sigma", "mask": "good", "mask_good": "nonzero", "wave_unit": "nm",
        "line_spread": {"resolution": 2000.0},
    }  # fmt: skip
    found = io.read(path, source=source, within=(5004.9, 5010.1))
    np.testing.assert_allclose(found.wave, np.arange(5005, 5010.1, 0.5))
    np.testing.assert_array_equal(found.flux, arrays["f"][:, 10:21])
    np.testing.assert_allclose(found.ivar, ARRAYS["ivar"][:, 10:21], rtol=1e-5)
    np.testing.assert_array_equal(found.valid, ARRAYS["mask"][:, 10:21] == 0)
    np.testing.assert_allclose(found.fwhm, found.wave / 2000)
    assert found.names[3] == "x[3]"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flux": None}, "expected an array 'flux', found"),
        ({"ivar": ARRAYS["ivar"][:, 1:]}, r"expected 'ivar' of shape \['S', 40\]"),
        ({"wave": ARRAYS["wave"][1:]}, r"expected 'wave' of shape \[40\], found \[39\]"),
        ({"wave": ARRAYS["wave"][::2].repeat(2)}, "increase strictly"),
        ({"flux": np.full((S, N), "x")}, "expected numbers"),
        ({"ra": ARRAYS["ivar"]}, r"expected 'ra' of shape \['S'\]"),
    ],
)
def test_files_that_contradict_themselves(tmp_path, kind, change, message):
    arrays = {name: array for name, array in (ARRAYS | change).items() if array is not None}
    path = write_arrays(tmp_path / "x", kind, arrays)
    with pytest.raises(SpectrumError, match=rf"x: .*{message}"):
        io.read_segments(path, source=SOURCE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"error": "e", "ivar": "i"}, "ivar or error, not both"),
        ({"mask_good": "some"}, "mask_good must be one of"),
        ({"flux": 3}, "flux must be the name of an array, found 3"),
        ({"facts": {"ra": "RA"}}, "the fact 'ra' needs a column or a value"),
        ({"line_spread": {"place": "R", "kind": "resolution"}}, "found a place"),
        ({"hdu": 1}, "unknown 'hdu'"),
    ],
)
def test_declarations_that_cannot_be_right(tmp_path, change, message):
    path = write_arrays(tmp_path / "x", "npz", ARRAYS)
    with pytest.raises(ConfigError, match=message):
        io.read_segments(path, source=SOURCE | change)


@pytest.mark.parametrize(
    ("kind", "package", "extra"), [("h5", "h5py", "hdf5"), ("parquet", "pyarrow", "parquet")]
)
def test_a_missing_package_is_told_with_what_to_install(tmp_path, monkeypatch, kind, package, extra):
    path = write_arrays(tmp_path / "x", kind, ARRAYS)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"need {package}: pip install 'deep-remap\[{extra}\]'"):
        io.read_segments(path, source=SOURCE)
    with pytest.raises(ConfigError, match=package):
        io.split(path, source=SOURCE, most=3)


def test_what_is_none_of_them_is_told(tmp_path):
    (tmp_path / "x.h5").write_text("no arrays")
    with pytest.raises(
        SpectrumError, match=r"x\.h5: expected arrays as \.npz, HDF5 or Parquet, found a file"
    ):
        io.read_segments(tmp_path / "x.h5", source=SOURCE)
    with pytest.raises(ConfigError, match="rows need one of the formats"):
        io.read_segments(tmp_path / "x.h5", source=SOURCE | {"format": "text"}, rows=(0, 1))


@pytest.mark.parametrize("kind", ["npz", "npz packed"])
def test_a_flipped_bit_is_found_in_pieces_that_do_not_have_it(tmp_path, kind):
    arrays = ARRAYS | {"flux": RNG.normal(1, 0.1, (S, N))}
    path = write_arrays(tmp_path / "x", kind, arrays)
    content = bytearray(path.read_bytes())
    at = content.find(arrays["flux"][-1].tobytes()[:16]) if kind != "npz packed" else len(content) // 4
    content[at + 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(SpectrumError, match="x: "):
        io.read_segments(path, source=SOURCE, rows=(0, 2))


def test_hdf5_may_not_reach_beyond_its_file_or_beyond_its_size(tmp_path):
    h5py = pytest.importorskip("h5py", reason="needs h5py (extra `hdf5`)")
    other = write_arrays(tmp_path / "other", "h5", ARRAYS)
    path = tmp_path / "x"
    with h5py.File(path, "w") as file:
        file["wave"] = ARRAYS["wave"]
        file["flux"] = h5py.ExternalLink(str(other), "flux")
    with pytest.raises(SpectrumError, match="x: expected an array 'flux', found a link to elsewhere"):
        io.read_segments(path, source=SOURCE)
    with h5py.File(path, "w") as file:
        file["wave"] = ARRAYS["wave"]
        layout = h5py.VirtualLayout((S, N), "f4")
        layout[:] = h5py.VirtualSource(str(other), "flux", (S, N))
        file.create_virtual_dataset("flux", layout)
    with pytest.raises(SpectrumError, match="x: expected 'flux' in this file, found that it lies in others"):
        io.read_segments(path, source=SOURCE)
    with h5py.File(path, "w") as file:  # some kilobytes that say that they are terabytes of zeros
        file["wave"] = ARRAYS["wave"]
        file.create_dataset("flux", (10**10, N), "f4", chunks=(100, N), compression="gzip")
    with pytest.raises(
        SpectrumError, match=r"x: expected arrays of up to 1.34e\+08 bytes, found 'flux' of 1.6e\+12"
    ):
        io.split(path, source=SOURCE, most=3)


def test_parquet_that_unpacks_to_too_much_is_refused(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="needs pyarrow (extra `parquet`)")
    flux = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(2**25, np.float32)), N * 2**10 // N)
    path = tmp_path / "x"
    pa.parquet.write_table(pa.table({"flux": flux}), path)
    assert path.stat().st_size < 2**20
    with pytest.raises(SpectrumError, match=r"x: expected arrays of up to 1.34e\+08 bytes, found 'flux'"):
        io.split(path, source=SOURCE, most=3)


def test_what_is_read_at_a_time_is_bounded(tmp_path, monkeypatch):
    path = write_arrays(tmp_path / "x", "npz", ARRAYS)
    monkeypatch.setattr(limits, "LARGEST", 1000)
    io.read_segments(path, source=SOURCE, rows=(0, 3))
    with pytest.raises(SpectrumError, match="expected up to 1e\\+03 bytes at a time, found 4 rows of 'flux'"):
        io.read_segments(path, source=SOURCE, rows=(0, 4))
    assert containers.kind(path) == "npz"
