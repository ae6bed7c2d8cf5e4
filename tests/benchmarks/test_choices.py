"""The benchmark of the method's choices: what its variants differ in, and its tables."""

import numpy as np
import pytest
from astropy.table import Table

from benchmarks import bench_choices
from benchmarks.bench_choices import BASE, VARIANTS, Predicted, config_of, markdown, together
from remap.predict.catalogue import Catalogue
from remap.preprocess.description import make_preprocessing
from remap.store.stars import STATUS_OK

EDGES = {
    "teff": np.linspace(4000, 7000, 31),
    "logg": np.linspace(0.0, 5.0, 26),
    "feh": np.linspace(-2.0, 1.0, 31),
}


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v != BASE])
def test_variants_differ_from_the_config_in_what_they_name_alone(variant):
    one, base = (config_of(v, (0, 1), seed=3, short=False) for v in (variant, BASE))
    make_preprocessing(one)
    named = set(VARIANTS[variant])
    for section in base:
        assert (one[section] == base[section]) == (section not in named), section
    assert (one.seed, tuple(one.split.run), one.expert.kind) == (3, (0, 1), "none")


def predicted(*, shift: float, width: float) -> Predicted:
    """Thirty dwarfs, labels in the middles of their ranges, PMFs with an error of `shift` widths of a bin."""
    count = 30
    stars = Table({"star_id": [f"s{i}" for i in range(count)], "status": [STATUS_OK] * count})
    rng = np.random.default_rng(0)
    pmfs, table = {}, Table()
    for name, edges in EDGES.items():
        middle = {"teff": 5500.0, "logg": 4.5, "feh": 0.0}[name]
        step = edges[1] - edges[0]
        stars[name] = middle + 0.5 * step * rng.standard_normal(count)
        stars[f"{name}_err"] = np.full(count, 0.1 * step)
        centre = np.asarray(stars[name]) + shift * step
        middles = (edges[1:] + edges[:-1]) / 2
        pmf = np.exp(-0.5 * ((middles - centre[:, None]) / (width * step)) ** 2)
        pmfs[name] = (pmf / pmf.sum(axis=1, keepdims=True)).astype(np.float32)
        table[name] = centre
    return Predicted(Catalogue(table, pmfs, EDGES, {}), stars, np.ones(count, bool))


def test_an_ensemble_is_the_mean_of_the_pmfs():
    near, far = predicted(shift=0.0, width=1.0), predicted(shift=2.0, width=1.0)
    both = together([near, far])
    np.testing.assert_allclose(
        both.catalogue.pmfs["teff"], (near.catalogue.pmfs["teff"] + far.catalogue.pmfs["teff"]) / 2, atol=1e-7
    )
    moved = np.asarray(both.catalogue.table["teff"]) - np.asarray(near.stars["teff"])
    np.testing.assert_allclose(moved, 100.0, atol=12.0)
    assert np.all(near.catalogue.table["teff"] == near.stars["teff"])  # not written to


def test_tables_have_every_variant_and_say_which_is_worse():
    groups = {"dwarfs": {"logg": (3.5, 5.5)}}
    results = {
        name: dict.fromkeys(bench_choices.PARTS, found)
        for name, found in (
            (BASE, predicted(shift=0.0, width=1.0)),
            ("worse", predicted(shift=2.0, width=1.0)),
        )
    }
    text = markdown(results, groups)
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| worse |")]
    assert len(rows) == len(bench_choices.PARTS)
    for row in rows:
        assert row[1].startswith("200, ")  # bias in K
        assert float(row[2].strip("*").split()[0]) > 2  # times the CRPS, and the interval excludes 1
        assert row[2].startswith("**")
    held = next(line for line in text.splitlines() if line.startswith("| dwarfs | teff |"))
    assert len(held.split("|")) == 2 + 2 + len(bench_choices.COVERAGE)
