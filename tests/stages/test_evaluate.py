"""The report: held-out stars meet only networks that did not train on them, and the numbers are theirs."""

import shutil

import numpy as np
import pytest
from astropy.table import Table
from helpers import tiny
from scipy.stats import kstest

from remap import load
from remap.config import ConfigError
from remap.predict.arms import ArmInputs
from remap.predict.catalogue import read_catalogue
from remap.predict.held_out import predict_held_out
from remap.stages import calibrate as calibration
from remap.stages import evaluate
from remap.store.stars import STATUS_UNREADABLE, fold_split, labelled_rows, split_settings, within
from remap.store.workdir import load_survey, read_stars


@pytest.fixture(scope="module")
def report(tiny_data, tiny_workdir, tmp_path_factory):
    """A folder in which `evaluate` has run, without plots, and its table."""
    workdir = tmp_path_factory.mktemp("report") / "work"
    shutil.copytree(tiny_workdir, workdir)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_plot", "_plot_calibration", "_plot_training"):
            patch.setattr(evaluate, name, no_matplotlib)
        return workdir, evaluate.evaluate(tiny.config(tiny_data), workdir)


def no_matplotlib(*_):
    raise ImportError("no matplotlib")


def stars_of(workdir):
    stars = read_stars(workdir)
    return stars[[s != STATUS_UNREADABLE for s in stars["status"]]]


def labelled_of(workdir):
    """The stars that the written catalogues have."""
    stars = stars_of(workdir)
    return stars[labelled_rows(workdir, stars)]


def held_out(tiny_data, workdir, stage="finetune", **changes):
    return predict_held_out(tiny.config(tiny_data, **changes), workdir, stars_of(workdir), stage)


def single_fold(workdir, fold):
    """PMFs of one arm and fold for all stars, straight from that network."""
    predictor = load(workdir, folds=[fold])
    survey, snr = load_survey(workdir, "A")
    return predictor.predict_arm("A", ArmInputs(survey.flux, survey.valid, snr)).pmf


def test_every_star_is_predicted_by_the_network_that_did_not_train_on_it(tiny_data, tiny_workdir):
    stars, config = stars_of(tiny_workdir), tiny.config(tiny_data)
    catalogue, tested = held_out(tiny_data, tiny_workdir)
    assert tested.all()
    folds = [single_fold(tiny_workdir, k)[0][:, :50] for k in (0, 1)]  # teff
    splits = [fold_split(stars, split_settings(config), k) for k in (0, 1)]
    found = catalogue.pmfs["teff", "A"]
    assert list(catalogue.table["star_id"]) == list(stars["star_id"])
    for i in range(len(stars)):
        tests = [k for k in (0, 1) if splits[k][i] == "test"]
        expected = folds[tests[0]][i] if tests else (folds[0][i] + folds[1][i]) / 2
        np.testing.assert_allclose(found[i], expected, atol=1e-6)
        if tests:  # the other network, which trained on the star, says something else
            assert splits[1 - tests[0]][i] in ("train", "val")
            assert np.abs(found[i] - folds[1 - tests[0]][i]).max() > 1e-4


def test_stars_of_folds_that_were_not_run_are_not_tested(tiny_data, tiny_workdir):
    stars = stars_of(tiny_workdir)
    _, tested = held_out(tiny_data, tiny_workdir, split__run=(1,))
    split = fold_split(stars, split_settings(tiny.config(tiny_data)), 1)
    np.testing.assert_array_equal(tested, (split == "test") | (split == "other"))
    assert (~tested).sum() == 9


def test_pretrained_network_saw_no_star(tiny_data, tiny_workdir):
    catalogue, tested = held_out(tiny_data, tiny_workdir, "pretrain")
    assert tested.all()
    assert catalogue.meta["checkpoint_step"] == {"A": [8], "B": [8]}


