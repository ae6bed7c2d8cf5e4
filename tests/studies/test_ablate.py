"""Ablations on the tiny experiment: what is trained, shared, resumed and refused, and what the report says."""

import json
import shutil

import jax
import numpy as np
import pytest
from astropy.table import Table
from helpers import tiny

from remap.config import ConfigError, apply_overrides, deciding
from remap.predict.held_out import predict_held_out
from remap.stages import common
from remap.store.atomic import read_arrays, save_arrays
from remap.store.checkpoint import load_final, save_final
from remap.store.stars import fold_split, readable_stars, split_settings
from remap.store.workdir import read_preprocessing, share, write_config
from remap.studies import ablate as module
from remap.studies.ablate import ablate, plan
from remap.studies.ablate_report import compare, markdown
from remap.train.loop import DivergedError

LABELS = ("teff", "logg", "feh")
# The second is what the config has anyway; the third pre-trains on its own.
RUN = ("uniform_rates", "graded_rates", "no_swa")


def config(data, **changes):
    settings = {"ablate__seeds": (0,), "ablate__run": RUN, "ablate__resamples": 50} | changes
    return tiny.config(data, arm_names=("A",), split__run=(0,), **settings)


def with_variants(c, **variants):
    with c.unlocked():
        c.ablate.variants = variants
    return c


def scores(workdir, variant, seed=0):
    return json.loads((workdir / "ablate" / variant / f"seed_{seed}.json").read_text())


def network(workdir, *parts):
    return jax.tree.leaves(load_final(workdir.joinpath("ablate", *parts, "final"))[0])


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture(scope="module")
def done(tiny_data, tmp_path_factory):
    """A working folder in which the ablation has run, and its table; tests must not change it."""
    workdir = tmp_path_factory.mktemp("ablate") / "work"
    return workdir, ablate(config(tiny_data), workdir)


@pytest.fixture
def moved(done, tmp_path):
    """A copy of it elsewhere, for tests that change it."""
    return shutil.copytree(done[0], tmp_path / "moved", symlinks=True)


def no_training(monkeypatch):
    monkeypatch.setattr(common, "fit", lambda *_, **__: pytest.fail("trained again"))


# ---------------------------------------------------------------------------------------------- training


def test_data_are_prepared_once_and_variants_of_fine_tuning_share_the_pre_training(done):
    folder = done[0] / "ablate"
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == ["full", "no_swa", "uniform_rates"]
    for variant in ("full", "uniform_rates", "no_swa"):
        link = folder / variant / "seed_0" / "data"
        assert link.is_symlink()
        assert link.resolve() == (done[0] / "data").resolve()
    assert (folder / "uniform_rates/seed_0/pretrain").resolve() == (folder / "full/seed_0/pretrain").resolve()
    assert not (folder / "no_swa/seed_0/pretrain").is_symlink()
    trained = [network(done[0], v, "seed_0/finetune/A/fold_0") for v in ("full", "uniform_rates", "no_swa")]
    assert not equal(trained[0], trained[1])
    assert not equal(trained[0], trained[2])
    before = [network(done[0], v, "seed_0/pretrain/A") for v in ("full", "no_swa")]
    assert not equal(*before)


def test_scores_are_those_of_stars_that_the_networks_did_not_train_on(done, tiny_data):
    """Against the predictions of the folder and NumPy."""
    workdir = done[0] / "ablate" / "uniform_rates" / "seed_0"
    c = next(v.parts[0].config for v in module.plan(config(tiny_data)) if v.name == "uniform_rates")
    stars = readable_stars(workdir)
    split = fold_split(stars, split_settings(c), 0)
    found, tested = predict_held_out(c, workdir, stars, "finetune")
    result = scores(done[0], "uniform_rates")
    assert result["file"] == list(stars["file"])
    for label in LABELS:
        residual = np.array(result["labels"][label]["residual"])
        truth = np.asarray(stars[label], float)
        known = tested & np.isfinite(truth) & (np.asarray(found.table["arms"]) != "")
        np.testing.assert_array_equal(np.isfinite(residual), known)
        assert not np.isfinite(residual[(split == "train") | (split == "val")]).any()
        expected = np.asarray(found.table[label], float) - truth
        np.testing.assert_allclose(residual[known], expected[known], rtol=1e-6)
        pmf, edges = found.pmfs[label], found.edges[label]
        for i in np.flatnonzero((split == "test") & known):
            k = np.searchsorted(edges, truth[i], side="right") - 1
            nll = -np.log(pmf[i, k] / (edges[1] - edges[0]))
            assert result["labels"][label]["nll"][i] == pytest.approx(nll, rel=1e-5)


