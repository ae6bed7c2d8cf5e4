"""The autoencoder route from prepared data to estimates, on the tiny experiment: what moves, resumes and refuses."""

import os
import shutil
import signal

import jax
import numpy as np
import pytest
from astropy.table import Table
from helpers import tiny

from remap.autoencoder import adapt, errors, regress
from remap.autoencoder import estimate as estimates
from remap.autoencoder.estimate import estimate, estimate_labels
from remap.autoencoder.members import encode, load_members, member_folder, open_route
from remap.autoencoder.report import report
from remap.autoencoder.sources import encode_stars, held_pool, open_sky, open_source, training_pool
from remap.autoencoder.train import train_autoencoders
from remap.config import ConfigError
from remap.predict.catalogue import Flag, read_catalogue
from remap.stages.preprocess import preprocess
from remap.store import checkpoint
from remap.store.atomic import save_arrays
from remap.store.records import read_records
from remap.store.stars import readable_stars
from remap.store.workdir import read_preprocessing
from remap.train import loop
from remap.train.loop import Preempted


def same(a, b):
    return all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def final(workdir, stage, member=0):
    return checkpoint.load_final(member_folder(workdir, stage, member) / "final")[0]["params"]


@pytest.fixture(scope="session")
def route_prepared(tiny_data, tmp_path_factory):
    """A working folder of the tiny route in which `preprocess` has run; tests must not change it."""
    workdir = tmp_path_factory.mktemp("route_prepared")
    preprocess(tiny.route_config(tiny_data), workdir)
    return workdir


@pytest.fixture(scope="session")
def route(tiny_data, route_prepared, tmp_path_factory):
    """A working folder in which the whole route has run; tests must not change it."""
    workdir = tmp_path_factory.mktemp("route") / "work"
    shutil.copytree(route_prepared, workdir)
    config = tiny.route_config(tiny_data)
    train_autoencoders(config, workdir)
    adapt.adapt(config, workdir)
    regress.regress(config, workdir)
    return workdir


@pytest.fixture
def copy(tmp_path):
    def call(folder, *, without=()):
        workdir = tmp_path / "copy"
        shutil.copytree(folder, workdir, ignore=shutil.ignore_patterns(*without))
        return workdir

    return call


def test_training_learns_and_records_every_epoch(route):
    for member in range(2):
        records = read_records(route / "autoencoder" / f"member_{member}" / "metrics.jsonl")
        assert [r["step"] for r in records] == [4, 8, 12, 16, 20, 24]
        assert records[-1]["val_reconstruction"] < 0.8 * records[0]["val_reconstruction"]
        assert final(route, "autoencoder", member)["encoder_0"]["kernel"].shape == (240, 16)
    first, second = (final(route, "autoencoder", member) for member in range(2))
    assert not same(first["encoder_0"], second["encoder_0"])


def test_all_but_the_bottleneck_is_bit_identical_after_the_fine_tuning(route):
    for member in range(2):
        before, after = final(route, "autoencoder", member), final(route, "adapt", member)
        for name in before:
            assert same(before[name], after[name]) == (name != "bottleneck"), name
        assert not same(before["bottleneck"]["kernel"], after["bottleneck"]["kernel"])


@pytest.mark.parametrize("trains", ["decoder", "code"])
def test_frozen_layers_are_bit_identical_whatever_else_trains(route, copy, tiny_data, trains):
    workdir = copy(route, without=("adapt",))
    config = tiny.route_config(tiny_data, adapt__trains=trains, adapt__rehearsal=0.25)
    adapt.adapt(config, workdir)
    before, after = final(workdir, "autoencoder"), final(workdir, "adapt")
    frozen = {f"encoder_{i}" for i in range(4 if trains == "code" else 5)}
    for name in before:
        assert same(before[name], after[name]) == (name in frozen), name