def test_validation_stars_are_predicted_by_a_fold_that_watched_them(tiny_data, tiny_workdir):
    stars, config = stars_of(tiny_workdir), tiny.config(tiny_data)
    splits = [fold_split(stars, split_settings(config), k) for k in (0, 1)]
    catalogue, tuned = predict_held_out(config, tiny_workdir, stars, "finetune", "val")
    np.testing.assert_array_equal(tuned, (splits[0] == "val") | (splits[1] == "val"))
    assert 0 < tuned.sum() < (splits[0] != "other").sum()
    for i in np.flatnonzero(tuned):
        fold = 0 if splits[0][i] == "val" else 1
        expected = single_fold(tiny_workdir, fold)[0][i, :50]
        np.testing.assert_allclose(catalogue.pmfs["teff", "A"][i], expected, atol=1e-6)


def test_another_spectrum_of_a_training_star_is_held_out_with_it(tiny_data, tiny_workdir, tmp_path):
    """dwarf_16 is a second visit to D00. Unselected, by a label of its own, it is still the same star."""
    workdir = tmp_path / "work"
    shutil.copytree(tiny_workdir, workdir)
    stars = read_stars(workdir)
    second = list(stars["file"]).index("dwarf_16.fits")
    assert stars["star_id"][second] == "D00"
    stars["logg"][second] = 3.45  # below `finetune.select`; that of the first visit is above
    stars.write(workdir / "data" / "stars.ecsv", overwrite=True)
    for path in workdir.glob("finetune/*/*/split.json"):
        path.unlink()  # made again from the labels, as for networks of before it was written
    catalogue, tested = held_out(tiny_data, workdir)
    split = fold_split(stars_of(workdir), split_settings(tiny.config(tiny_data)), 0)
    assert split[second] == "other"
    fold = 0 if split[0] == "test" else 1
    expected = single_fold(workdir, fold)[0][second, :50]
    assert tested[second]
    np.testing.assert_allclose(catalogue.pmfs["teff", "A"][second], expected, atol=1e-6)


def test_summary_counts_the_known_labels_of_tested_stars(report):
    table = report[1]
    assert list(table["stage"]) == ["pretrain"] * 6 + ["finetune"] * 6 + ["validation"] * 3
    counts = {(r["group"], r["label"]): r["n"] for r in table if r["stage"] == "finetune"}
    expected = {("dwarfs", label): 18 for label in ("teff", "logg", "feh")}
    expected["dwarfs", "feh"] = 17  # one star has no metallicity
    expected |= {("giants", label): 2 for label in ("teff", "logg", "feh")}  # not the star outside the bins
    assert counts == expected


def test_summary_repeats_from_the_written_catalogue(report):
    """Every number again, from the file and the label table, with NumPy alone."""
    workdir, table = report
    np.testing.assert_array_equal(Table.read(workdir / "evaluate" / "summary.ecsv")["bias"], table["bias"])
    stars = labelled_of(workdir)
    for stage in ("pretrain", "finetune"):
        catalogue = read_catalogue(workdir / "evaluate" / f"{stage}.fits")
        assert list(catalogue.table["file"]) == list(stars["file"])
        dwarf = np.array([f.startswith("dwarf") for f in stars["file"]])
        for label in ("teff", "logg", "feh"):
            line = table[
                (table["stage"] == stage) & (table["group"] == "dwarfs") & (table["label"] == label)
            ][0]
            truth = np.asarray(stars[label], float)
            keep = dwarf & np.isfinite(truth)
            residual = np.asarray(catalogue.table[label])[keep] - truth[keep]
            assert line["bias"] == pytest.approx(residual.mean())
            assert line["std"] == pytest.approx(residual.std(ddof=0), rel=0.06)  # or with ddof = 1: n = 17
            mad = 1.4826 * np.median(np.abs(residual - np.median(residual)))
            assert line["robust"] == pytest.approx(mad)
            slope = np.polyfit(truth[keep], np.asarray(catalogue.table[label])[keep], 1)[0]
            assert line["prediction_slope"] == pytest.approx(slope)
            assert line["slope"] == pytest.approx(slope - 1)
            pmf, edges = catalogue.pmfs[label][keep].astype(float), catalogue.edges[label]
            inside = pmf[np.arange(keep.sum()), np.searchsorted(edges, truth[keep], side="right") - 1]
            assert line["nll"] == pytest.approx(np.mean(-np.log(inside / np.diff(edges)[0])), rel=1e-4)


