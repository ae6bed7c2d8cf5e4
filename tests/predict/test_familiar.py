"""What references explain, and what they do not; the share of false alarms is what was asked for."""

import json

import numpy as np
import pytest

from remap.config import ConfigError
from remap.predict.familiar import (
    Familiar,
    FarSettings,
    Sheets,
    explain_by,
    first_tolerance,
    fit_tolerance,
    learn,
    two_limits,
    upper_limit,
)

PIXELS, SIZES = 120, (60, 60)
WAVE = np.arange(PIXELS, dtype=float)
SETTINGS = FarSettings(rate=0.05, mixed=6)


def spectra(count, *, seed, noise=0.003, kind="normal"):
    """float32[S, N]: six lines whose depths follow two labels; "odd" ones follow neither."""
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(0.2, 0.8, (2, count, 1, 1))
    k = np.arange(6)[:, None]
    depth = 0.3 * a + 0.1 * np.cos(2 * k) * b + 0.1
    if kind == "odd":
        depth = rng.uniform(0.0, 0.6, (count, 6, 1))
    centre = 12.0 + 19.0 * k + (6.0 if kind == "moved" else 0.0)
    flux = 1.0 - np.sum(depth * np.exp(-0.5 * ((WAVE[None, None] - centre[None]) / 2.0) ** 2), axis=1)
    return (flux + noise * rng.standard_normal(flux.shape)).astype(np.float32)


def sheets(flux):
    return Sheets(flux, np.ones(flux.shape, bool))


@pytest.fixture(scope="module")
def learned():
    """Sixty stars, and a library whose lines are a tenth too strong; everything known of them."""
    stars = spectra(60, seed=0)
    library = 1.0 - 1.1 * (1.0 - spectra(400, seed=1, noise=0.0))
    references = sheets(np.concatenate([stars, library.astype(np.float32)]))
    pools = {"stars": np.arange(60), "library": np.arange(60, 460)}
    own = np.arange(60), np.r_[np.arange(60), np.full(400, -1)]
    return learn(sheets(stars), references, pools, SETTINGS, SIZES, own), references


def test_normal_stars_are_rarely_far_and_others_nearly_always(learned):
    familiar, references = learned
    assert (familiar.rate, familiar.stars) == (0.05, 60)
    assert [pool.name for pool in familiar.pools] == ["stars", "library"]
    normal = familiar.judge(sheets(spectra(300, seed=2)), references)
    assert 0.0 <= normal.far.mean() < 0.1  # 0.05 with the scatter of a threshold from 60 stars
    for kind in ("odd", "moved"):
        found = familiar.judge(sheets(spectra(100, seed=3, kind=kind)), references)
        assert found.far.mean() > 0.95
    line_free = sheets(np.ones((1, PIXELS), np.float32))
    assert familiar.judge(line_free, references).far.all()


def test_noise_is_allowed_for_until_it_hides_the_star(learned):
    familiar, references = learned
    for noise, share in ((0.03, (0.0, 0.1)), (0.5, (1.0, 1.0))):
        found = familiar.judge(sheets(spectra(60, seed=4, noise=noise)), references).far.mean()
        assert share[0] <= found <= share[1]


def test_the_library_alone_explains_what_no_star_is_like(learned):
    """Stars of one half of the range are labelled: those of the other are fewer false alarms with it."""
    _, references = learned
    flux = spectra(400, seed=5)
    strong = flux.min(axis=1) < np.median(flux.min(axis=1))
    stars = flux[strong][:60]
    both = sheets(np.concatenate([stars, references.flux[60:]]))
    pools = {"stars": np.arange(60), "library": np.arange(60, 460)}
    own = np.arange(60), np.r_[np.arange(60), np.full(400, -1)]
    judged = {}
    for use in (("stars",), ("stars", "library")):
        found = learn(sheets(stars), both, pools, FarSettings(rate=0.05, mixed=6, use=use), SIZES, own)
        judged[len(use)] = found.judge(sheets(flux[~strong]), both).far.mean()
    assert judged[1] > 0.5
    assert judged[2] < 0.6 * judged[1]


def test_a_star_is_judged_without_itself(learned):
    familiar, references = learned
    stars = Sheets(references.flux[:60], references.valid[:60])
    own = np.arange(60), np.r_[np.arange(60), np.full(400, -1)]
    with_itself, without = familiar.judge(stars, references), familiar.judge(stars, references, own)
    assert np.median(with_itself.score) < np.median(without.score) - 0.5
    # What the threshold was taken from: at most 3 of 60 stars are above it.
    assert 1 <= np.count_nonzero(without.far) <= 3


