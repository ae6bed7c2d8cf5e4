"""Labelled stars as an expert beside the networks: who is judged by whom, what is kept, and what is refused."""

import dataclasses
import io
import json
import shutil

import numpy as np
import pytest
from helpers import tiny

from remap.config import ConfigError
from remap.pmf import normal_pmf
from remap.pmf.gaussian_process import squared_distance
from remap.predict import load
from remap.predict.expert import BLOCKS, Expert, FoldExpert, make_block
from remap.predict.expert_store import read_expert
from remap.predict.held_out import predict_survey
from remap.stages.calibrate import calibrate
from remap.stages.expert import expert
from remap.stages.finetune import finetune
from remap.store.atomic import SEAL, DamagedError, save_arrays
from remap.store.stars import readable_stars
from remap.store.workdir import load_survey
from remap.surveys import Survey

SETTINGS = {"expert__kind": "gaussian_process", "expert__min_stars": 2}
KEYS = ("A", "B", "A+B")


@pytest.fixture(scope="module")
def workdir(tiny_data, tiny_workdir, tmp_path_factory):
    """A trained folder with an expert; tests must not change it."""
    folder = tmp_path_factory.mktemp("expert") / "work"
    shutil.copytree(tiny_workdir, folder)
    expert(tiny.config(tiny_data, **SETTINGS), folder)
    return folder