def test_numbers_of_the_stars_themselves_are_those_of_pmfs_smeared_by_the_labels_errors(report):
    """Again from the written catalogue, by drawing errors: the tiny survey has 80 K (Teff), 0.15 and 0.05 for all."""
    workdir, table = report
    stars = labelled_of(workdir)
    catalogue = read_catalogue(workdir / "evaluate" / "finetune.fits")
    dwarf = np.array([f.startswith("dwarf") for f in stars["file"]])
    rng = np.random.default_rng(0)
    for label in ("teff", "logg"):
        truth, error = (np.asarray(stars[c], float)[dwarf] for c in (label, f"{label}_err"))
        pmf, edges = catalogue.pmfs[label][dwarf].astype(float), catalogue.edges[label]
        (line,) = table[
            (table["stage"] == "finetune") & (table["group"] == "dwarfs") & (table["label"] == label)
        ]
        residual = np.asarray(catalogue.table[label], float)[dwarf] - truth
        mad = 1.4826 * np.median(np.abs(residual - np.median(residual)))
        left = np.sqrt(max(0.0, mad**2 - np.median(error**2)))
        assert line["scatter_star"] == pytest.approx(left)
        for name, reach in (("cover68_labels", 0.99446), ("cover95_labels", 1.95996)):
            assert line[name] == pytest.approx(np.mean(np.abs(residual) <= reach * error))
        assert 0 <= line["scatter_star_low"] <= left <= line["scatter_star_high"]
        # The place of each label among labels that the PMF would give: stars drawn from it, with errors.
        k = np.array([rng.choice(len(p), 20_000, p=p / p.sum()) for p in pmf])
        drawn = (
            edges[k] + np.diff(edges)[k] * rng.random(k.shape) + error[:, None] * rng.standard_normal(k.shape)
        )
        place = np.mean(drawn < truth[:, None], axis=1)
        sure = np.abs(np.abs(place - 0.5) - np.array([[0.34], [0.475]])) > 0.015  # 4 standard errors
        held = np.abs(place - 0.5) <= np.array([[0.34], [0.475]])
        for row, name in enumerate(("cover68_star", "cover95_star")):
            assert abs(line[name] - held[row].mean()) <= np.mean(~sure[row]) + 1e-9
        assert line["pit_ks_star"] == pytest.approx(kstest(place, "uniform").statistic, abs=0.02)


def test_distance_of_the_pit_from_uniform_is_that_of_the_written_pmfs(report):
    workdir, table = report
    stars = labelled_of(workdir)
    catalogue = read_catalogue(workdir / "evaluate" / "finetune.fits")
    dwarf = np.array([f.startswith("dwarf") for f in stars["file"]])
    pmf, edges = catalogue.pmfs["logg"][dwarf].astype(float), catalogue.edges["logg"]
    cdf = np.concatenate([np.zeros((dwarf.sum(), 1)), np.cumsum(pmf / pmf.sum(axis=1, keepdims=True), 1)], 1)
    pit = [np.interp(t, edges, c) for t, c in zip(np.asarray(stars["logg"], float)[dwarf], cdf, strict=True)]
    (line,) = table[
        (table["stage"] == "finetune") & (table["group"] == "dwarfs") & (table["label"] == "logg")
    ]
    assert line["pit_ks"] == pytest.approx(kstest(pit, "uniform").statistic, abs=1e-5)


