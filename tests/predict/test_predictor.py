"""Prediction from a trained folder: bad input as flagged rows, invariances, and what is refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from astropy import units as u
from astropy.table import Column
from helpers import tiny

from remap import Predictor, load, make_spectra
from remap.io import list_files
from remap.pmf import pmf_quantile
from remap.predict.arms import ArmInputs
from remap.predict.catalogue import Flag, read_catalogue
from remap.predict.treatment import velocities_of_files
from remap.preprocess.observe import observe
from remap.spectra import SpectrumError, air_to_vacuum, doppler_shift, vacuum_to_air, velocities_in_km_s
from remap.store.workdir import read_config

LABELS = ("teff", "logg", "feh")
GOOD = tuple(range(5))
# Rows of one batch and of another go through the same compiled program: only the order of sums could differ.
SAME = {"rtol": 0, "atol": 1e-6}


@pytest.fixture(scope="module")
def good(tiny_predictor):
    """The catalogue of five good stars, all at once."""
    return tiny_predictor.predict(tiny.spectra(GOOD))


@pytest.fixture
def folder(tmp_path):
    """Five good stars as files."""
    for i in GOOD:
        tiny.write_table(tmp_path / tiny.DWARFS[i][0], *tiny.star(i))
    return tmp_path


def rows(catalogue):
    return {name: i for i, name in enumerate(catalogue.table["file"])}


def assert_same_rows(found, expected, names=None, atol=1e-6):
    """The rows of `expected` (or those named) have the same values in `found`."""
    ours, theirs = rows(found), rows(expected)
    for name in names or theirs:
        for key, pmf in expected.pmfs.items():
            np.testing.assert_allclose(
                found.pmfs[key][ours[name]], pmf[theirs[name]], rtol=0, atol=atol, err_msg=name
            )
        for column in ("flags", "arms", "message"):
            assert found.table[column][ours[name]] == expected.table[column][theirs[name]]
        # A quantile moves by the error of the probability over the density there.
        for label in LABELS:
            width = np.ptp(expected.edges[label])
            for suffix in ("", "_p16", "_p84", "_std"):
                a, b = (
                    c.table[label + suffix][i] for c, i in ((found, ours[name]), (expected, theirs[name]))
                )
                assert a == pytest.approx(b, abs=100 * atol * width)


def assert_unusable(catalogue, i, message):
    row = catalogue.table[i]
    assert row["flags"] == Flag.UNREADABLE
    assert message in row["message"]
    assert row["arms"] == ""
    for label in LABELS:
        assert np.isnan([row[label], row[f"{label}_p16"], row[f"{label}_p84"], row[f"{label}_mode"]]).all()
    for pmf in catalogue.pmfs.values():
        assert np.isnan(pmf[i]).all()


# ------------------------------------------------------------------------------------------- what it is


def test_pmfs_are_probabilities_over_the_bins(good):
    assert set(good.pmfs) == {*LABELS, *((label, arm) for label in LABELS for arm in "AB")}
    for key, pmf in good.pmfs.items():
        label = key if isinstance(key, str) else key[0]
        assert pmf.shape == (5, len(good.edges[label]) - 1)
        assert pmf.min() >= 0
        np.testing.assert_allclose(pmf.sum(axis=1), 1, atol=1e-5)
    assert [len(good.edges[label]) - 1 for label in LABELS] == [50, 30, 60]


def test_arrays_are_as_good_as_spectra(good, tiny_predictor):
    made = tiny.spectra(GOOD)
    found = tiny_predictor.predict(made.wave, made.flux, medium=made.medium, ivar=made.ivar, names=made.names)
    assert_same_rows(found, good)
    assert list(found.table["file"]) == list(good.table["file"])


def test_arms_have_columns_of_their_own(good):
    for label in LABELS:
        for arm in "AB":
            alone = pmf_quantile(good.pmfs[label, arm], good.edges[label], 0.5)
            np.testing.assert_array_equal(good.table[f"{label}_{arm}"], alone)
    assert np.all((good.table["dwarf_probability"] >= 0) & (good.table["dwarf_probability"] <= 1))


def test_embeddings_are_the_features_of_the_first_networks(good, tiny_predictor, tmp_path):
    assert good.embeddings == {}
    made = tiny.spectra(GOOD)
    flux = np.array(made.flux)
    flux[1, made.wave > 5110] = np.nan  # no arm B
    found = tiny_predictor.predict(dataclasses.replace(made, flux=flux), embeddings=True)
    assert set(found.embeddings) == {"A", "B"}
    features = found.embeddings["A"]
    assert features.dtype == np.float32
    assert np.isnan(found.embeddings["B"]).all(axis=1).tolist() == [False, True, False, False, False]
    assert np.isfinite(features).all()
    # The head of the first network makes its own PMF of them.
    network = tiny_predictor.networks["A"]
    head = network.members[0]["params"]["heads"]
    logits = features @ np.asarray(head["logits"]["kernel"][0]) + np.asarray(head["logits"]["bias"][0])
    logits = logits / np.exp(np.asarray(head.get("log_temperature", np.zeros(3)))[0])
    observed = tiny_predictor.predict(made).pmfs["teff", "A"]
    assert logits.shape == (5, 60)
    logits = logits[:, : observed.shape[1]]
    own = np.exp(logits - logits.max(axis=1, keepdims=True))
    own /= own.sum(axis=1, keepdims=True)
    on = observe([[made]], tiny_predictor.preprocessing).arms["A"]
    inputs = tiny_predictor.normalize_arm("A", ArmInputs(on.flux, on.valid, on.snr))
    expected = tiny_predictor.member_pmfs("A", inputs.flux, on.valid)[0, 0]
    np.testing.assert_allclose(own[0], expected[0, : own.shape[1]], atol=1e-5)
    found.write(tmp_path / "with.fits")
    np.testing.assert_array_equal(read_catalogue(tmp_path / "with.fits").embeddings["A"], features)


def test_arms_are_combined_by_their_normalised_product(good):
    for label in LABELS:
        product = good.pmfs[label, "A"].astype(float) * good.pmfs[label, "B"]
        np.testing.assert_allclose(good.pmfs[label], product / product.sum(axis=1, keepdims=True), atol=1e-6)


def test_stars_differ(good):
    for label in LABELS:
        assert np.abs(good.pmfs[label][0] - good.pmfs[label][4]).max() > 1e-3  # else the rest says nothing


def test_catalogue_says_where_it_comes_from(good, tiny_workdir):
    assert good.meta["checkpoint_step"] == {"A": [4, 4], "B": [4, 4]}  # two folds of four steps
    assert good.meta["inputs"] == 5
    assert good.meta["config"] == read_config(tiny_workdir)
    assert str(good.table["teff"].unit) == "K"
    assert list(good.table["flags"] & Flag.UNREADABLE) == [0] * 5


def test_pmf_is_the_mean_over_the_folds(tiny_workdir, good):
    single = [load(tiny_workdir, folds=[fold]).predict(tiny.spectra(GOOD)) for fold in (0, 1)]
    for key in (("teff", "A"), ("feh", "B")):
        assert np.abs(single[0].pmfs[key] - single[1].pmfs[key]).max() > 1e-4
        np.testing.assert_allclose(good.pmfs[key], (single[0].pmfs[key] + single[1].pmfs[key]) / 2, atol=1e-6)


def test_pretrained_networks_can_be_used_alone(tiny_workdir, good):
    found = load(tiny_workdir, stage="pretrain").predict(tiny.spectra(GOOD))
    assert found.meta["checkpoint_step"] == {"A": [8], "B": [8]}
    assert np.abs(found.pmfs["teff"] - good.pmfs["teff"]).max() > 1e-3
    with pytest.raises(ValueError, match="stage must be 'pretrain', 'align' or 'finetune', found 'swa'"):
        load(tiny_workdir, stage="swa")


# ------------------------------------------------------------------------------------------- invariances


def test_files_and_arrays_give_the_same(tiny_predictor, good, folder):
    found = tiny_predictor.predict_files(list_files(folder, "*.fits"))
    assert list(found.table["file"]) == [tiny.DWARFS[i][0] for i in GOOD]
    assert_same_rows(found, good)


def test_order_is_that_of_the_inputs_and_rows_do_not_depend_on_their_batch(tiny_predictor, good):
    order = (3, 0, 4, 1, 9, 2)
    found = tiny_predictor.predict(tiny.spectra(order))
    assert list(found.table["file"]) == [tiny.DWARFS[i][0] for i in order]
    assert_same_rows(found, good)


def test_rows_do_not_depend_on_the_size_of_batches(tiny_predictor, good):
    config = dict(tiny_predictor.config)
    config["predict"] = config["predict"] | {"batch_size": 5, "small_batch_size": 5}
    assert_same_rows(dataclasses.replace(tiny_predictor, config=config).predict(tiny.spectra(GOOD)), good)


def test_groups_on_different_grids_media_and_units_are_one_batch(tiny_predictor, good):
    """Each half of the stars in its own container; the second in vacuum, at 1e-17 of the flux."""
    first, second = tiny.spectra((0, 1)), tiny.spectra((2, 3, 4))
    scale = 1e-17
    second = make_spectra(
        air_to_vacuum(second.wave)[4:],
        second.flux[:, 4:] * scale,
        medium="vacuum",
        ivar=second.ivar[:, 4:] / scale**2,
        names=second.names,
    )
    # Air and vacuum convert into each other to 1e-12, and the spline then differs in float32's last digit.
    assert_same_rows(tiny_predictor.predict([first, second]), good, atol=2e-5)


@pytest.mark.parametrize("scale", [1e-17, 1e15])
def test_the_unit_of_the_flux_does_not_matter(tiny_predictor, good, scale):
    plain = tiny.spectra(GOOD)
    scaled = make_spectra(
        plain.wave, plain.flux * scale, medium="air", ivar=plain.ivar / scale**2, names=plain.names
    )
    found = tiny_predictor.predict(scaled)
    assert_same_rows(found, good)
    np.testing.assert_allclose(found.table["snr"], good.table["snr"])


def test_names_may_repeat(tiny_predictor, good):
    spectra = dataclasses.replace(tiny.spectra(GOOD), names=("star",) * 5)
    found = tiny_predictor.predict(spectra)
    assert list(found.table["file"]) == ["star"] * 5
    np.testing.assert_allclose(found.pmfs["teff"], good.pmfs["teff"], **SAME)


def test_velocities_take_stars_to_rest(tiny_predictor, good):
    speeds = np.array([0.0, 150.0, -200.0, 30.0, 90.0])
    moved = [
        dataclasses.replace(s, wave=vacuum_to_air(doppler_shift(air_to_vacuum(s.wave), v)))
        for s, v in zip((tiny.spectra((i,)) for i in GOOD), speeds, strict=True)
    ]
    # The wavelengths come back to rounding, and so do the pixels.
    assert_same_rows(tiny_predictor.predict(moved, velocities=speeds), good)
    wrong = tiny_predictor.predict(moved, velocities=-speeds)
    assert np.abs(wrong.pmfs["teff"][1] - good.pmfs["teff"][1]).max() > 1e-3
    np.testing.assert_allclose(wrong.pmfs["teff"][0], good.pmfs["teff"][0], **SAME)


def test_velocities_have_units_and_masks(tiny_predictor):
    speeds = np.array([0.0, 150.0, -200.0, 30.0, 90.0])
    spectra = tiny.spectra(GOOD)
    plain = tiny_predictor.predict(spectra, velocities=speeds)
    for given in (speeds * 1e3 * u.m / u.s, Column(speeds * 1e3, unit="m / s")):
        np.testing.assert_array_equal(tiny_predictor.predict(spectra, velocities=given).table["rv"], speeds)
    hidden = np.ma.array(speeds, mask=[False, True, False, False, False])
    found = tiny_predictor.predict(spectra, velocities=hidden)
    assert_unusable(found, 1, "expected a radial velocity [km/s], found nan")
    assert_same_rows(found, plain, [tiny.DWARFS[i][0] for i in (0, 2, 3, 4)])
    with pytest.raises(SpectrumError, match="expected radial velocities in km / s, found the unit 'm'"):
        tiny_predictor.predict(spectra, velocities=speeds * u.m)
    files = [Path("a.fits"), Path("b.fits")]
    assert velocities_of_files([1000, 2000] * u.m / u.s, files) == [1.0, 2.0]
    assert velocities_of_files({"b": 2.0, "a": 1.0}, files) == [1.0, 2.0]
    np.testing.assert_array_equal(velocities_in_km_s([v * u.km / u.s for v in speeds]), speeds)


def test_star_of_unknown_velocity_is_flagged_and_wrong_counts_are_refused(tiny_predictor, good):
    found = tiny_predictor.predict(tiny.spectra(GOOD), velocities=[0, 0, np.nan, 0, 0])
    assert_unusable(found, 2, "dwarf_02.fits: expected a radial velocity [km/s], found nan")
    assert_same_rows(found, good, [tiny.DWARFS[i][0] for i in (0, 1, 3, 4)])
    with pytest.raises(ValueError, match=r"expected 5 velocities, found shape \(2,\)"):
        tiny_predictor.predict(tiny.spectra(GOOD), velocities=[0, 0])


def test_normalised_spectra_and_the_same_under_a_black_body_are_one(tiny_predictor):
    """The slope of 4,500 K is the continuum's affair: labels differ by less than a tenth of their width."""
    wave = tiny.WAVE
    planck = wave**-5 / np.expm1(1.438777e8 / (wave * 4500.0))  # hc/k in Å K
    flat, tilted = [], []
    for i in GOOD:
        _, flux, ivar = tiny.star(i)
        smooth = np.polyval(np.polyfit(wave - 5100, flux, 1), wave - 5100)
        level = np.max(flux / smooth) * smooth
        flat.append(make_spectra(wave, flux / level, medium="air", ivar=ivar * level**2, names=[f"{i}"]))
        slope = level / planck * planck.mean()
        tilted.append(make_spectra(wave, flux / slope, medium="air", ivar=ivar * slope**2, names=[f"{i}"]))
    first, second = (tiny_predictor.predict(x).table for x in (flat, tilted))
    for label in LABELS:
        width = (first[f"{label}_p84"] - first[f"{label}_p16"]) / 2
        assert np.all(np.abs(first[label] - second[label]) < 0.1 * width)