def test_stars_without_labels_are_not_predicted_and_change_nothing(done, tiny_data, monkeypatch):
    workdir = done[0] / "ablate" / "full" / "seed_0"
    c = module.plan(config(tiny_data))[0].parts[0].config
    stars, seen, own = readable_stars(workdir), [], module.held_out

    def held_out(*args, **how):
        found = own(*args, **how)
        seen.append(len(found.arms["A"].used))
        return found

    monkeypatch.setattr(module, "held_out", held_out)
    known = np.isfinite([np.asarray(stars[label], float) for label in LABELS]).any(axis=0)
    labelled = module.score(c, workdir, LABELS)
    monkeypatch.setattr(module, "labelled_rows", lambda workdir, stars: np.arange(len(stars)))
    everyone = module.score(c, workdir, LABELS)
    assert seen == [np.count_nonzero(known), len(stars)]
    assert seen[0] < seen[1]
    for label in LABELS:
        for name, values in labelled[label].items():
            np.testing.assert_allclose(values, everyone[label][name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_scores_of_other_data_are_refused(moved, tiny_data, monkeypatch):
    no_training(monkeypatch)
    path = moved / "data" / "survey_A.npz"
    arrays = read_arrays(path, (), "")
    save_arrays(path, **{**arrays, "labels": arrays["labels"] + 1})
    with pytest.raises(
        ConfigError, match=r"full/seed_0/finetune/A/fold_0: trained on other data .* another labels"
    ):
        ablate(config(tiny_data), moved)


def test_table_follows_from_the_scores(done):
    workdir, table = done
    stars = readable_stars(workdir)
    logg = np.asarray(stars["logg"], float)
    member = (logg >= 3.5) & (logg <= 5.5) & (np.asarray(stars["status"]) == "ok")

    def value(variant):
        residual = np.array(scores(workdir, variant)["labels"]["logg"]["residual"])[member]
        residual = residual[np.isfinite(residual)]
        return 1.4826 * np.median(np.abs(residual - np.median(residual)))

    for variant in ("full", "uniform_rates", "no_swa"):
        keys = {"group": "dwarfs", "label": "logg", "metric": "robust", "variant": variant}
        row = table[np.logical_and.reduce([table[k] == v for k, v in keys.items()])]
        assert len(row) == 1
        assert row["value"][0] == pytest.approx(value(variant))
        assert row["change"][0] == pytest.approx(value(variant) / value("full"))
        assert row["low"][0] <= row["change"][0] <= row["high"][0] or variant == "full"
    written = Table.read(workdir / "ablate" / "summary.ecsv")
    np.testing.assert_array_equal(written["change"], table["change"])
    assert written.meta["changes"]["uniform_rates"] == ["finetune.layer_rates: graded → uniform"]
    text = (workdir / "ablate" / "summary.md").read_text()
    assert "| uniform_rates | finetune.layer_rates: graded → uniform |" in text
    assert "| graded_rates | finetune.layer_rates: graded (as in the full model: not trained) |" in text
    assert "With one seed" in text


def test_a_moved_folder_resumes_without_training_anything(moved, done, tiny_data, monkeypatch):
    monkeypatch.setattr(module, "pretrain", lambda *_: pytest.fail("ran again"))
    monkeypatch.setattr(module, "finetune", lambda *_: pytest.fail("ran again"))
    found = ablate(config(tiny_data), moved)
    assert found.pformat(max_lines=-1) == done[1].pformat(max_lines=-1)
    monkeypatch.undo()
    # Killed between the training and its scores: the networks are found, through the relative links.
    no_training(monkeypatch)
    (moved / "ablate" / "uniform_rates" / "seed_0.json").unlink()
    found = ablate(config(tiny_data), moved)
    assert found.pformat(max_lines=-1) == done[1].pformat(max_lines=-1)


def test_results_of_other_settings_are_refused_with_both_values(moved, tiny_data):
    with pytest.raises(ValueError, match=r"seed_0\.json: made with other settings: all\.loss\.gamma: expect"):
        ablate(config(tiny_data, loss__gamma=1.0), moved)


def test_single_task_takes_each_label_from_the_network_of_its_own_loss(moved, tiny_data, monkeypatch):
    """In place of training, other networks are put where those of each label belong."""
    source = {"teff": "full", "logg": "uniform_rates", "feh": "no_swa"}
    weights = []

    def put(c, folder):
        weights.append(c.loss.label_weights)
        shutil.copytree(moved / "ablate" / source[folder.name] / "seed_0" / "finetune", folder / "finetune")
        final = folder / "finetune" / "A" / "fold_0" / "final"
        variables, meta = load_final(final)
        save_final(final, variables, meta | {"config": deciding(c, "finetune")})
        write_config(folder, c)

    monkeypatch.setattr(module, "pretrain", lambda *_: None)
    monkeypatch.setattr(module, "finetune", put)
    ablate(config(tiny_data, ablate__run=("single_task",)), moved)
    assert weights == [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]
    found = scores(moved, "single_task")
    assert list(found["labels"]) == list(LABELS)
    assert set(found["settings"]) == set(LABELS)
    for label, variant in source.items():
        expected = scores(moved, variant)
        assert found["file"] == expected["file"]
        for key, values in found["labels"][label].items():
            np.testing.assert_array_equal(values, expected["labels"][label][key])


def test_a_variant_that_diverges_is_reported_and_the_others_go_on(moved, tiny_data, monkeypatch):
    (moved / "ablate" / "uniform_rates" / "seed_0.json").unlink()

    def diverge(*_):
        raise DivergedError("finetune A fold 0: not finite at step 3")

    monkeypatch.setattr(module, "finetune", diverge)
    table = ablate(config(tiny_data), moved)
    lost = table["variant"] == "uniform_rates"
    assert np.isnan(table["change"][lost]).all()
    assert not table["visible"][lost].any()
    assert np.isfinite(table["change"][~lost & (table["metric"] == "crps")]).all()
    text = (moved / "ablate" / "summary.md").read_text()
    assert (
        "uniform_rates has no result, as a training diverged (seed 0: finetune A fold 0: not finite" in text
    )
    (moved / "ablate" / "full" / "seed_0.json").unlink()
    with pytest.raises(DivergedError):
        ablate(config(tiny_data), moved)


def test_variants_of_the_inputs_prepare_their_own_data(moved, tiny_data):
    base = config(tiny_data)
    folder = module._data_folder(
        "nodes", apply_overrides(base, {"library": {"interpolate": False}}, "")[0], base, moved
    )
    assert folder == moved  # decided when the data are read
    sharp, _ = apply_overrides(base, {"lsf": {"values": (2.0, 2.1)}}, "")
    folder = module._data_folder("sharp", sharp, base, moved)
    assert folder == moved / "ablate" / "sharp"
    assert read_preprocessing(folder).spreads == ("fwhm", (2.0, 2.1))
    assert module._data_folder("sharp", sharp, base, moved) == folder
    other, _ = apply_overrides(sharp, {"labels": {"teff": {"library_sigma": 99.0}}}, "")
    with pytest.raises(ValueError, match=r"other settings: labels\.teff\.library_sigma: expected 99\.0"):
        module._data_folder("sharp", other, base, moved)


def test_links_are_relative_leave_what_is_there_and_replace_dangling_ones(tmp_path):
    for name in ("old", "source"):
        (tmp_path / name / "data").mkdir(parents=True)
    (tmp_path / "source" / "data" / "x").touch()
    work = tmp_path / "deep" / "work"
    share(work, "data", tmp_path / "nothing")
    assert not work.exists()
    share(work, "data", tmp_path / "old")
    share(work, "data", tmp_path / "source")
    assert str((work / "data").readlink()) == "../../old/data"
    shutil.rmtree(tmp_path / "old")
    share(work, "data", tmp_path / "source")
    assert (work / "data" / "x").exists()


# ------------------------------------------------------------------------------------------------ variants


def test_plan_states_each_change_relative_to_the_config_that_is_used(tiny_data):
    c = with_variants(
        config(tiny_data, ablate__run=(), finetune__layer_rates="uniform"),
        rates={"finetune": {"layer_rates": "graded"}},
        both={"loss": {"gamma": 0, "margin": 0.2}, "model": {"filters": [4, 4]}},
        same={"finetune": {"layer_rates": "uniform"}},
        alone={"per_label": True, "loss": {"cost_weight": 0.0}},
    )
    with c.unlocked():
        c.ablate.overrides = {"pretrain": {"cycles": 1}}
    models = {v.name: v for v in plan(c)}
    assert list(models) == ["full", "alone", "both", "rates", "same"]
    assert models["full"].changes == ("pretrain.cycles: 2 → 1",)
    assert models["rates"].changes == ("finetune.layer_rates: uniform → graded",)
    assert models["both"].changes == ("loss.gamma: 2.0 → 0.0", "model.filters: (4, 8) → (4, 4)")
    assert [name for name, v in models.items() if v.same] == ["same"]
    assert all(part.config.pretrain.cycles == 1 for v in models.values() for part in v.parts)
    assert models["alone"].changes == (
        "one network per label, on its loss alone",
        "loss.cost_weight: 1.0 → 0.0",
    )
    weights = {part.labels: part.config.loss.label_weights for part in models["alone"].parts}
    assert weights == {("teff",): (1, 0, 0), ("logg",): (0, 1, 0), ("feh",): (0, 0, 1)}
    assert c.loss.label_weights == ()  # the config itself is left alone
    assert c.embeddings.epochs  # asked for, but not of what is only compared
    assert not any(part.config.embeddings.epochs for v in models.values() for part in v.parts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": {"activaton": "relu"}},
            r"bad: the config has no field 'model\.activaton'; .*'activation'",
        ),
        ({"modell": {"activation": "relu"}}, r"bad: the config has no field 'modell\.activation'"),
        ({"loss": 1.0}, r"bad: 'loss' is a section, expected one of its fields .*'gamma'"),
        ({"loss": {"gamma": "high"}}, r"bad: loss\.gamma: expected a value like 2\.0, found 'high'"),
        ({"seed": 3}, "bad: seed is not to be changed here"),
        ({"embeddings": {"size": 3}}, r"bad: embeddings\.size is not to be changed here"),
        ({"evaluate": {"groups": {}}}, r"bad: evaluate\.groups is not to be changed here"),
        ({"label_names": ("teff",)}, "bad: label_names is not to be changed here"),
        ({"cross_validate": {"folds": 3}}, r"bad: cross_validate\.folds is not to be changed here"),
    ],
)
def test_impossible_variants_are_refused_by_name_and_field(tiny_data, tmp_path, changes, message):
    c = with_variants(config(tiny_data, ablate__run=()), bad=changes)
    with pytest.raises(ValueError, match=r"ablate\.variants\." + message if "bad" in message else message):
        ablate(c, tmp_path / "work")
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"ablate__run": ("no_such",)},
            r"unknown variants \['no_such'\]; the config has \['average_pooling'",
        ),
        ({"ablate__seeds": (1, 1)}, "different seeds, at least one"),
        ({"ablate__seeds": ()}, "different seeds, at least one"),
    ],
)
def test_impossible_runs_are_refused(tiny_data, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        ablate(config(tiny_data, **changes), tmp_path / "work")


def test_names_that_are_taken_or_no_folders_are_refused(tiny_data):
    for name in ("full", "a/b"):
        with pytest.raises(ValueError, match=f"'{name}' is no name for a variant"):
            plan(with_variants(config(tiny_data, ablate__run=()), **{name: {"loss": {"gamma": 0.0}}}))


# -------------------------------------------------------------------------------------------------- report


def test_report_tells_what_is_visible_from_what_is_not():
    """60 stars, two seeds, one label; one variant is 1.5 times as wide, one differs by noise."""
    rng = np.random.default_rng(0)
    names = [f"{i}.fits" for i in range(60)]
    stars = Table({"file": names, "star_id": names, "status": ["ok"] * 60, "teff": np.full(60, 5000.0)})
    residual = rng.normal(size=(2, 60)) * 50

    def results(values, **changes):
        part = [{"residual": v, "crps": np.abs(v), "nll": v**2 / 5000} for v in values]
        return [{"file": names, "diverged": "", "labels": {"teff": p}} | changes for p in part]

    noisy = residual + rng.normal(size=(2, 60)) * 10
    found = {"full": results(residual), "wide": results(1.5 * residual), "noisy": results(noisy)}
    found["shuffled"] = results(residual[:, ::-1], file=names[::-1])
    settings = {"labels": ("teff",), "groups": {"all": {"teff": (0.0, 9e9)}, "none": {"teff": (0.0, 1.0)}}}
    table = compare(found, stars, **settings, resamples=300, level=0.95)
    rows = {(r["variant"], r["metric"]): r for r in table}
    assert set(table["group"]) == {"all"}
    for metric in ("robust", "std", "crps"):
        row = rows["wide", metric]
        assert row["change"] == pytest.approx(1.5)
        assert row["visible"]
        assert row["smallest"] == pytest.approx((row["high"] - row["low"]) / 2)
        assert not rows["noisy", metric]["visible"]
        assert rows["shuffled", metric]["change"] == pytest.approx(1)  # stars are matched by file
    assert rows["wide", "nll"]["change"] == pytest.approx(1.25 * np.mean(residual**2 / 5000))
    assert rows["full", "std"]["value"] == pytest.approx(np.std(residual, axis=1, ddof=1).mean())
    per_seed = np.std(residual, axis=1, ddof=1)
    assert rows["full", "std"]["seeds_std"] == pytest.approx(abs(per_seed[0] - per_seed[1]) / np.sqrt(2))

    changes = {"full": ((), False), "wide": (("a.b: 1 → 2",), False), "noisy": ((), False)}
    changes["shuffled"] = ((), False)
    text = markdown(
        table, changes, {v: ["", ""] for v in found}, units={"teff": "K"}, seeds=(3, 4), level=0.95
    )
    line = next(x for x in text.splitlines() if x.startswith("| wide | teff |"))
    assert line.count("**1.50 (1.50 to 1.50), ± 0.00**") == 3
    line = next(x for x in text.splitlines() if x.startswith("| noisy | teff |"))
    assert line.count("not visible") == 4
    value = rows["full", "std"]
    assert "| all | teff [K] | 60 | " in text
    assert f"{value['value']:.3g} ± {value['seeds_std']:.3g}" in text
    assert "| wide | a.b: 1 → 2 |" in text
    assert "Seeds 3, 4." in text
    assert "about 1 of the 12 intervals would exclude no change by chance" in text
    assert "With 2 seeds they are somewhat too narrow." in text


def test_a_report_without_any_star_is_an_error():
    stars = Table({"file": ["a"], "star_id": ["a"], "status": ["ok"], "teff": [5000.0]})
    empty = {
        "file": ["a"],
        "diverged": "",
        "labels": {"teff": {k: [np.nan] for k in ("residual", "crps", "nll")}},
    }
    with pytest.raises(ValueError, match=r"none of the groups \['all'\] has stars that were predicted"):
        compare(
            {"full": [empty]},
            stars,
            labels=("teff",),
            groups={"all": {"teff": (0, 9e9)}},
            resamples=5,
            level=0.9,
        )