def test_stars_without_labels_have_no_part_and_change_nothing(tiny_data, tiny_workdir, tmp_path, monkeypatch):
    for name in ("_plot", "_plot_calibration", "_plot_training"):
        monkeypatch.setattr(evaluate, name, no_matplotlib)
    config = tiny.config(tiny_data, calibrate__min_stars=2)
    found = {}
    for what in ("labelled", "all"):
        workdir = shutil.copytree(tiny_workdir, tmp_path / what)
        stars = stars_of(workdir)
        if what == "all":
            for module in (evaluate, calibration):
                monkeypatch.setattr(module, "labelled_rows", lambda workdir, stars: np.arange(len(stars)))
        calibration.calibrate(config, workdir)
        found[what] = evaluate.evaluate(config, workdir), workdir / "evaluate"
    unknown = {"nameless.fits", "one_arm.fits"}
    known = [f for f in stars["file"] if f not in unknown]
    assert len(known) == len(stars) - 2
    for stage in ("pretrain", "finetune"):
        written = {what: read_catalogue(out / f"{stage}.fits").table for what, (_, out) in found.items()}
        assert list(written["labelled"]["file"]) == known
        assert list(written["all"]["file"]) == list(stars["file"])
    for read in (lambda what: found[what][0], lambda what: Table.read(found[what][1] / "by_snr.ecsv")):
        own, expected = read("labelled"), read("all")
        for name in expected.colnames:
            if expected[name].dtype.kind == "f":
                np.testing.assert_allclose(own[name], expected[name], rtol=1e-4, atol=1e-5, err_msg=name)
            else:
                assert list(own[name]) == list(expected[name])


def test_a_survey_without_labels_is_refused(tiny_data, tiny_workdir, tmp_path):
    workdir = shutil.copytree(tiny_workdir, tmp_path / "work")
    stars = read_stars(workdir)
    for name in ("teff", "logg", "feh"):
        stars[name][:] = np.nan
    stars.write(workdir / "data" / "stars.ecsv", overwrite=True)
    with pytest.raises(ConfigError, match="expected stars with a known label, found none among 23"):
        evaluate.evaluate(tiny.config(tiny_data), workdir)


def test_rows_by_snr_are_those_of_the_stars_in_each_bin(tiny_data, report):
    """The tiny survey has one signal-to-noise of about 100 for all; one edge lies among them."""
    workdir = report[0]
    written = Table.read(workdir / "evaluate" / "by_snr.ecsv")
    edges = tiny.config(tiny_data).evaluate.snr_edges
    assert sorted(set(written["snr_low"])) == [0.0, *edges]
    catalogue = read_catalogue(workdir / "evaluate" / "finetune.fits")
    stars = labelled_of(workdir)
    member = np.isfinite(np.asarray(stars["teff"], float)) & [f.startswith("dwarf") for f in stars["file"]]
    snr = np.asarray(catalogue.table["snr"], float)
    counts = {
        stage: [int(row["n"]) for row in written if (row["stage"], row["group"], row["label"]) == key]
        for stage, key in ((s, (s, "dwarfs", "teff")) for s in ("pretrain", "finetune"))
    }
    expected = np.histogram(snr[member], [0, *edges, np.inf])[0].tolist()
    assert counts == {"pretrain": expected, "finetune": expected}
    assert sum(n > 0 for n in expected) > 1
    for row in written[(written["stage"] == "finetune") & (written["group"] == "dwarfs")]:
        keep = member & (snr >= row["snr_low"]) & (snr < row["snr_high"])
        truth = np.asarray(stars[row["label"]], float)
        keep &= np.isfinite(truth)
        assert row["n"] == keep.sum()
        if row["n"] > 1:
            predicted = np.asarray(catalogue.table[row["label"]])[keep]
            assert row["bias"] == pytest.approx(np.mean(predicted - truth[keep]))
            assert row["prediction_slope"] == pytest.approx(np.polyfit(truth[keep], predicted, 1)[0])