# --------------------------------------------------------------------------------------------- bad input


def spoil(kind, flux, ivar):
    """One star's arrays with something wrong with them."""
    middle = slice(60, 62)  # 5050.3, 5051.3 Å: arm A
    if kind == "all nan":
        flux[:] = np.nan
    elif kind == "all zero":
        flux[:] = 0
    elif kind == "all negative":
        flux *= -1
    elif kind == "no good pixel":
        ivar[:] = 0
    elif kind == "nan":
        flux[middle] = np.nan
    elif kind == "infinite":
        flux[middle] = np.inf
    elif kind == "bad variance":
        ivar[middle] = np.nan
    elif kind == "zero":
        flux[middle] = 0
    elif kind == "negative":
        flux[middle] = -3
    elif kind == "a tenth bad":
        flux[20:32] = np.nan
    elif kind == "most of an arm bad":
        flux[20:100] = np.nan
    return flux, ivar


@pytest.fixture(params=["arrays", "files"])
def predict_with(request, tiny_predictor, tmp_path):
    """Predicts the good stars with star 2 replaced, from arrays or from files."""

    def call(flux, ivar):
        name = tiny.DWARFS[2][0]
        if request.param == "arrays":
            star = make_spectra(tiny.WAVE, flux, medium="air", ivar=ivar, names=[name])
            return tiny_predictor.predict([tiny.spectra((0, 1)), star, tiny.spectra((3, 4))])
        files = [
            tiny.write_table(
                tmp_path / tiny.DWARFS[i][0], *((tiny.WAVE, flux, ivar) if i == 2 else tiny.star(i))
            )
            for i in GOOD
        ]
        return tiny_predictor.predict_files(files)

    return call