def test_latents_are_aligned_by_the_encoder_alone(route, copy, tiny_data):
    workdir = copy(route, without=("adapt",))
    more = {"adapt__trains": "encoder", "adapt__rehearsal": 0.5, "regressor__encoder": "adapted"}
    more |= {"adapt__align__kind": "mmd", "adapt__align__weight": 10.0, "adapt__align_size": 16}
    config = tiny.route_config(tiny_data, adapt__matched=32, adapt__epochs_per_cycle=8, **more)
    adapt.adapt(config, workdir)
    before, after = final(workdir, "autoencoder"), final(workdir, "adapt")
    for name in before:
        assert same(before[name], after[name]) == name.startswith(("decoder", "output")), name
    records = read_records(workdir / "adapt" / "member_0" / "metrics.jsonl")
    assert records[-1]["alignment"] < 0.5 * records[0]["alignment"]
    assert records[-1]["loss"] > 10 * records[-1]["alignment"]


def test_alignment_that_makes_no_sense_is_refused(route, tiny_data):
    config = tiny.route_config(tiny_data, adapt__align__kind="mmd")
    with pytest.raises(ValueError, match=r"expected regressor\.encoder 'adapted', found 'library'"):
        adapt.adapt(config, route)
    config = tiny.route_config(tiny_data, adapt__align__kind="autoencoder")
    with pytest.raises(ValueError, match="is this route itself"):
        adapt.adapt(config, route)


def test_fine_tuning_does_not_see_labels_or_stars_kept_aside(route, copy, tiny_data):
    workdir = copy(route, without=("adapt",))
    config = tiny.route_config(tiny_data)
    sky = open_sky(config, workdir, read_preprocessing(workdir))
    assert sky.held.any()
    for arm in ("A", "B"):
        path = workdir / "data" / f"survey_{arm}.npz"
        with np.load(path) as old:
            arrays = dict(old)
        arrays["labels"] = arrays["labels"][::-1] + 1
        arrays["flux"] = np.where(sky.held[:, None], arrays["flux"][::-1], arrays["flux"])
        save_arrays(path, **arrays)
    adapt.adapt(config, workdir)
    assert same(final(route, "adapt"), final(workdir, "adapt"))


def test_fine_tuning_takes_no_more_stars_than_it_is_told(route, copy, tiny_data, monkeypatch):
    seen = []

    def watched(task, *arguments):
        seen.append(task)
        return loop.fit(task, *arguments)

    monkeypatch.setattr(adapt, "fit", watched)
    workdir = copy(route, without=("adapt",))
    adapt.adapt(tiny.route_config(tiny_data, adapt__stars=17), workdir)  # as many as there are
    assert same(final(route, "adapt"), final(workdir, "adapt"))
    shutil.rmtree(workdir / "adapt")
    whole = seen[0]
    assert len(whole.source.stars.spectra.flux) == 17

    config = tiny.route_config(tiny_data, adapt__stars=6)
    adapt.adapt(config, workdir)
    some = seen[-1]
    assert some.source.stars.count == len(some.source.stars.spectra.flux) == 6
    for few, many in (
        (some.source.stars.spectra, whole.source.stars.spectra),
        (some.validation.stars, whole.validation.stars),
    ):
        where = [np.flatnonzero((np.asarray(many.flux) == x).all(axis=1)) for x in np.asarray(few.flux)]
        assert all(len(w) == 1 for w in where)
        assert np.all(np.diff(np.concatenate(where)) > 0)
    assert len(some.validation.stars.flux) == 3
    assert len(whole.validation.stars.flux) == 5
    sky = open_sky(config, workdir, read_preprocessing(workdir))
    chosen = {seed: adapt.chosen_rows(sky, 6, seed=seed)[0].tolist() for seed in range(8)}
    assert len({tuple(c) for c in chosen.values()}) > 4  # at random
    with pytest.raises(ConfigError, match=r"adapt\.stars: expected at least 1, found 0"):
        adapt.adapt(tiny.route_config(tiny_data, adapt__stars=0), workdir)