def test_table1_has_the_summarys_numbers_and_names_what_it_quotes(report):
    workdir, table = report
    text = (workdir / "evaluate" / "table1.md").read_text()
    assert text.count("\n## ") == 4  # two stages of two groups; validation stars are not among them
    (line,) = table[
        (table["stage"] == "finetune") & (table["group"] == "dwarfs") & (table["label"] == "teff")
    ]
    section = text.split("## finetune, dwarfs")[1].split("## ")[0]
    (row,) = [r for r in section.splitlines() if r.startswith("| teff (K) |")]
    cells = [c.strip().replace("−", "-") for c in row.strip("|").split("|")]
    assert cells[1] == "18"
    assert float(cells[2].removesuffix(" K")) == pytest.approx(line["bias"], abs=0.51)
    assert float(cells[3].removesuffix(" K")) == pytest.approx(line["std"], abs=0.51)
    assert cells[5:] == ["-10 K", "75 K"]
    assert "30 MARVELS calibration stars" in text


def test_calibration_is_drawn_before_and_after(tiny_data, tiny_workdir, tmp_path, monkeypatch):
    """The curves that are handed to the figure are those of the two catalogues, star by star."""
    drawn = []
    monkeypatch.setattr(
        evaluate, "calibration_curves", lambda path, found, *_, **__: drawn.append((path, found))
    )
    stars, config = stars_of(tiny_workdir), tiny.config(tiny_data)
    after, tested = held_out(tiny_data, tiny_workdir)
    before = after._replace(pmfs={k: np.full_like(v, 1 / v.shape[1]) for k, v in after.pmfs.items()})
    catalogues = {"finetune": after, "uncalibrated": before}
    evaluate._plot_calibration(tmp_path, "finetune", catalogues, stars, tested, config.evaluate.groups)
    ((path, found),) = drawn
    assert path == tmp_path / "calibration_finetune.png"
    assert list(found) == ["dwarfs", "giants"]
    curves = found["dwarfs"]["feh"]
    assert list(curves) == ["calibrated", "uncalibrated"]
    dwarf = np.array([f.startswith("dwarf") for f in stars["file"]])
    truth = np.asarray(stars["feh"], float)[dwarf & np.isfinite(np.asarray(stars["feh"], float))]
    # Of the flat PMFs over -2 to 1 the transform is the place in the range, and intervals are parts of it.
    transform = curves["uncalibrated"].pit
    np.testing.assert_allclose(transform[~np.isnan(transform)], (truth + 2) / 3, rtol=1e-6)
    expected = [np.mean(np.abs(truth + 0.5) <= 1.5 * i / 20 + 1e-9) for i in range(1, 20)]
    np.testing.assert_allclose(curves["uncalibrated"].held, expected)
    assert not np.allclose(curves["calibrated"].pit, transform, atol=1e-3, equal_nan=True)


def test_reports_of_a_folder_without_networks_are_refused(tiny_data, tiny_prepared, tmp_path):
    shutil.copytree(tiny_prepared, tmp_path / "work")
    with pytest.raises(
        FileNotFoundError, match="expected a finished pretrain or finetune stage, found neither"
    ):
        evaluate.evaluate(tiny.config(tiny_data), tmp_path / "work")


def test_group_limits_include_their_ends_and_leave_out_unknown_labels(tiny_workdir):
    stars = stars_of(tiny_workdir)
    member = within(stars, {"teff": (4600.0, 4675.0), "feh": (-2.0, 1.0)})
    assert sorted(stars["file"][member]) == ["dwarf_00.fits", "dwarf_01.fits", "dwarf_16.fits"]
    member = within(stars, {"feh": (-2.0, 1.0)})
    assert tiny.NO_METALLICITY not in set(stars["file"][member])


def test_what_is_printed_fits_on_a_screen_and_names_every_row():
    row = dict.fromkeys(evaluate.BRIEF, 0.123) | {
        "stage": "uncalibrated",
        "group": "dwarfs",
        "label": "teff",
    }
    text = evaluate.brief(Table(rows=[row | {"nll": 1.0}, row | {"label": "logg", "nll": 2.0}])).splitlines()
    assert len(text) == 4
    assert all(name in text[0] for name in evaluate.BRIEF)
    assert "nll" not in text[0]
    assert max(map(len, text)) <= 120
    assert text[3].split()[:3] == ["uncalibrated", "dwarfs", "logg"]