REST = [tiny.DWARFS[i][0] for i in (0, 1, 3, 4)]


@pytest.mark.parametrize("kind", ["all nan", "all zero", "all negative", "no good pixel"])
def test_spectrum_without_signal_is_a_flagged_row(predict_with, good, kind):
    found = predict_with(*spoil(kind, *tiny.star(2)[1:]))
    assert_unusable(found, 2, "no arm has enough valid pixels")
    assert_same_rows(found, good, REST)


@pytest.mark.parametrize("kind", ["nan", "infinite", "bad variance", "zero", "negative"])
def test_a_few_bad_pixels_change_little(predict_with, good, kind):
    found = predict_with(*spoil(kind, *tiny.star(2)[1:]))
    assert_same_rows(found, good, REST)
    assert found.table["arms"][2] == "A,B"
    assert np.isfinite(found.table["teff"][2])
    assert not found.table["flags"][2] & (Flag.UNREADABLE | Flag.MISSING_ARM)
    np.testing.assert_allclose(found.pmfs["teff", "B"][2], good.pmfs["teff", "B"][2], **SAME)
    assert np.any(found.pmfs["teff", "A"][2] != good.pmfs["teff", "A"][2])


def test_many_bad_pixels_are_flagged_and_too_many_drop_the_arm(predict_with, good):
    found = predict_with(*spoil("a tenth bad", *tiny.star(2)[1:]))
    assert found.table["flags"][2] & Flag.BAD_PIXELS
    assert found.table["arms"][2] == "A,B"
    found = predict_with(*spoil("most of an arm bad", *tiny.star(2)[1:]))
    assert found.table["flags"][2] & Flag.MISSING_ARM
    assert found.table["arms"][2] == "B"
    assert np.isnan(found.pmfs["teff", "A"][2]).all()
    for label in LABELS:
        np.testing.assert_allclose(found.pmfs[label][2], good.pmfs[label, "B"][2], **SAME)
    assert_same_rows(found, good, REST)