def test_estimates_of_a_mapped_survey_do_not_depend_on_the_blocks(route, tiny_data, monkeypatch):
    config = tiny.route_config(tiny_data)
    opened = open_route(config, route)
    sky = open_sky(config, route, read_preprocessing(route))
    for survey in sky.surveys:
        assert isinstance(survey.flux.base, np.memmap)
    members = load_members(config, route, "adapted")
    shapes = []

    def watched(members, flux, **kwargs):
        shapes.append(flux.shape)
        return encode(members, flux, **kwargs)

    monkeypatch.setattr(estimates, "encode", watched)
    settings = estimates.catalogue_settings(config)

    def found(chunk, block):
        monkeypatch.setattr(estimates, "BLOCK", block)
        own = sky._replace(chunk=chunk)
        return estimates.estimate_sky(opened, settings, members, own, adapted=True, date="2024-01-01")

    whole, parts = found(64, 1000), found(5, 4)
    assert shapes == [(64, 240)] + [(5, 240)] * 5
    for label, pmf in whole.pmfs.items():
        np.testing.assert_allclose(parts.pmfs[label], pmf, atol=1e-5)
    assert np.isfinite(whole.table["teff"]).sum() == 22
    rows = np.array([20, 3, 7])
    latent = encode(members, sky.pixels(rows).flux, chunk=16)
    (again,) = encode_stars([members], sky._replace(chunk=2), rows)
    np.testing.assert_allclose(again, latent, atol=1e-5)


def test_an_arm_that_is_not_covered_keeps_a_star_out(route, tiny_data):
    config = tiny.route_config(tiny_data)
    sky = open_sky(config, route, read_preprocessing(route))
    files = list(readable_stars(route)["file"])
    assert [f for f, good in zip(files, sky.usable, strict=True) if not good] == ["one_arm.fits"]
    row = estimate(config, route, date="2024-01-01").table[files.index("one_arm.fits")]
    assert row["flags"] == Flag.UNREADABLE
    assert np.isnan(row["teff"])
    assert "one is not covered" in row["message"]


@pytest.mark.parametrize("stage", ["autoencoder", "adapt", "regressor"])
def test_an_interrupted_stage_ends_as_if_it_had_not_been(route, copy, tiny_data, stage, monkeypatch):
    config = tiny.route_config(tiny_data)
    run = {"autoencoder": train_autoencoders, "adapt": adapt.adapt, "regressor": regress.regress}[stage]
    workdir = copy(route, without=("final",) if stage == "autoencoder" else ())
    shutil.rmtree(workdir / stage)
    save, calls = checkpoint.save_state, []

    def save_and_terminate(manager, *arguments):
        save(manager, *arguments)
        calls.append(manager.directory)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop.checkpoint, "save_state", save_and_terminate)
    with pytest.raises(Preempted):
        run(config, workdir)
    assert not list((workdir / stage).glob("*/final"))
    run(config, workdir)
    for folder in sorted((route / stage).iterdir()):
        expected = checkpoint.load_final(folder / "final")
        found = checkpoint.load_final(workdir / stage / folder.name / "final")
        assert same(expected[0], found[0])
        assert read_records(folder / "metrics.jsonl") == read_records(
            workdir / stage / folder.name / "metrics.jsonl"
        )


def test_a_new_member_leaves_the_others_as_they_are(route, copy, tiny_data):
    workdir = copy(route, without=("adapt", "regressor"))
    newest = {p: p.stat().st_mtime_ns for p in (workdir / "autoencoder").rglob("*") if p.is_file()}
    config = tiny.route_config(tiny_data)
    config.autoencoder.members = (*config.autoencoder.members, (8, 1e-7, 1e-2))
    train_autoencoders(config, workdir)
    assert {p: p.stat().st_mtime_ns for p in newest} == newest
    assert len(load_members(config, workdir, "library")) == 3


def test_a_member_that_is_a_copy_of_another_is_refused(tiny_data, route, tmp_path):
    """Both have the same settings, so that no description tells them apart."""
    workdir = shutil.copytree(route, tmp_path / "work")
    folders = [member_folder(workdir, "autoencoder", i) / "final" for i in (0, 1)]
    shutil.rmtree(folders[1])
    shutil.copytree(*folders)
    with pytest.raises(ConfigError, match=r"member_1: holds the network of .*member_0 once more"):
        load_members(tiny.route_config(tiny_data), workdir, "library")


def test_other_settings_are_refused_with_both_values(route, tiny_data):
    config = tiny.route_config(tiny_data, autoencoder__contractive=1.0)
    with pytest.raises(ValueError, match=r"config\.autoencoder\.contractive: expected 1\.0, found 0\.0001"):
        train_autoencoders(config, route)
    with pytest.raises(ValueError, match=r"config\.autoencoder\.contractive: expected 1\.0, found 0\.0001"):
        load_members(config, route, "library")
    config = tiny.route_config(tiny_data, adapt__trains="all")
    with pytest.raises(ValueError, match=r"config\.adapt\.trains: expected 'all', found 'bottleneck'"):
        estimate(config, route)
    config = tiny.route_config(tiny_data, regressor__networks=3)
    with pytest.raises(ValueError, match=r"config\.regressor\.networks: expected 3, found 2"):
        estimate(config, route)


