"""Libraries of any format through the stage: labels, grids, exclusion, checks, and two of them in one config."""

import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from helpers import tiny

from configs import common
from remap import io
from remap.config import ConfigError, deciding
from remap.sampling.mixture import library_weights
from remap.sampling.sources import cell_origin, library_shares
from remap.spectra import SpectrumError
from remap.stages.finetune import finetune
from remap.stages.preprocess import preprocess
from remap.stages.pretrain import held_out_batch, pretrain, pretraining
from remap.store.workdir import load_library, read_preprocessing

WAVE = np.arange(4975.0, 5265.0, 0.25)
FILES = {
    "path": "nodes",
    "patterns": ("*.fits",),
    "source": {
        "format": "table",
        "medium": "air",
        "axis": "linear",
        "wave_unit": "Angstrom",
        "wave_column": "wave",
        "flux_column": "flux",
    },
    "native": {"kind": "sharp", "value": 0.0},
    "interpolate": True,
    "select": {},
    "labels_from_name": r"t(?P<teff>\d+)_g(?P<logg>[\d.]+)_(?P<feh>[pm]\d\d)",
}


def write_node(path, labels, *, wave=WAVE, cards=()):
    """One library spectrum as a table; with `cards` its labels are in the header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    flux = tiny.flux(wave, np.array([labels]), tiny.LIBRARY_WIDTH)[0]
    columns = [fits.Column("wave", "D", array=wave), fits.Column("flux", "D", array=flux)]
    fits.BinTableHDU.from_columns(columns, header=fits.Header(list(cards))).writeto(path, overwrite=True)
    return path


def write_nodes(folder, *, own_grids=False):
    """The nodes of the tiny library, a file each, named by their labels."""
    for i, (teff, logg, feh) in enumerate(
        (t, g, m) for t in (4500, 5250, 6000) for g in (3.0, 4.0, 5.0) for m in (-1.0, -0.5, 0.0)
    ):
        sign = "m" if feh < 0 else "p"
        wave = WAVE + 0.01 * i if own_grids else WAVE
        name = f"t{teff}_g{logg:.1f}_{sign}{abs(round(10 * feh)):02d}.fits"
        write_node(folder / name, (teff, logg, feh), wave=wave)


@pytest.fixture
def data(tiny_data, tmp_path):
    return tiny.small_survey(tmp_path / "data", tiny_data, ("nameless.fits", "dwarf_00.fits"))


def run(data, folder, library=None, **changes):
    config = tiny.config(data, **changes)
    if library is not None:
        config.library = library
    preprocess(config, folder)
    return config


def nodes_of(folder, arm="A"):
    with np.load(folder / "data" / f"library_{arm}.npz") as a:
        order = np.lexsort(a["labels"].T)
        return a["labels"][order], a["log_flux"][:, order], a["valid"]


def check_table(folder):
    return Table.read(folder / "data" / "library_check.ecsv")


def test_files_with_labels_in_their_names_are_the_same_library(data, tiny_prepared, tmp_path):
    write_nodes(data / "nodes")
    run(data, tmp_path / "work", FILES)
    ours, theirs = nodes_of(tmp_path / "work"), nodes_of(tiny_prepared)
    np.testing.assert_array_equal(ours[0], theirs[0])
    np.testing.assert_allclose(ours[1], theirs[1], atol=1e-5)  # the bundle's float64 against the tables'


def test_files_on_grids_of_their_own_are_resampled_one_by_one(data, tiny_prepared, tmp_path, caplog):
    write_nodes(data / "nodes", own_grids=True)
    with caplog.at_level(logging.INFO, logger="remap"):
        run(data, tmp_path / "work", FILES)
    assert "27 grids of wavelengths" in caplog.text
    ours, theirs = nodes_of(tmp_path / "work"), nodes_of(tiny_prepared)
    np.testing.assert_array_equal(ours[0], theirs[0])
    np.testing.assert_allclose(ours[1], theirs[1], atol=2e-4)  # cubic splines of other pixels


def test_labels_stand_in_headers_or_a_table_and_must_agree_with_the_name(data, tmp_path):
    folder = data / "nodes"
    write_nodes(folder)
    files = sorted(folder.glob("*.fits"))
    rows = []
    for file in files:
        labels = io.labels_from_name(file.name, FILES["labels_from_name"])
        write_node(file, tuple(labels.values()), cards=[("T", labels["teff"]), ("G", labels["logg"])])
        rows.append((file.name, labels["feh"]))
    Table(rows=rows, names=("file", "feh")).write(data / "nodes.csv", format="ascii.csv")
    table = {"format": "csv", "columns": {"feh": "feh"}, "file_column": "file"}
    places = {"labels": {"teff": "T", "logg": "G"}, "labels_path": "nodes.csv", "labels_table": table}
    run(data, tmp_path / "a", FILES | places | {"labels_from_name": ""})
    run(data, tmp_path / "b", FILES)
    np.testing.assert_array_equal(nodes_of(tmp_path / "a")[0], nodes_of(tmp_path / "b")[0])
    write_node(files[3], (4500, 3.0, 0.0), cards=[("T", 4700.0), ("G", 3.0)])
    with pytest.raises(SpectrumError, match="expected one value of teff, found 4700 in one place and 4500"):
        run(data, tmp_path / "c", FILES | {"labels": {"teff": "T"}})
    Table(rows=rows[1:], names=("file", "feh")).write(data / "nodes.csv", format="ascii.csv", overwrite=True)
    with pytest.raises(
        SpectrumError, match=r"nodes\.csv: expected a row of t4500_g3\.0_m05\.fits, found none"
    ):
        run(data, tmp_path / "d", FILES | places)


def test_a_node_of_an_unknown_label_is_refused_and_may_be_excluded(data, tmp_path):
    write_nodes(data / "nodes")
    write_node(data / "nodes" / "t5250.fits", (5250.0, 3.5, -0.3))
    library = FILES | {"labels_from_name": r"t(?P<teff>\d+)(_g(?P<logg>[\d.]+)_(?P<feh>[pm]\d\d))?"}
    with pytest.raises(
        SpectrumError, match=r"t5250\.fits: expected the labels \['logg', 'feh'\] with the library"
    ):
        run(data, tmp_path / "a", library)
    run(data, tmp_path / "b", library | {"exclude": ("t5250.fits",)})
    assert len(nodes_of(tmp_path / "b")[0]) == 27
    for file in (data / "nodes").glob("t*_g*.fits"):
        fits.setval(file, "GRAV", value=-9.0 if file.name == "t4500_g3.0_m05.fits" else 3.0, ext=1)
    (data / "nodes" / "t5250.fits").unlink()
    place = {"labels": {"logg": {"keyword": "GRAV", "missing": (-9.0,)}}}
    named = {"labels_from_name": r"t(?P<teff>\d+)_g[\d.]+_(?P<feh>[pm]\d\d)"}
    with pytest.raises(
        SpectrumError, match=r"t4500_g3\.0_m05\.fits: expected all labels .* library\.exclude leaves"
    ):
        run(data, tmp_path / "c", FILES | place | named)


def test_nodes_are_excluded_by_name_labels_or_some_of_them(data, tmp_path, caplog):
    exclude = ("node 3", (6000.0, 5.0, 0.0), {"teff": 4500.0, "logg": 5.0})
    with caplog.at_level(logging.INFO, logger="remap"):
        run(data, tmp_path / "work", library__exclude=exclude)
    left = nodes_of(tmp_path / "work")[0]
    assert len(left) == 27 - 1 - 1 - 3
    assert not ((left[:, 0] == 4500) & (left[:, 1] == 5)).any()
    for entry, message in (
        ("node 99", "library.exclude: 'node 99' is no node"),
        ((6001.0, 5.0, 0.0), r"library.exclude: \(6001.0, 5.0, 0.0\) is no node"),
        ((6000.0, 5.0), "library.exclude: expected a name, the values of"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(data, tmp_path / "b", library__exclude=(entry,))


def test_a_library_that_begins_in_the_ultraviolet_is_cropped_before_any_check(data, tmp_path):
    write_nodes(data / "nodes")
    for file in (data / "nodes").glob("*.fits"):
        labels = tuple(io.labels_from_name(file.name, FILES["labels_from_name"]).values())
        write_node(file, labels, wave=np.concatenate([np.geomspace(88.0, 4900.0, 500), WAVE]))
    run(data, tmp_path / "work", FILES)
    assert nodes_of(tmp_path / "work")[2].all()


@pytest.mark.parametrize("kind", ["swap", "shift"])
def test_a_spoiled_node_ranks_first(data, tmp_path, caplog, kind):
    def spoil(flux):
        if kind == "shift":
            flux[13] = np.roll(flux[13], 8)
        else:
            flux[[4, 21]] = flux[[21, 4]]
        return flux

    tiny.write_library(data / "library.npz", change=spoil)
    with caplog.at_level(logging.WARNING, logger="remap"):
        run(data, tmp_path / "work")
    table = check_table(tmp_path / "work")
    assert len(table[table["kind"] == "unlike_neighbours"]) >= 5
    # Two nodes of the formula are negative in one pixel before they are degraded.
    table = table[table["z"] < np.inf]
    count = 1 if kind == "shift" else 2
    assert set(table["name"][:count]) == ({"node 13"} if kind == "shift" else {"node 4", "node 21"})


def test_broken_and_double_nodes_come_first_and_stay_in(data, tmp_path, caplog):
    def spoil(flux):
        flux[5, 600] = np.nan
        flux[20] = 2 * flux[7]
        return flux

    tiny.write_library(data / "library.npz", change=spoil)
    with caplog.at_level(logging.WARNING, logger="remap"):
        run(data, tmp_path / "work")
    table = check_table(tmp_path / "work")
    broken = [(r["name"], r["kind"]) for r in table if r["kind"] != "not_positive"]
    assert broken[:2] == [("node 5", "not_finite"), ("node 20", "same_flux")]
    assert "not_finite: node 5: 1 of" in caplog.text
    assert len(nodes_of(tmp_path / "work")[0]) == 27


def test_what_is_broken_is_told_where_it_ends_the_stage(data, tmp_path):
    def spoil(flux):
        flux[5] = -1.0
        return flux

    tiny.write_library(data / "library.npz", change=spoil)
    with pytest.raises(ConfigError, match="node 5 has flux at or below zero"):
        run(data, tmp_path / "work")
    table = check_table(tmp_path / "work")
    assert table["value"][table["name"] == "node 5"] == 1.0
    assert set(table["kind"]) == {"not_positive"}
    run(data, tmp_path / "b", library__exclude=("node 5",))


# -------------------------------------------------------------------------------------- several libraries


def with_second(data, weight=0.25, **changes):
    """The tiny config with a second library: other line strengths, another extent, pixels of its own."""
    config = tiny.config(data, **changes)
    section = dict(config.library.items())
    section = common.further_library(section | {"path": "second.npz"}, weight=weight)
    with config.unlocked():
        config.libraries.second = section
    return config


@pytest.fixture
def two(tiny_data, tmp_path):
    """Data with a second library on another grid."""
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    wave = np.arange(4979.9, 5260.0, 0.2)
    tiny.write_library(data / "second.npz", wave=wave, change=lambda flux: 1 - 0.8 * (1 - flux))
    return data


def test_two_libraries_are_prepared_checked_and_mixed(two, tiny_prepared, tmp_path):
    config = with_second(two)
    preprocess(config, tmp_path / "work")
    for arm in "AB":  # the first is what it is alone
        for ours, theirs in zip(nodes_of(tmp_path / "work", arm), nodes_of(tiny_prepared, arm), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert set(check_table(tmp_path / "work")["library"]) == {"library", "second"}
    preprocessing = read_preprocessing(tmp_path / "work")
    weights = library_weights(config)
    both = load_library(tmp_path / "work", preprocessing, "A", interpolate=True, weights=weights)
    assert both.log_flux.shape[1] == 54
    assert np.bincount(cell_origin(both)).tolist() == [8, 8]
    np.testing.assert_allclose(library_shares(both), [0.75, 0.25], atol=1e-6)


def test_pretraining_and_its_validation_draw_from_both(two, tmp_path):
    config = with_second(two, pretrain__validation=0.25, pretrain__validation_size=8)
    preprocess(config, tmp_path / "work")
    start = pretraining(config, tmp_path / "work", read_preprocessing(tmp_path / "work"), "A")
    held = cell_origin(start.library, start.held_out)
    assert np.bincount(held).tolist() == [2, 2]
    np.testing.assert_allclose(library_shares(start.library), [0.75, 0.25], atol=1e-6)
    source = start.drawing_from(np.resize(start.held_out, start.library.cells.shape))
    np.testing.assert_allclose(library_shares(source.spectra.library), [0.75, 0.25], atol=1e-6)
    batch = held_out_batch(start)
    assert np.isfinite(np.asarray(batch.flux)).all()
    again = source.draw(jax.random.key(0), jnp.asarray(3))
    np.testing.assert_array_equal(again.flux, source.draw(jax.random.key(0), jnp.asarray(3)).flux)


def test_both_stages_train_on_two_libraries(two, tmp_path):
    change = {"finetune__rehearsal": 0.5, "finetune__correction": "linear"}
    change |= {"finetune__residual_weight": (1.0, 1.0), "split__folds": 4, "split__run": (0,)}
    config = with_second(two, split__validation=0.0, **change)
    preprocess(config, tmp_path / "work")
    pretrain(config, tmp_path / "work")
    finetune(config, tmp_path / "work")
    assert (tmp_path / "work" / "finetune" / "A" / "fold_0" / "final").exists()


def test_a_library_that_was_not_prepared_is_asked_for(tiny_data, tiny_prepared):
    config = with_second(tiny_data)
    with pytest.raises(
        FileNotFoundError, match=r"second/library_A\.npz: expected the preprocess stage's output"
    ):
        pretraining(config, tiny_prepared, read_preprocessing(tiny_prepared), "A")


def test_networks_of_one_library_are_known_by_what_they_were_known_by(tiny_data):
    one, two = tiny.config(tiny_data), with_second(tiny_data)
    for what in ("data", "pretrain", "finetune", "align", "candidate"):
        assert "libraries" not in deciding(one, what)
        assert not {"exclude", "labels", "labels_from_name"} & deciding(one, what)["library"].keys()
        assert "second" in deciding(two, what)["libraries"]
    assert "weight" not in deciding(two, "data")["libraries"]["second"]
    assert deciding(two, "pretrain")["libraries"]["second"]["weight"] == 0.25


# ------------------------------------------------------------------------------------------ real libraries


def test_a_ferre_table_and_a_kurucz_model_are_read_by_their_names(data_root, tmp_path, data):
    folder = data_root / "surveys" / "ferre"
    if not folder.exists():
        pytest.skip(f"needs {folder}")
    pattern = r"FEH(?P<feh>[+-][\d.]+)_.*TEFF(?P<teff>[+-]\d+)_LOGG(?P<logg>[+-]\d+\.\d+)"
    library = FILES | {"path": str(folder), "labels_from_name": pattern, "interpolate": False}
    run(data, tmp_path / "work", library)
    labels, log_flux, valid = nodes_of(tmp_path / "work")
    np.testing.assert_array_equal(labels, [[5750.0, 4.5, 0.0]])
    assert valid.all()
    assert np.isfinite(log_flux).all()