@pytest.mark.parametrize(
    ("pixels", "trained", "wide"),
    [(1, 0, False), (2, 0, False), (3, 0, True), (5, 0, True), (5, 2, True), (5, 3, False)],
)
def test_a_masked_stretch_that_may_hide_a_line_is_flagged(tiny_predictor, pixels, trained, wide):
    """The line spread is 2.6 pixels: a stretch of three is the first that is wider."""
    finetune = {**tiny_predictor.config["finetune"], "augment": {"gap_pixels": trained}}
    predictor = dataclasses.replace(tiny_predictor, config={**tiny_predictor.config, "finetune": finetune})
    observed = observe([[tiny.spectra((1, 2))]], predictor.preprocessing)
    arm = observed.arms["A"]
    arm.valid[1, 50 : 50 + pixels] = False
    assert arm.valid.mean() > 0.95
    flags = predictor.predict_observed(observed).table["flags"]
    assert (flags & Flag.BAD_PIXELS > 0).tolist() == [False, wide]


@pytest.mark.parametrize(
    ("keep", "arms", "flag"),
    [
        (tiny.WAVE > 5122, "B", Flag.MISSING_ARM),
        (tiny.WAVE < 5120, "A", Flag.MISSING_ARM),
        (tiny.WAVE > 5012, "A,B", Flag.BAD_PIXELS),  # nine tenths of arm A
        (tiny.WAVE > 5090, "B", Flag.MISSING_ARM),  # a quarter of arm A, too little to be used
        (tiny.WAVE < 4995, "", Flag.UNREADABLE),
    ],
)
def test_arms_not_covered_or_covered_in_part_are_flagged(tiny_predictor, good, tmp_path, keep, arms, flag):
    files = [tiny.write_table(tmp_path / f"{i}.fits", *tiny.star(i)) for i in GOOD]
    tiny.write_table(files[2], *(x[keep] for x in tiny.star(2)))
    found = tiny_predictor.predict_files(files)
    assert found.table["arms"][2] == arms
    assert found.table["flags"][2] & flag
    assert not found.table["flags"][1] & flag
    assert np.isfinite(found.table["teff"][2]) == (arms != "")
    for arm in arms.split(",") if arms in ("A", "B") else ():
        np.testing.assert_allclose(found.pmfs["feh"][2], found.pmfs["feh", arm][2], **SAME)
    for i in (0, 1, 3, 4):
        np.testing.assert_allclose(found.pmfs["teff"][i], good.pmfs["teff"][i], **SAME)