def test_rows_do_not_depend_on_their_batch_and_arms_may_be_missing(learned):
    familiar, references = learned
    flux = spectra(20, seed=6)
    valid = np.ones(flux.shape, bool)
    valid[3, 60:] = valid[5] = False
    flux[3, 60:] = 7.0
    found = familiar.judge(Sheets(flux, valid), references)
    for some in (
        slice(3, 4),
        slice(2, 20),
    ):  # to the bit, as the shards of a stream have other numbers of stars
        other = familiar.judge(Sheets(flux[some], valid[some]), references)
        np.testing.assert_array_equal(found.score[some], other.score)
        np.testing.assert_array_equal(found.arms[:, some], other.arms)
    assert np.isfinite(found.arms[0, 3])
    assert np.isnan(found.arms[1, 3])
    assert np.isnan(found.score[5])
    assert not found.far[[3, 5]].any()


def test_mixtures_have_weights_that_a_fit_by_scipy_has():
    """Convex weights, by an independent solver."""
    from scipy.optimize import minimize

    references = sheets(spectra(6, seed=7, noise=0.0))
    flux = spectra(3, seed=8, noise=0.0)
    tolerance = first_tolerance(PIXELS)._replace(depth=np.float32(0.0))
    found = explain_by(sheets(flux), references, np.arange(6), tolerance, SETTINGS, SIZES)
    for i in range(3):
        best = minimize(
            lambda w, i=i: 1e4 * np.sum((w @ references.flux - flux[i]) ** 2),
            np.full(6, 1 / 6),
            bounds=[(0, 1)] * 6,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
            method="SLSQP",
            options={"maxiter": 500, "ftol": 1e-12},
        )
        np.testing.assert_allclose(found.model[i], best.x @ references.flux, atol=2e-3)


def test_tolerance_is_that_of_the_misfits():
    """Misfits of 0.01 and a tenth of the depth, from a known model."""
    rng = np.random.default_rng(9)
    model = spectra(400, seed=10, noise=0.0)
    scatter = np.hypot(0.01, 0.1 * (1 - model))
    stars = sheets((model + scatter * rng.standard_normal(model.shape)).astype(np.float32))
    found = first_tolerance(PIXELS)
    for _ in range(3):
        found = fit_tolerance(stars, model, found)
    level = np.sqrt(found.floor**2 + (found.blanket * np.abs(1 - model).mean()) ** 2) * np.median(found.pixel)
    assert level == pytest.approx(0.01, rel=0.15)
    assert found.depth * np.median(found.pixel) == pytest.approx(0.1, rel=0.15)


def test_the_limit_is_conformal():
    """A further value exceeds it as often as was asked for, also with few values."""
    rng = np.random.default_rng(11)
    for n, rate in ((19, 0.1), (99, 0.01)):
        draws = rng.standard_normal((4000, n + 1))
        limits = np.array([upper_limit(row[:-1], rate)[0] for row in draws])
        share = np.mean(draws[:, -1] > limits)
        assert share == pytest.approx(rate, abs=4 * np.sqrt(rate / 4000))
    assert upper_limit(np.array([np.nan, 1.0, 2.0]), 0.5) == (2.0, 0.5)


def test_spectra_with_few_lines_have_a_threshold_of_their_own():
    """And the share of false alarms of all stays what was asked for."""
    rng = np.random.default_rng(14)
    shares, own = [], []
    for _ in range(300):
        lines, score = rng.uniform(0.01, 0.1, 401), rng.standard_normal(401)
        score[lines < 0.025] /= 4  # what has few lines is known better
        found = two_limits(score[1:], lines[1:], 0.01)
        assert found["rate"] == 0.01
        few = lines <= found["few_lines"]
        assert np.count_nonzero(few[1:]) == 40
        shares.append(np.mean((score + few * found["added"])[0] > found["threshold"]))
        own.append(found["threshold"] - found["added"])
    assert np.mean(own) == pytest.approx(0.55, abs=0.1)  # the largest of 40 quarters of a deviation
    assert np.mean(shares) < 0.03  # 0.01 expected, 3 of 300
    assert two_limits(score, lines * 0 + 0.05, 0.01).keys() == {"threshold", "rate"}
    assert two_limits(score[:100], lines[:100], 0.01).keys() == {"threshold", "rate"}  # ten stars cannot tell


def test_what_was_learned_can_be_kept(learned):
    familiar, references = learned
    arrays = {name: np.array(value) for name, value in familiar.arrays().items()}
    again = Familiar.from_json(json.loads(json.dumps(familiar.to_json())), arrays)
    flux = sheets(spectra(5, seed=12))
    np.testing.assert_array_equal(familiar.judge(flux, references).score, again.judge(flux, references).score)
    assert again.settings == familiar.settings


def test_too_few_stars_teach_nothing():
    stars = sheets(spectra(9, seed=13))
    own = np.arange(9), np.arange(9)
    assert learn(stars, stars, {"stars": np.arange(9)}, SETTINGS, SIZES, own) is None
    assert learn(stars, stars, {}, FarSettings(min_stars=5, use=("library",)), SIZES, own) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use": ("star",)}, r"far\.use must name some of \('stars', 'library'\), found \['star'\]"),
        ({"rate": 0.0}, "far.rate must be between 0 and 1, found 0"),
        ({"mixed": 0}, "mixed >= 1"),
        ({"noise": 0.0}, "noise > 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        FarSettings(**change)