@pytest.fixture
def spoilt(workdir, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(workdir, tmp_path / "work")


def survey_of(data, folder, **changes):
    return predict_survey(
        tiny.config(data, **SETTINGS, **changes), folder, readable_stars(folder), "finetune"
    )


def test_every_label_and_set_of_arms_has_an_opinion(tiny_data, workdir):
    found = load(workdir).expert
    assert {label: tuple(each) for label, each in found.opinions.items()} == dict.fromkeys(
        ("teff", "logg", "feh"), KEYS
    )
    for each in found.opinions.values():
        assert all(min(o.powers) > 0 for o in each.values())


def test_folds_are_fitted_to_their_training_stars_alone(tiny_data, workdir):
    survey = survey_of(tiny_data, workdir)
    stars = survey.stars
    mine = np.any([split != "other" for split in survey.splits.values()], axis=0)
    for fold, split in survey.splits.items():
        for each in survey.experts[fold].opinions.values():
            for opinion in each.values():
                assert set(np.flatnonzero(mine)[opinion.rows]) <= set(np.flatnonzero(split == "train"))
    # One star of the survey has no metallicity, and no process of it.
    rows = survey.predictor.expert.opinions["feh"]["A"].rows
    unknown = np.flatnonzero([f == tiny.NO_METALLICITY for f in stars["file"][mine]])
    assert len(unknown) == 1
    assert unknown[0] not in rows
    assert unknown[0] in survey.predictor.expert.opinions["teff"]["A"].rows


def test_held_out_stars_are_judged_by_their_own_fold(tiny_data, workdir):
    survey = survey_of(tiny_data, workdir)
    found = survey.held_out("test")
    assert isinstance(found.predictor.expert, FoldExpert)
    whole = found.catalogue(survey.stars)
    for fold, own in survey.experts.items():
        only = dataclasses.replace(found.predictor, expert=own)
        pmf = found._replace(predictor=only).catalogue(survey.stars).pmfs["teff"]
        mine = found.fold == fold
        assert mine.any()
        np.testing.assert_allclose(whole.pmfs["teff"][mine], pmf[mine])


def test_the_stars_move_the_answer_towards_their_labels(tiny_data, workdir):
    """A tiny network has learned little, the stars are regular: the pool is better."""
    survey = survey_of(tiny_data, workdir)
    found = survey.held_out("test")
    alone = found._replace(predictor=dataclasses.replace(found.predictor, expert=None))
    label = np.asarray(survey.stars["teff"], float)
    keep = found.tested & (found.fold >= 0)
    scatter = [
        np.std((np.asarray(one.catalogue(survey.stars).table["teff"], float) - label)[keep])
        for one in (found, alone)
    ]
    assert scatter[0] < 0.9 * scatter[1]


def test_new_spectra_in_memory_and_held_out_rows_agree(tiny_data, workdir):
    """The road of predict and that of the report pool in the same way."""
    predictor = load(workdir)
    survey = survey_of(tiny_data, workdir)
    files = [str(f) for f in survey.stars["file"][:4]]
    new = predictor.predict_files([tiny_data / "survey" / "spectra" / f for f in files])
    found = survey.held_out("test")
    everyone = found._replace(
        predictor=dataclasses.replace(found.predictor, expert=predictor.expert),
        arms={arm: predictor.predict_arm(arm, x.raw) for arm, x in survey.inputs.items()},
    )
    np.testing.assert_allclose(
        new.pmfs["teff"], everyone.catalogue(survey.stars).pmfs["teff"][:4], rtol=2e-4, atol=1e-6
    )


def test_distances_are_those_of_the_blocks(tiny_data, workdir):
    predictor = load(workdir)
    survey, _ = load_survey(workdir, "A")
    flux = predictor.normalize_arm("A", survey_of(tiny_data, workdir).inputs["A"].raw).flux
    found = predictor.reference_distances("A", flux, survey.valid)
    block = predictor.references.blocks["A"][BLOCKS.index("pixels")]
    assert found.shape == (len(BLOCKS), len(flux), len(block.values))
    good = survey.valid.all(axis=1)
    depth = (flux[good] - 1.0 - block.centre) / block.scale
    np.testing.assert_allclose(found[0][good], squared_distance(depth, block.values), rtol=1e-3, atol=1e-5)


def test_blocks_have_unit_variance():
    values = np.random.default_rng(0).normal(size=(50, 8)) * 3.0 + 7.0
    values[0] = 1e6  # not used
    block = make_block(values, np.arange(50) > 0)
    assert np.sum(block.values[1:].var(axis=0)) == pytest.approx(1.0, rel=1e-4)
    flat = make_block(np.ones((5, 3)), np.ones(5, bool))
    assert np.all(flat.values == 0)


@pytest.fixture
def asked(workdir):
    """The expert, and PMFs of two stars, one of which is missing, at no distance from all references."""
    found = load(workdir)
    edges = {b.name: b.edges for b in found.preprocessing.labels}
    middles = {"teff": 5200.0, "logg": 4.2, "feh": -0.5}
    joint = {
        n: normal_pmf(np.array([middles[n], np.nan]), np.full(2, 0.02 * np.ptp(e)), e)
        for n, e in edges.items()
    }
    count = len(found.references.blocks["A"][0].values)
    near = {arm: np.zeros((len(BLOCKS), 2, count), np.float32) for arm in ("A", "B")}
    return found.expert, joint, edges, np.ones((2, 2), bool), near


def test_without_an_opinion_the_networks_stay(asked):
    found, joint, *rest = asked
    pooled = found.apply(joint, *rest)
    powerless = dataclasses.replace(found.opinions["teff"]["A+B"], powers=(1.0, 0.0))
    for expert_ in (Expert({}, found.known), Expert({"teff": {"A+B": powerless}}, found.known)):
        for label, pmf in expert_.apply(joint, *rest).items():
            np.testing.assert_array_equal(pmf, joint[label])
            assert np.isnan(pooled[label][1]).all()
            assert not np.allclose(pooled[label][0], pmf[0])


def test_it_does_not_speak_of_kinds_that_it_does_not_know(asked):
    """A process of dwarfs takes a giant for an odd dwarf with confidence."""
    found, joint, edges, *rest = asked
    assert found.competence(joint, edges)[0] == pytest.approx(1.0, abs=0.05)
    low, high = found.known["logg"]
    assert 3.5 < low < high < 5.0
    giant = joint | {"logg": normal_pmf(np.array([2.0, np.nan]), np.full(2, 0.1), edges["logg"])}
    subgiant = joint | {"logg": normal_pmf(np.array([low, np.nan]), np.full(2, 0.1), edges["logg"])}
    assert found.competence(giant, edges)[0] < 1e-6
    assert found.competence(subgiant, edges)[0] == pytest.approx(0.5, abs=0.05)
    out = found.apply(giant, edges, *rest)
    for label, pmf in giant.items():
        np.testing.assert_allclose(out[label][0], pmf[0], atol=1e-6)


def test_calibration_knows_its_expert(tiny_data, spoilt):
    config = tiny.config(tiny_data, **SETTINGS, calibrate__min_stars=2)
    calibrate(config, spoilt)
    whole, alone = load(spoilt), load(spoilt, expert=False)
    assert whole.expert_hash
    assert alone.expert is None
    assert alone.calibration.to_json() == whole.alone.to_json() != whole.calibration.to_json()
    shutil.rmtree(spoilt / "expert")
    with pytest.raises(ValueError, match="another expert"):
        load(spoilt)


def test_without_an_expert_the_calibration_is_what_it_was(tiny_data, spoilt, tiny_workdir, tmp_path):
    plain = shutil.copytree(tiny_workdir, tmp_path / "plain")
    for folder in (spoilt, plain):
        calibrate(tiny.config(tiny_data, **SETTINGS, calibrate__min_stars=2), folder)
    assert load(spoilt, expert=False).calibration.to_json() == load(plain).calibration.to_json()
    stars = readable_stars(plain)
    one, other = (
        predict_survey(
            tiny.config(tiny_data, **SETTINGS, calibrate__min_stars=2),
            folder,
            stars,
            "finetune",
            expert=False,
        )
        .held_out("test")
        .catalogue(stars)
        for folder in (spoilt, plain)
    )
    np.testing.assert_array_equal(one.pmfs["teff"], other.pmfs["teff"])


def test_other_surveys_are_predicted_by_the_networks_alone(tiny_data, workdir):
    """What is odd about another spectrograph would be taken for what is odd about a star."""
    predictor = load(workdir)
    files = sorted((tiny_data / "survey" / "spectra").glob("dwarf_0[0-3].fits"))
    source = predictor.config["survey"]["source"]
    theirs = Survey(name="theirs", about="", source=source, patterns=("*.fits",), frame="rest", reference="")
    settings = predictor.observe_settings
    own, other = (predictor.predict_files(files, survey=s, settings=settings) for s in (None, theirs))
    alone = load(workdir, expert=False).predict_files(files)
    assert own.meta["expert"] == predictor.expert_hash
    assert other.meta["expert"] == "none"
    np.testing.assert_array_equal(other.pmfs["teff"], alone.pmfs["teff"])
    assert not np.allclose(other.pmfs["teff"], own.pmfs["teff"])


def test_expert_of_other_networks_is_refused(tiny_data, spoilt):
    config = tiny.config(tiny_data, **SETTINGS)
    shutil.rmtree(spoilt / "finetune")
    with config.unlocked():
        config.finetune.epochs_per_cycle = 1
    finetune(config, spoilt)
    with pytest.raises(ValueError, match="an expert beside other networks"):
        load(spoilt)


@pytest.mark.parametrize("name", ["references.npz", "expert.json"])
def test_damaged_files_are_named(spoilt, name):
    path = spoilt / "expert" / name
    whole = path.read_bytes()
    path.write_bytes(b"{")
    with pytest.raises(DamagedError, match=f"{path}.*launch.expert"):
        load(spoilt)
    path.unlink()
    if name == "references.npz":
        with pytest.raises(DamagedError, match=f"{path}: is gone"):
            load(spoilt)
        with np.load(io.BytesIO(whole)) as arrays:  # whole, but of another run
            save_arrays(
                path, **{k: np.asarray(a + 1) if a.dtype.kind == "f" else a for k, a in arrays.items()}
            )
        with pytest.raises(DamagedError, match=f"{path}: is not what launch.expert wrote last"):
            load(spoilt)


def test_a_fold_without_expert_is_refused(tiny_data, spoilt):
    path = spoilt / "expert" / "expert.json"
    value = json.loads(path.read_text())
    del value["folds"]["1"]
    path.write_text(json.dumps(value))
    with pytest.raises(DamagedError, match=r"expert\.json: .*not what was written, by its hash"):
        survey_of(tiny_data, spoilt)
    del value[SEAL]
    path.write_text(json.dumps(value))
    with pytest.raises(ConfigError, match=r"folds \[0, 1\], found \[0\]"):
        survey_of(tiny_data, spoilt)


def test_too_few_stars_leave_the_networks(tiny_data, tiny_workdir, tmp_path):
    folder = shutil.copytree(tiny_workdir, tmp_path / "work")
    table = expert(tiny.config(tiny_data, expert__kind="gaussian_process", expert__min_stars=6), folder)
    assert set(table["stars"]) == {0.0}
    assert set(table["network"]) == {1.0}
    stored = read_expert(folder, load(folder).preprocessing, load(folder).description)
    assert stored.folds == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"expert__kind": "none"}, "nothing to do"),
        ({"expert__kind": "forest"}, "must be one of"),
        ({"finetune__init": "scratch"}, "pre-trained"),
        ({"expert__outliers": 1.5}, "outliers"),
        ({"expert__iterations": 0}, "positive"),
    ],
)
def test_refused_settings(tiny_data, tiny_workdir, change, message):
    with pytest.raises(ConfigError, match=message):
        expert(tiny.config(tiny_data, **{**SETTINGS, **change}), tiny_workdir)