def test_noisy_spectrum_is_flagged(tiny_predictor):
    wave, clean, _ = tiny.star(0)
    spectra = make_spectra(wave, np.stack([clean] * 3), medium="air", ivar=np.stack([1 / clean**2 * 9] * 3))
    found = tiny_predictor.predict(spectra)  # σ is a third of the flux
    np.testing.assert_allclose(found.table["snr"], 3.0, rtol=0.01)  # the flux is resampled, the variance too
    assert all(found.table["flags"] & Flag.LOW_SNR)


def test_unreadable_files_are_flagged_in_place_and_the_rest_goes_on(tiny_predictor, good, folder):
    wave, flux, ivar = tiny.star(7)
    text = folder / "text.fits"
    text.write_text("SIMPLE, but no FITS")
    empty = folder / "empty.fits"
    empty.touch()
    short = tiny.write_table(folder / "short.fits", wave, flux, ivar)
    short.write_bytes(short.read_bytes()[:-2880])
    back = np.where(wave == wave[1], wave[0] - 1, wave)
    backwards = tiny.write_table(folder / "backwards.fits", back, flux, ivar)
    image = tiny.write_image(folder / "image.fits", 4990.0, 1.0, flux)
    tiny_file = tiny.write_table(folder / "three.fits", wave[:3], flux[:3], ivar[:3])
    bad = [text, empty, short, backwards, image, tiny_file, folder / "gone.fits", folder]
    messages = [
        "it begins with b'SIMPLE'",
        "empty file",
        "truncated file",
        "increase strictly, found 4990.3 then 4989.3",
    ]
    messages += ["expected HDU 1, found 0", "no arm has enough valid pixels", "gone.fits", "found a folder"]
    files = [folder / tiny.DWARFS[i][0] for i in GOOD]
    mixed = [files[0], *bad[:4], *files[1:4], *bad[4:], files[4]]
    found = tiny_predictor.predict_files(mixed)
    assert list(found.table["file"]) == [f.name for f in mixed]
    assert_same_rows(found, good)
    for path, message in zip(bad, messages, strict=True):
        assert_unusable(found, mixed.index(path), message)
        if path != tiny_file:  # that one was read
            assert path.name in found.table["message"][mixed.index(path)]


