"""A catalogue that needs no networks: odd names, unequal bins, a row without values."""

import numpy as np

from remap.predict import catalogue
from remap.predict.catalogue import Flag

EDGES = {
    "teff": np.linspace(3000.0, 7000.0, 51),
    "logg": np.linspace(1.0, 5.5, 31),
    "vsini": np.array([0.0, 1.5, 4.0, 10.0, 30.0]),  # unequal bins
}
UNITS = {"teff": "K", "logg": "dex", "vsini": "km/s"}
FILES = ["b.fits", "a.fits", "b.fits", "café 1.fits", "back\\slash.fits", "bytes\udcff.fits"]
MESSAGES = ["", "a.fits: covers 4850-5000 Å,\n not 5280", "", "", "", ""]
CONFIG = {
    "seed": 1,
    "widths": [16, 32],
    "labels": {"teff": {"low": 3000.0}},
    "long": "x" * 5000,
    "name": "é '\"\n ",
}


def make(step=1200, arms=("A", "B")):
    rng = np.random.default_rng(0)
    pmfs = {
        name: rng.dirichlet(np.ones(e.size - 1), len(FILES)).astype(np.float32) for name, e in EDGES.items()
    }
    for pmf in pmfs.values():
        pmf[1] = np.nan
    pmfs |= {("teff", arm): np.roll(pmfs["teff"], 1, axis=1) for arm in arms}
    bits = np.zeros(len(FILES), int)
    bits[1] = Flag.UNREADABLE | Flag.MISSING_ARM
    table = catalogue.build_catalogue(
        FILES,
        pmfs,
        EDGES,
        units=UNITS,
        flags=bits,
        snr=np.array([50, np.nan, 70, 80, 90, 100]),
        arms={"A": np.array([1, 0, 1, 1, 1, 1], bool), "B": np.array([1, 0, 0, 1, 1, 1], bool)},
        messages=MESSAGES,
        star_ids=[f"S{i}" for i in range(len(FILES))],
        more={
            "rv": (np.array([1.5, np.nan, 0, -3, 1 / 3, 1e-300]), "km/s", "radial velocity"),
            "ra": (np.array([10.0, np.nan, 30, 40, 50, 60]), "deg", "position"),
            "dec": (np.array([-10.0, np.nan, -30, 40, 50, 60]), "deg", "position"),
        },
    )
    meta = catalogue.provenance(
        config=CONFIG, checkpoint_step=step, date="2026-01-02T03:04:05", inputs=len(FILES)
    )
    return table, pmfs, dict(EDGES), meta


def assert_same_tables(found, expected):
    assert found.colnames == expected.colnames
    for name in expected.colnames:
        assert found[name].dtype == expected[name].dtype, name
        assert found[name].unit == expected[name].unit, name
        assert found[name].description == expected[name].description, name
        assert found[name].meta == expected[name].meta, name
        np.testing.assert_array_equal(np.asarray(found[name]), np.asarray(expected[name]), err_msg=name)