def test_a_stage_that_misses_the_one_before_says_so(route_prepared, tiny_data):
    with pytest.raises(FileNotFoundError, match=r"autoencoder/member_0/final: expected a finished network"):
        adapt.adapt(tiny.route_config(tiny_data), route_prepared)


def test_regressors_come_back_with_their_scaling_and_their_errors_on_unseen_cells(route, tiny_data):
    config = tiny.route_config(tiny_data)
    opened = open_route(config, route)
    found = regress.load_regressors(opened, "library")
    source = open_source(config, route, read_preprocessing(route))
    members = load_members(config, route, "library")
    pool = training_pool(opened, source)
    latent = encode(members, pool.pixels.flux, chunk=16)
    np.testing.assert_allclose(found.scaling.label_mean, np.asarray(pool.labels).mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.scaling.latent_mean, latent.mean(axis=1), rtol=1e-4, atol=1e-6)
    held = held_pool(opened, source)
    values = estimate_labels(found, encode(members, held.pixels.flux, chunk=16)).values
    error = values - np.asarray(held.labels).T[None, None]
    np.testing.assert_allclose(found.residual, np.sqrt((error**2).mean(axis=-1)), rtol=1e-4)
    assert found.residual.shape == (2, 2, 3)
    records = read_records(route / "regressor" / "library" / "metrics.jsonl")
    assert records[-1]["loss"] < records[0]["loss"]


def test_one_encoder_for_both_domains_trains_a_second_set_of_regressors(route, copy, tiny_data):
    workdir = copy(route)
    config = tiny.route_config(tiny_data, regressor__encoder="adapted")
    regress.regress(config, workdir)
    library, adapted = (
        regress.load_regressors(open_route(config, workdir), e) for e in ("library", "adapted")
    )
    assert not np.allclose(library.scaling.latent_mean, adapted.scaling.latent_mean)
    found = estimate(config, workdir, date="2024-01-01")
    assert not np.allclose(found.table["teff"], estimate(config, workdir, adapted=False).table["teff"])


def test_report_writes_tables_catalogues_and_figures(route, copy, tiny_data):
    workdir = copy(route)
    config = tiny.route_config(tiny_data)
    found = report(config, workdir, date="2024-01-01")
    out = workdir / "bridge"
    names = {"domains.ecsv", "reconstruction.ecsv", "labels.ecsv", "estimates.fits", "before.fits"}
    names |= {"one_to_one.png", "latents.png", "training_autoencoder_member_0.png"}
    assert names <= {p.name for p in out.iterdir()}

    assert set(found.domains["comparison"]) == {"control", "before", "after", "after, one encoder"}
    everyone = found.domains[(found.domains["group"] == "all") & (found.domains["member"] == "all")]
    # Whole stars with all labels inside the library (4500-6000 K, log g 3-5, [Fe/H] -1-0).
    stars = Table.read(workdir / "data" / "stars.ecsv")
    inside = (stars["status"] == "ok") & (stars["teff"] <= 6000) & np.isfinite(stars["feh"])
    inside &= (stars["feh"] <= 0) & (stars["file"] != "one_arm.fits")
    assert set(everyone["n"]) == {np.count_nonzero(inside)}
    assert np.all((everyone["auc_low"] <= everyone["auc"]) & (everyone["auc"] <= everyone["auc_high"]))
    assert np.all((everyone["mmd_p"] > 0) & (everyone["mmd_p"] <= 1))
    assert np.all(everyone["features"] <= 8)

    assert set(found.reconstruction["stage"]) == {"before", "after"}
    assert np.all(found.reconstruction["rms_low"] <= found.reconstruction["rms"])
    tuned = found.reconstruction[found.reconstruction["domain"] == "survey, trained on"]
    assert tuned["rms"][1] < tuned["rms"][0]  # what the fine-tuning was for

    routes = {"before", "after", "library encoder", "adapted encoder"}  # and no zero-shot: it was not trained
    assert set(found.labels["route"]) == routes
    catalogue = read_catalogue(out / "estimates.fits")
    row = found.labels[(found.labels["route"] == "after") & (found.labels["group"] == "dwarfs")]
    truth = Table.read(workdir / "data" / "stars.ecsv")
    truth = truth[[s != "unreadable" for s in truth["status"]]]
    dwarfs = (truth["status"] == "ok") & (truth["logg"] >= 3.5) & (truth["file"] != "one_arm.fits")
    error = np.asarray(catalogue.table["teff"] - truth["teff"])[np.asarray(dwarfs)]
    assert row["n"][0] == len(error)
    assert row["bias"][0] == pytest.approx(error.mean(), rel=1e-6)
    assert row["mae"][0] == pytest.approx(np.abs(error).mean(), rel=1e-6)
    assert row["bias_low"][0] < row["bias"][0] < row["bias_high"][0]
    assert catalogue.edges["teff"].size == 2 * 50 + 1
    good = catalogue.table["flags"] != Flag.UNREADABLE
    assert np.all(catalogue.table["teff_p16"][good] <= catalogue.table["teff_p84"][good])