def test_a_batch_of_bad_files_alone_is_a_catalogue_too(tiny_predictor, tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.fits").touch()
    found = tiny_predictor.predict_files(list_files(tmp_path, "*.fits"))
    for i in range(3):
        assert_unusable(found, i, "empty file")


def test_nothing_to_predict_is_an_error(tiny_predictor):
    with pytest.raises(ValueError, match="expected at least one file, found none"):
        tiny_predictor.predict_files([])
    with pytest.raises(ValueError, match="expected at least one spectrum, found none"):
        tiny_predictor.predict([])


def test_wrong_declaration_stops_the_batch(tiny_predictor, folder):
    """It is not the file's fault, and would flag every row."""
    with pytest.raises(ValueError, match="source: format must be one of") as error:
        tiny_predictor.predict_files(list_files(folder, "*.fits"), source={"format": "fits"})
    assert not isinstance(error.value, SpectrumError)


# ----------------------------------------------------------------------------------------------- loading


def test_folder_that_was_moved_is_enough(tiny_workdir, good, tmp_path):
    """The copy has neither the preprocessed library and survey nor anything of pre-training."""
    workdir = tmp_path / "elsewhere"
    shutil.copytree(tiny_workdir, workdir)
    shutil.rmtree(workdir / "pretrain")
    for path in (workdir / "data").glob("*.npz"):
        path.unlink()
    predictor = load(workdir)
    assert isinstance(predictor, Predictor)
    assert predictor.labels == LABELS
    assert_same_rows(predictor.predict(tiny.spectra(GOOD)), good)


def test_folders_without_a_network_are_refused_by_name(tiny_prepared, tiny_workdir, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"nowhere: expected a trained working folder .*found no such folder"
    ):
        load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"config\.json, found none there"):
        load(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"fine-tuned network for arm A, found none; run launch\.finetune"
    ):
        load(tiny_prepared)
    with pytest.raises(FileNotFoundError, match=r"pretrain.A.final: expected a finished network, found none"):
        load(tiny_prepared, stage="pretrain")
    with pytest.raises(FileNotFoundError, match=r"fold_7.final: expected a finished network, found none"):
        load(tiny_workdir, folds=[7])


