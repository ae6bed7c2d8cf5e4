"""Saliency against finite differences, continuum and library spectra against what they were made from."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

from remap.pmf import pmf_summary
from remap.predict.arms import ArmInputs
from remap.predict.explain import LibrarySpectra, explain, library_spectra, median_gradient, saliency
from remap.preprocess.observe import observe

STARS = (1, 3, 5)


@pytest.fixture(scope="module")
def inputs(tiny_predictor):
    """Three stars; the first lacks a stretch of arm A, the last all of arm B."""
    observed = observe([[tiny.spectra((i,))] for i in STARS], tiny_predictor.preprocessing)
    arms = {a: ArmInputs(on.flux.copy(), on.valid.copy(), on.snr) for a, on in observed.arms.items()}
    arms["A"].valid[0, 40:45] = False
    arms["B"].valid[2] = False
    return arms


@pytest.fixture(scope="module")
def library(tiny_workdir, tiny_predictor):
    return library_spectra(tiny_workdir, tiny_predictor.preprocessing, tiny_predictor.templates)


@pytest.fixture(scope="module")
def found(tiny_predictor, inputs, library):
    labels = np.array([tiny.DWARFS[i][2:] for i in STARS])
    labels[1] = np.nan
    return explain(tiny_predictor.runner, inputs, labels=labels, library=library)


def test_the_gradient_of_a_median_is_that_of_finite_differences():
    rng = np.random.default_rng(0)
    pmf = rng.random((4, 12))
    pmf /= pmf.sum(axis=1, keepdims=True)
    edges = np.cumsum(rng.random(13))
    found = np.asarray(median_gradient(jnp.asarray(pmf, jnp.float32), jnp.asarray(edges, jnp.float32)))
    expected, step = np.zeros_like(pmf), 1e-6
    for k in range(12):
        change = step * (np.arange(12) == k)
        # `pmf_summary` normalises, as the gradient does.
        up, down = (pmf_summary((p := pmf + s * change) / p.sum(1, keepdims=True), edges) for s in (1, -1))
        expected[:, k] = (up["median"] - down["median"]) / (2 * step)
    np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.parametrize("label", range(3))
def test_saliency_is_the_change_of_the_median_with_the_flux(tiny_predictor, inputs, label):
    flux = tiny_predictor.normalize_arm("A", inputs["A"]).flux
    valid, bins = inputs["A"].valid, tiny_predictor.preprocessing.labels[label]
    gradient = saliency(tiny_predictor.runner, "A", flux, valid)[label]
    length = np.linalg.norm(gradient, axis=1, keepdims=True)
    assert np.all(length > 0)

    def median(change):
        pmf = tiny_predictor.member_pmfs("A", (flux + change).astype(np.float32), valid).mean(axis=0)
        return pmf_summary(pmf[label][:, : bins.bins], bins.edges)["median"]

    # Along the gradient, where the change is largest against float32's noise; so short that it is straight.
    step = 3e-4 * gradient / length
    slope = (median(step) - median(-step)) / 6e-4
    np.testing.assert_allclose(slope, length[:, 0], rtol=0.01)
    assert np.all(gradient[0, 40:45] == 0)  # bridged: nothing there is seen


def test_units_and_gaps(found, tiny_predictor, inputs):
    arm = found.arms["A"]
    gradient = saliency(tiny_predictor.runner, "A", np.nan_to_num(arm.normalized, nan=1.0), inputs["A"].valid)
    np.testing.assert_allclose(
        arm.saliency[:, 1], gradient[:, 1] * 0.01 / 1.0, rtol=1e-4, atol=1e-7
    )  # pixels of 1 Å
    np.testing.assert_array_equal(np.isnan(arm.flux), ~inputs["A"].valid)
    np.testing.assert_array_equal(np.isnan(arm.normalized), ~inputs["A"].valid)
    for values in found.arms["B"][1:]:
        assert np.isnan(values[..., 2, :]).all()  # the arm that is not there


def test_the_continuum_is_what_the_flux_was_divided_by(found):
    for arm in found.arms.values():
        good = np.isfinite(arm.normalized)
        np.testing.assert_allclose((arm.continuum * arm.normalized)[good], arm.flux[good], rtol=1e-5)
    assert np.isfinite(found.arms["A"].continuum[0, 40:45]).all()  # it goes on over masked pixels


def test_the_library_spectrum_is_near_in_labels_and_fits(found, library, tiny_predictor):
    assert found.chosen[1] == -1
    assert np.isnan(found.rms[1])
    for star in (0, 2):
        node, truth = library.labels[found.chosen[star]], np.array(tiny.DWARFS[STARS[star]][2:])
        assert np.all(np.abs(node - truth) <= (750, 1.0, 0.5))
        apart = found.arms["A"].normalized[star] - found.arms["A"].library[star]
        assert 0 < np.sqrt(np.nanmean(apart**2)) < 0.1
    both = [found.arms[a].normalized[0] - found.arms[a].library[0] for a in "AB"]
    assert found.rms[0] == pytest.approx(np.sqrt(np.nanmean(np.concatenate(both) ** 2)), rel=1e-4)


def test_a_library_spectrum_finds_itself(tiny_predictor, library):
    some = [3, 14]
    spectra = {
        arm: ArmInputs(
            library.flux[arm][some].astype(np.float32),
            np.tile(library.valid[arm], (2, 1)),
            np.full(2, np.nan),
        )
        for arm in library.flux
    }
    near = library.labels[some] + np.array([100.0, 0.1, -0.05])
    found = explain(tiny_predictor.runner, spectra, labels=near, library=library)
    assert found.chosen.tolist() == some
    np.testing.assert_allclose(found.rms, 0, atol=1e-6)
    nothing = explain(tiny_predictor.runner, spectra)
    assert nothing.chosen.tolist() == [-1, -1]
    assert np.isnan(nothing.arms["A"].library).all()


def test_a_predictor_explains_and_embeds_spectra_as_it_predicts_them(tiny_predictor):
    spectra = tiny.spectra(STARS)
    observed = observe([[spectra]], tiny_predictor.preprocessing)
    found, same = tiny_predictor.explain(spectra), tiny_predictor.explain(observed)
    by_hand = explain(
        tiny_predictor.runner,
        {a: ArmInputs(on.flux, on.valid, on.snr) for a, on in observed.arms.items()},
        labels=np.stack(
            [np.asarray(tiny_predictor.predict(spectra).table[x]) for x in tiny_predictor.labels], axis=1
        ),
        library=library_spectra(None, tiny_predictor.preprocessing, tiny_predictor.templates),
    )
    assert (found.chosen >= 0).all()
    for one in (same, by_hand):
        np.testing.assert_array_equal(found.chosen, one.chosen)
        np.testing.assert_array_equal(found.arms["B"].saliency, one.arms["B"].saliency)
    embedded = tiny_predictor.embed(spectra)
    expected = tiny_predictor.predict(spectra, embeddings=True).embeddings
    assert embedded.keys() == expected.keys() == {"A", "B"}
    for arm, features in expected.items():
        assert len(features) == len(STARS)
        np.testing.assert_array_equal(embedded[arm], features)


def test_without_a_library_the_templates_of_velocities_serve(tiny_predictor, tmp_path):
    own = tiny_predictor.templates
    found = library_spectra(tmp_path, tiny_predictor.preprocessing, own)
    assert isinstance(found, LibrarySpectra)
    np.testing.assert_allclose(found.flux["A"], own.flux["A"] + 1, rtol=1e-6)
    alone = library_spectra(None, tiny_predictor.preprocessing, own)
    np.testing.assert_array_equal(alone.flux["A"], found.flux["A"])
    assert library_spectra(tmp_path, tiny_predictor.preprocessing, None) is None
    other = dataclasses.replace(own, wave={a: w + 0.5 for a, w in own.wave.items()})
    assert library_spectra(tmp_path, tiny_predictor.preprocessing, other) is None