def test_report_compares_with_zero_shot_where_it_is_there(route, copy, tiny_data, monkeypatch):
    """The pre-trained network of the main route is stood in for by the route without its fine-tuning."""
    workdir = copy(route)
    config = tiny.route_config(tiny_data)
    zero = HeldOutStub(estimate(config, workdir, adapted=False, date="2024-01-01"))
    monkeypatch.setattr(errors, "held_out", lambda *arguments, rows: zero)
    monkeypatch.setattr(errors, "has_final", lambda folder: True)
    stars = readable_stars(workdir)
    catalogue = estimate(config, workdir, date="2024-01-01")
    sky = open_sky(config, workdir, read_preprocessing(workdir))
    routes = errors.zero_shot(config, workdir, stars, np.arange(len(stars))) | {"after": catalogue}
    rows = errors.label_rows(errors.gap_settings(config), config.evaluate.groups, stars, sky.usable, routes)
    found = {(r["route"], r["group"], r["label"]): r for r in rows}
    after, before = found["after", "dwarfs", "teff"], found["zero-shot", "dwarfs", "teff"]
    assert after["n"] == before["n"] > 10
    assert after["gain"] == pytest.approx(before["mae"] - after["mae"], rel=1e-6)
    assert after["gain_low"] <= after["gain"] <= after["gain_high"]
    assert np.isnan(before["gain"])


def test_launch_script_runs_the_stages_that_it_is_told(route, copy, tiny_data):
    workdir = copy(route)
    arguments = (
        "--config=tests/helpers/tiny.py:route",
        f"--config.data_root={tiny_data}",
        f"--workdir={workdir}",
    )
    done = tiny.launch("launch.autoencoder", *arguments, "--stages=train,adapt,regress")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("already trained") == 5  # two autoencoders twice, and the regressors
    wrong = tiny.launch("launch.autoencoder", *arguments, "--stages=train,fly")
    assert wrong.returncode == 1
    assert (
        wrong.stderr.strip() == "error: --stages: expected some of train, adapt, regress, report, found fly"
    )


class HeldOutStub:
    """What `held_out.held_out` gives, with one catalogue for all."""

    def __init__(self, catalogue):
        self.found = catalogue

    def catalogue(self, stars):
        return self.found


def test_a_survey_without_labels_has_a_catalogue_and_no_comparison(route, copy, tiny_data, caplog):
    workdir = copy(route)
    path = workdir / "data" / "stars.ecsv"
    stars = Table.read(path)
    for name in ("teff", "logg", "feh"):
        stars[name][:] = np.nan
    stars["status"] = [s if s == "unreadable" else "unlabelled" for s in stars["status"]]
    del stars.meta["sha256"]
    stars.write(path, overwrite=True)
    found = report(tiny.route_config(tiny_data), workdir, date="2024-01-01")
    assert "it needs 2 stars with all labels inside the library, found 0" in caplog.text
    assert len(found.domains) == 0
    assert set(found.labels["group"]) == {"library"}
    assert not (workdir / "bridge" / "domains.ecsv").exists()
    assert np.isfinite(read_catalogue(workdir / "bridge" / "estimates.fits").table["teff"]).sum() == 22
