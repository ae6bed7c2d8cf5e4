"""A Gaussian process with errors of the labels: what it finds, how sure it is, and what wrong labels do to it."""

import json

import numpy as np
import pytest
from scipy.optimize import check_grad, minimize

from remap.pmf import gaussian_process
from remap.pmf.gaussian_process import ProcessSettings, fit_process, restore, squared_distance

ERROR = 0.1


def sample(stars, seed, error=ERROR):
    """Two blocks of inputs, the true values, and labels with errors; a third input tells nothing."""
    rng = np.random.default_rng(seed)
    pixels, other = rng.normal(size=(stars, 4)), rng.normal(size=(stars, 2))
    truth = np.sin(pixels[:, 0]) + 0.3 * other[:, 1]
    return (pixels, other), truth, truth + error * rng.normal(size=stars), np.full(stars, error)


def distances(new, old):
    return [squared_distance(a, b) for a, b in zip(new, old, strict=True)]


@pytest.fixture(scope="module")
def fitted():
    inputs, truth, label, error = sample(150, 0)
    return inputs, truth, label, fit_process(distances(inputs, inputs), label, error, ProcessSettings())


def test_distances_are_those_of_pairs():
    (a, _), *_ = sample(5, 0)
    (b, _), *_ = sample(7, 1)
    expected = np.sum((a[:, None] - b[None]) ** 2, axis=2)
    np.testing.assert_allclose(squared_distance(a, b), expected, rtol=1e-12)


def test_new_stars_within_what_it_says(fitted):
    inputs, _, _, process = fitted
    new, truth, _, _ = sample(600, 2)
    mean, deviation = process.predict(distances(new, inputs))
    assert np.std(mean - truth) < 0.5 * np.std(truth)
    assert 0.6 < np.mean(np.abs(mean - truth) < deviation) < 0.85
    assert process.scatter * process.scale < 0.1  # nothing but errors scatters these labels


def test_agrees_with_the_textbook_formula(fitted):
    """Eqs. 2.25 and 2.26 of Rasmussen & Williams, by a dense inverse."""
    inputs, _, label, process = fitted
    new, *_ = sample(5, 3)

    def kernel(pairs):
        return sum(
            a**2 * np.exp(-0.5 * d / s**2)
            for d, a, s in zip(pairs, process.amplitude, process.length, strict=True)
        )

    noise = process.scatter**2 + (process.error / process.scale) ** 2 + gaussian_process.JITTER
    inverse = np.linalg.inv(kernel(distances(inputs, inputs)) + np.diag(noise))
    across = kernel(distances(new, inputs))
    mean = process.mean + across @ inverse @ (label - process.mean)
    variance = np.sum(process.amplitude**2) - np.sum(across @ inverse * across, axis=1) + process.scatter**2
    found = process.predict(distances(new, inputs))
    np.testing.assert_allclose(found[0], mean, rtol=1e-6)
    np.testing.assert_allclose(found[1], process.scale * np.sqrt(variance), rtol=1e-6)


def test_far_from_all_stars_it_knows_nothing(fitted):
    inputs, _, label, process = fitted
    new = tuple(x[:1] + 1e3 for x in inputs)
    mean, deviation = process.predict(distances(new, inputs))
    assert mean[0] == pytest.approx(process.mean)
    assert deviation[0] == pytest.approx(
        process.scale * np.hypot(np.linalg.norm(process.amplitude), process.scatter)
    )
    assert deviation[0] > 0.5 * np.std(label)


def test_one_wrong_label_is_set_aside():
    inputs, _, label, error = sample(150, 0)
    wrong = label.copy()
    wrong[7] += 30 * ERROR
    among = distances(inputs, inputs)
    right, spoilt, naive = (
        fit_process(among, values, error, ProcessSettings(clip=clip))
        for values, clip in ((label, 4.0), (wrong, 4.0), (wrong, 0.0))
    )
    assert spoilt.error[7] > 10 * ERROR
    assert np.all(np.delete(spoilt.error, 7) < 5 * ERROR)
    np.testing.assert_array_equal(naive.error, error)
    new, truth, _, _ = sample(400, 4)
    away = distances(new, inputs)
    errors = [np.std(p.predict(away)[0] - truth) for p in (right, spoilt, naive)]
    assert errors[1] < 1.1 * errors[0]
    assert errors[2] > 1.05 * errors[1]


def test_labels_with_large_errors_count_less():
    inputs, truth, _, error = sample(150, 0)
    rng = np.random.default_rng(5)
    error = np.where(np.arange(150) < 75, error, 1.0)
    label = truth + error * rng.normal(size=150)
    among = distances(inputs, inputs)
    new, true, _, _ = sample(400, 4)
    told, untold = (
        fit_process(among, label, e, ProcessSettings(clip=0.0))
        for e in (error, np.full(150, np.median(error)))
    )
    wrong = [np.std(p.predict(distances(new, inputs))[0] - true) for p in (told, untold)]
    assert wrong[0] < wrong[1]


def test_gradient_of_the_likelihood(monkeypatch):
    seen = {}

    def spy(function, start, **kwargs):
        seen["slope"] = check_grad(lambda x: function(x)[0], lambda x: function(x)[1], start + 0.1)
        seen["size"] = np.linalg.norm(function(start + 0.1)[1])
        return minimize(function, start, **kwargs)

    monkeypatch.setattr(gaussian_process, "minimize", spy)
    inputs, _, label, error = sample(40, 0)
    fit_process(distances(inputs, inputs), label, error, ProcessSettings(iterations=1, clip=0.0))
    assert seen["slope"] < 1e-4 * seen["size"]


def test_restored_from_json(fitted):
    inputs, _, label, process = fitted
    text = json.dumps(process.to_json())
    again = restore(json.loads(text), distances(inputs, inputs), label)
    new, *_ = sample(9, 3)
    for found, expected in zip(
        again.predict(distances(new, inputs)), process.predict(distances(new, inputs)), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y, e: (x, y * np.nan, e), "finite labels"),
        (lambda x, y, e: (x, y, e * np.inf), "finite errors"),
        (lambda x, y, e: ([d * np.nan for d in x], y, e), "finite distances"),
        (lambda x, y, e: (x, y, 0 * e), "positive errors"),
        (lambda x, y, e: ([d[:2, :2] for d in x], y[:2], e[:2]), "three stars"),
    ],
)
def test_refusals(change, message):
    inputs, _, label, error = sample(6, 0)
    with pytest.raises(ValueError, match=message):
        fit_process(*change(distances(inputs, inputs), label, error), ProcessSettings())