def test_other_preprocessing_than_the_networks_is_refused_with_both_values(tiny_workdir, tmp_path):
    shutil.copytree(tiny_workdir, tmp_path / "work")
    path = tmp_path / "work" / "data" / "preprocessing.json"
    description = json.loads(path.read_text())
    description["continuum"]["low"] = 1.0
    description["medium"] = "vacuum"
    path.write_text(json.dumps(description))
    with pytest.raises(ValueError, match=r"finetune.A.fold_0: other preprocessing") as error:
        load(tmp_path / "work")
    assert "continuum.low: expected 1.0, found 1.2" in str(error.value)
    assert "medium: expected 'vacuum', found 'air'" in str(error.value)
    path.write_text(json.dumps(description | {"version": 99}))
    with pytest.raises(ValueError, match="preprocessing version: expected 1, found 99"):
        load(tmp_path / "work")


def test_version_of_the_software_alone_is_no_reason_to_refuse(tiny_workdir, tmp_path):
    shutil.copytree(tiny_workdir, tmp_path / "work")
    path = tmp_path / "work" / "data" / "preprocessing.json"
    path.write_text(path.read_text().replace("deep-remap ", "deep-remap 99."))
    load(tmp_path / "work")


def test_stars_whose_kind_no_calibration_knows_are_flagged(tiny_predictor):
    class Some:
        def apply(self, pmfs, edges, used, arms, snr=None):
            return pmfs

        def covers(self, label, pmfs, edges, used, arms):
            return np.array([True, label != "logg", True])

    found = dataclasses.replace(tiny_predictor, calibration=Some()).predict(tiny.spectra((0, 1, 2)))
    assert (found.table["flags"] & Flag.UNCALIBRATED != 0).tolist() == [False, True, False]
    known = tiny_predictor.predict(tiny.spectra((0, 1, 2)))
    assert not np.any(known.table["flags"] & Flag.UNCALIBRATED)  # the provenance says that there is none


def test_labels_near_the_limits_of_the_labelled_stars_are_flagged(tiny_predictor):
    config, star = tiny_predictor.config, tiny.spectra((1,))
    plain = tiny_predictor.predict(star).table
    assert not np.any(plain["flags"] & Flag.EDGE)
    median, width = float(plain["teff"][0]), float(plain["teff_p84"][0] - plain["teff_p16"][0]) / 2
    for above, expected in ((2.9, True), (3.1, False)):
        limits = (median - 100 * width, median + above * width)
        limited = config | {"predict": config["predict"] | {"range": {"teff": limits}, "range_widths": 3.0}}
        found = dataclasses.replace(tiny_predictor, config=limited).predict(star).table
        assert bool(found["flags"][0] & Flag.EDGE) == expected
