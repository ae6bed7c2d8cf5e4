"""Rows of observed spectra in files: what is put there comes back, and nothing is left behind."""

import io as streams
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny

from remap.predict.observing import observe_some
from remap.preprocess.observe_settings import ObserveSettings
from remap.preprocess.observed import concatenate
from remap.store.atomic import Blocks, DamagedError, map_arrays, read_arrays, save_blocks
from remap.store.rows import join_blocks, observed_rows
from remap.store.workdir import read_preprocessing


@pytest.fixture
def preprocessing(tiny_prepared):
    """That of the tiny experiment."""
    return read_preprocessing(tiny_prepared)


@pytest.fixture
def observed(preprocessing):
    """Five rows, one of which has no inverse variance."""
    spectra = tiny.spectra()
    names = list(spectra.names)
    return observe_some(
        names,
        preprocessing,
        [Path(name) for name in names],
        lambda i, within: (spectra.rows(slice(i, i + 1)),),
        settings=ObserveSettings(check=False),
    )


def assert_equal(found, expected):
    for field in ("names", "star_ids", "messages"):
        assert getattr(found, field) == getattr(expected, field)
    for field in ("velocity", "velocity_error", "poor", "coarse", "ra", "inputs"):
        np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))
    for arm, on in expected.arms.items():
        for ours, theirs in zip(found.arms[arm], on, strict=True):
            np.testing.assert_array_equal(ours, theirs)
            assert ours.dtype == theirs.dtype


def test_rows_come_back_in_any_order_and_the_files_go(preprocessing, observed, tmp_path):
    whole = concatenate(observed)
    (tmp_path / ".rows-killed").mkdir()
    with observed_rows(tmp_path, preprocessing) as make:
        rows = make(7)  # of which two stay empty
        assert [path.name for path in tmp_path.iterdir()] != [".rows-killed"]
        rows.put([5, 1], concatenate([observed[4], observed[0]]))
        for row, one in zip((2, 3, 4), observed[1:4], strict=True):
            rows.put([row], one)
        assert_equal(rows.take([1, 2, 3, 4, 5]), whole)
        assert_equal(rows.take([5, 1]), concatenate([observed[4], observed[0]]))
        assert rows.facts([2]).names == observed[1].names
        assert rows.facts([2]).arms == {}
        assert not rows.pixels("A", "valid", [0, 6]).any()
        found = np.concatenate(list(rows.blocks("B", "flux", np.arange(1, 6))))
        np.testing.assert_array_equal(found, whole.arms["B"].flux)
    assert not list(tmp_path.iterdir())


def test_groups_stay_whole_in_blocks():
    groups = [[i] for i in range(200)] + [list(range(200, 500))] + [[500, 501]]
    found = list(join_blocks(groups))
    assert [group for block in found for group in block] == groups
    assert [sum(map(len, block)) for block in found] == [200, 300, 2]


def test_blocks_are_written_as_numpy_writes_arrays_and_mapped_as_it_reads_them(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "flux": rng.normal(size=(10, 7)).astype(np.float32),
        "valid": rng.uniform(size=(10, 7)) < 0.5,
        "snr": rng.normal(size=10),
        "none": np.zeros((0, 3)),
    }
    path, buffer = tmp_path / "x.npz", streams.BytesIO()
    np.savez(buffer, **arrays)
    pieces = {n: Blocks(a.shape, a.dtype, [a[:4], a[4:]]) for n, a in arrays.items() if n != "snr"}
    save_blocks(path, **{name: pieces.get(name, array) for name, array in arrays.items()})
    assert path.read_bytes() == buffer.getvalue()
    mapped, read = map_arrays(path, arrays, "cure"), read_arrays(path, arrays, "cure")
    for name, array in arrays.items():
        np.testing.assert_array_equal(mapped[name], read[name])
        assert mapped[name].dtype == array.dtype
    mapped["flux"][0] = 5
    np.testing.assert_array_equal(map_arrays(path, arrays, "cure")["flux"], arrays["flux"])

    for wrong, message in (
        ([arrays["flux"][:4]], "expected 10 rows, found 4"),
        ([arrays["snr"]], "expected float32"),
    ):
        with pytest.raises(ValueError, match=message):
            save_blocks(tmp_path / "y.npz", flux=Blocks((10, 7), np.dtype(np.float32), wrong))
    assert [p.name for p in tmp_path.iterdir()] == ["x.npz"]

    content = bytearray(path.read_bytes())
    content[content.find(arrays["flux"][-1].tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedError, match=r"x\.npz: .*; cure"):
        map_arrays(path, arrays, "cure")
    save_blocks(path, snr=arrays["snr"])
    with pytest.raises(DamagedError, match="found none called"):
        map_arrays(path, ["flux"], "cure")
