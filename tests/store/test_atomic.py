"""Files of the working folder are named in whatever is said of them."""

import json

import numpy as np
import pytest

from remap.store.atomic import DamagedError, read_arrays, read_json, save_arrays, write_json

CURE = "make it again"


@pytest.mark.parametrize("damage", [b"", b'{"x": 1', b"\xff\xfe", b"\0" * 20, b"\x1f\x8b\x08"])
def test_damaged_json_is_named(tmp_path, damage):
    path = tmp_path / "config.json"
    path.write_bytes(damage)
    with pytest.raises(DamagedError, match=rf"^{path}: cannot be used \(.*\); {CURE}$"):
        read_json(path, CURE)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none", CURE)


def test_every_flipped_bit_of_an_array_file_is_noticed_or_changes_nothing(tmp_path):
    """The checksums of the format see the values; the rest is names and sizes."""
    path, expected = tmp_path / "a.npz", {"flux": np.linspace(0, 1, 40), "valid": np.ones(40, bool)}
    save_arrays(path, **expected)
    whole, rng, noticed = path.read_bytes(), np.random.default_rng(0), 0
    for position in rng.choice(8 * len(whole), 150, replace=False):
        spoilt = bytearray(whole)
        spoilt[position // 8] ^= 1 << (position % 8)
        path.write_bytes(spoilt)
        try:
            found = read_arrays(path, expected, CURE)
        except DamagedError as error:
            assert str(error).startswith(f"{path}: cannot be used")  # noqa: PT017  either outcome is right
            noticed += 1
            continue
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value)
    assert noticed > 80


def test_array_file_that_lacks_an_array_or_is_cut_is_named(tmp_path):
    path = tmp_path / "a.npz"
    save_arrays(path, flux=np.ones(3))
    with pytest.raises(
        DamagedError, match=r"a\.npz: .*expected the arrays \['flux', 'valid'\], .*\['valid'\]"
    ):
        read_arrays(path, ("flux", "valid"), CURE)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(DamagedError, match=r"a\.npz: cannot be used"):
        read_arrays(path, ("flux",), CURE)


def test_numbers_of_json_come_back_to_the_bit(tmp_path):
    values = [1 / 3, 1e-300, -0.0]
    write_json(tmp_path / "a.json", values)
    assert json.dumps(read_json(tmp_path / "a.json", CURE)) == json.dumps(values)
