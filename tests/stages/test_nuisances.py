"""What library spectra are varied with: both stages draw from it, and the response to [α/Fe] is made once per arm."""

import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

from configs import common
from remap.config import ConfigError, deciding
from remap.preprocess.description import make_preprocessing
from remap.sampling.augment import AugmentSettings
from remap.stages import finetune as finetune_stage
from remap.stages import nuisances
from remap.stages.finetune import finetuning
from remap.stages.nuisances import read_response
from remap.stages.preprocess import preprocess
from remap.stages.pretrain import pretraining
from remap.store.stars import fold_split, readable_stars, split_settings
from remap.store.workdir import read_preprocessing

ON = {"lines": 1.0, "lines_each": 0.5, "lines_components": 4, "depths": 0.1, "alpha": (0.0, 0.4)}


@pytest.fixture(scope="module")
def two(tiny_data, tmp_path_factory):
    """The tiny experiment with a second library whose lines are weaker, prepared; its config."""
    data = tmp_path_factory.mktemp("two")
    shutil.copytree(tiny_data, data, dirs_exist_ok=True)
    tiny.write_library(data / "second.npz", change=lambda flux: 1 - 0.8 * (1 - flux))

    def config(**changes):
        c = tiny.config(data, split__folds=4, split__run=(0,), split__validation=0.0, **changes)
        section = common.further_library(dict(c.library.items()) | {"path": "second.npz"}, weight=0.5)
        with c.unlocked():
            c.libraries.second = section
        return c

    preprocess(config(), data / "work")
    return config, data / "work"


@pytest.fixture
def made(monkeypatch):
    """Arms whose response was made; it is 1 at all pixels, which the model's own tests are not about."""
    calls = []

    def response(labels, wave, *, medium, fwhm):
        calls.append((len(labels), wave[0], medium, fwhm.shape))
        return np.ones((len(labels), len(wave)))

    monkeypatch.setattr(nuisances, "alpha_response", response)
    return calls


def switched_on(section="augment", **changes):
    return {f"{section}__{name}": value for name, value in {**ON, **changes}.items()}


def test_pretraining_draws_spectra_with_the_differences_of_the_libraries(two, made):
    config, workdir = two
    preprocessing = read_preprocessing(workdir)
    start = pretraining(config(**switched_on()), workdir, preprocessing, "A")
    source = start.source.spectra
    # Lines of the second library have 0.8 of the depth: at the deepest, of 0.4 or so, a tenth in flux.
    scale = np.exp(0.5 * np.asarray(source.nuisances.lines.scale)[0])
    assert 0.003 < scale < 0.1
    assert source.nuisances.lines.basis.shape == (4, 120)
    plain = pretraining(config(), workdir, preprocessing, "A").source.spectra
    assert plain.nuisances is None
    first, varied = (x.draw(jax.random.key(0), jnp.asarray(1)) for x in (plain, source))
    np.testing.assert_array_equal(first.labels, varied.labels)
    assert np.isfinite(np.asarray(varied.flux)).all()
    assert np.abs(np.log(np.asarray(varied.flux / first.flux))).max() > 0.01
    # The same tree with other cells, for the validation.
    held = start.drawing_from(np.resize(start.held_out, start.library.cells.shape))
    assert jax.tree.structure(held) == jax.tree.structure(start.source)


def test_rehearsal_draws_with_its_own_settings_and_stars_with_none(two, made, monkeypatch):
    config, workdir = two
    asked = []

    def spy(settings, library, *rest):
        asked.append(settings.of_library)
        return nuisances.library_nuisances(settings, library, *rest)

    monkeypatch.setattr(finetune_stage, "library_nuisances", spy)
    change = {"finetune__init": "scratch", "finetune__rehearsal": 0.5, **switched_on()}
    c = config(**change)
    with c.unlocked():
        c.finetune.rehearsal_augment = {"lines": 0.0, "lines_each": 0.0, "alpha": ()}
    split = fold_split(readable_stars(workdir), split_settings(c), 0)
    start = finetuning(c, workdir, read_preprocessing(workdir), "A", 0, split)
    assert asked == [{"depths": 0.1}]
    assert start.source.rehearsal.spectra.spectra.nuisances is None
    assert not start.source.stars.spectra.settings.changes_stars
    assert np.isfinite(np.asarray(jax.jit(start.source.draw)(jax.random.key(0), 0).flux)).all()


def test_one_library_has_no_differences(tiny_data, tiny_prepared):
    config = tiny.config(tiny_data, augment__lines=1.0)
    with pytest.raises(ConfigError, match=r"augment\.lines: expected two libraries or more"):
        pretraining(config, tiny_prepared, read_preprocessing(tiny_prepared), "A")


def test_the_response_is_made_once_and_again_for_another_arm(two, made, tmp_path, caplog):
    _, workdir = two
    preprocessing = read_preprocessing(workdir)
    (tmp_path / "data").mkdir()
    first = read_response(tmp_path, preprocessing, "A")
    assert first.response.shape == (75, 120)
    assert (first.teff[0], first.columns.tolist()) == (3900.0, [0, 1, 2])
    again = read_response(tmp_path, preprocessing, "A")
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(made) == 1
    config = tiny.config(tmp_path)
    with config.unlocked():
        config.arms.A.start += 1.0
    caplog.set_level(logging.INFO)
    read_response(tmp_path, make_preprocessing(config), "A")
    assert [start for _, start, *_ in made] == [5000.0, 5001.0]


def test_labels_that_are_not_there_are_named(two, made):
    config, workdir = two
    c = config()
    with c.unlocked():
        c.label_names = ("teff", "logg")
    with pytest.raises(ConfigError, match=r"augment\.alpha: expected the labels .* without \['feh'\]"):
        read_response(workdir, make_preprocessing(c), "A")


def test_networks_without_any_of_it_are_known_by_what_they_were_known_by(two):
    config, _ = two
    new = {"lines", "lines_each", "lines_components", "depths", "alpha", "alpha_scatter"}
    for what in ("pretrain", "finetune", "align", "candidate"):
        assert not new & deciding(config(), what)["augment"].keys()
        assert deciding(config(**switched_on()), what)["augment"].keys() >= set(ON)
    only = deciding(config(augment__depths=0.1), "pretrain")["augment"]
    assert new & only.keys() == {"depths"}
    AugmentSettings(**only)


def test_without_a_survey_the_library_alone_is_prepared(tiny_data, tiny_prepared, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(tiny_prepared, work)
    config = tiny.config(tiny_data)
    with config.unlocked():
        config.survey.update({"path": "", "labels_path": ""})
    preprocess(config, work)
    left = {p.name for p in (work / "data").iterdir()}
    assert {"library_A.npz", "templates.npz", "preprocessing.json"} <= left
    assert not {"stars.ecsv", "survey_A.npz"} & left
    assert pretraining(config, work, read_preprocessing(work), "A").steps > 0
    with pytest.raises(FileNotFoundError, match=r"stars\.ecsv: expected the stars of a survey, found none"):
        readable_stars(work)
