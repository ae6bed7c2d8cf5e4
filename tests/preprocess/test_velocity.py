"""Velocities: known shifts are found with honest errors, and what has no velocity is called poor."""

import numpy as np
import pytest
from scipy import constants

from remap.config import ConfigError
from remap.preprocess import velocity as module
from remap.preprocess.media import compare_media
from remap.preprocess.templates import make_templates
from remap.preprocess.velocity import measure_velocities
from remap.preprocess.velocity_settings import VelocitySettings

WAVE = {"A": 4860 + 0.5 * np.arange(800), "B": 5270 + 0.5 * np.arange(900)}
SNR = 50
C = constants.c / 1e3


def in_vacuum(air):
    """Piskunov's inverse of Morton 2000 (ApJS 130, 403), which VALD uses: not the formula of the library."""
    s = (1e4 / air) ** 2
    return air * (
        1
        + 8.336624212083e-5
        + 0.02408926869968 / (130.1065924522 - s)
        + 1.599740894897e-4 / (38.92568793293 - s)
    )


def line_list(seed):
    rng = np.random.default_rng(seed)
    return rng.uniform(4800, 5800, 300), rng.exponential(0.12, 300)  # Å in vacuum, depth


def spectrum(wave, *, velocity=0.0, strength=1.0, medium="air", seed=0, sigma=0.8):
    """Gaussian lines of width 0.8 Å that recede, made at the pixels: nothing is interpolated."""
    centres, depths = line_list(seed)
    beta = velocity / C
    rest = (in_vacuum(wave) if medium == "air" else wave) / np.sqrt((1 + beta) / (1 - beta))
    lines = depths[:, None] * np.exp(-0.5 * ((rest - centres[:, None]) / sigma) ** 2)
    return np.exp(-strength * lines.sum(axis=0))


def observe(velocities, *, snr=SNR, medium="air", seed=1, slope=0.0, ivar=True, **lines):
    rng = np.random.default_rng(seed)
    arms = {}
    for arm, wave in WAVE.items():
        level = 1e-17 * (wave / 5000) ** slope
        clean = level * np.stack([spectrum(wave, velocity=v, medium=medium, **lines) for v in velocities])
        noise = np.broadcast_to(level / snr, clean.shape)
        seen = clean + noise * rng.standard_normal(clean.shape)
        arms[arm] = (seen, np.ones(clean.shape, bool), 1 / noise**2 if ivar else None)
    return arms


def templates(medium="air", settings=None):
    strengths = np.linspace(0.4, 2, 9)
    flux = {a: np.stack([spectrum(w, strength=s, medium=medium) for s in strengths]) for a, w in WAVE.items()}
    valid = {a: np.ones(w.size, bool) for a, w in WAVE.items()}
    return make_templates(flux, valid, WAVE, strengths[:, None], medium, settings)


VELOCITIES = np.tile([-500.0, -83.0, -10.3, 0.0, 3.1, 60.0, 250.0, 500.0], 5)


@pytest.mark.parametrize("medium", ["air", "vacuum"])
def test_a_known_shift_is_found(medium):
    found = measure_velocities(observe(VELOCITIES, strength=1.1, medium=medium), templates(medium))
    off = found.velocity - VELOCITIES
    assert not found.poor.any()
    assert np.abs(off).max() < 2.5  # five times the error of 0.5 km/s that this S/N and these lines allow
    assert abs(off[VELOCITIES == 500].mean()) < 0.7
    assert abs(off[VELOCITIES == -500].mean()) < 0.7
    assert 0.5 < np.std(off / found.error) < 1.5


def test_one_arm_is_enough_and_two_are_better():
    arms = observe(VELOCITIES)
    both = measure_velocities(arms, templates())
    one = measure_velocities({"A": arms["A"]}, templates())
    assert not one.poor.any()
    assert np.median(both.error) < 0.85 * np.median(one.error)


def test_the_error_of_the_wavelengths_is_added():
    arms = observe(VELOCITIES)
    plain, more = (measure_velocities(arms, templates(), VelocitySettings(calibration=c)) for c in (0.0, 3.0))
    np.testing.assert_allclose(more.error**2, plain.error**2 + 9, rtol=1e-6)


def test_unusable_rows_are_nan_and_leave_the_others_alone():
    arms = observe(np.zeros(6))
    alone = measure_velocities(arms, templates())
    for flux, valid, ivar in arms.values():
        flux[0], valid[1], ivar[2], flux[3], flux[4] = np.nan, False, 0, 0, -1
    found = measure_velocities(arms, templates())
    assert np.isnan(found.velocity[:5]).all()
    assert np.isnan(found.error[:5]).all()
    assert found.poor[:5].all()
    assert (found.template[:5] == -1).all()
    np.testing.assert_allclose(found.velocity[5], alone.velocity[5], atol=1e-3)  # the order of float32 sums


def test_wrong_arms_are_refused():
    arms = observe(np.zeros(2))
    with pytest.raises(ConfigError, match="'C'"):
        measure_velocities({"C": arms["A"]}, templates())
    with pytest.raises(ConfigError, match="arm A"):
        measure_velocities({"A": arms["B"]}, templates())
    with pytest.raises(ConfigError, match="as many stars"):
        measure_velocities({"A": arms["A"], "B": tuple(x[:1] for x in arms["B"])}, templates())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("templates", 0),
        ("limit", -1.0),
        ("span", 10.0),
        ("taper", 0.6),
        ("min_coverage", 2.0),
        ("calibration", -1.0),
        ("min_parts", 0.0),
        ("mismatch", 0.0),
    ],
)
def test_settings_out_of_range_are_refused(field, value):
    with pytest.raises(ConfigError, match=field):
        VelocitySettings(**{field: value})


# What must not fool it


def test_slopes_do_not_matter():
    flat = measure_velocities(observe(VELOCITIES), templates())
    steep = measure_velocities(
        observe(VELOCITIES, slope=6.0), templates()
    )  # steeper than a black body of 3000 K
    assert (
        np.abs(steep.velocity - flat.velocity).max() < 0.3
    )  # of an error of 0.5: what the smoothing sees differently


def test_cosmic_rays_and_emission_do_not_matter():
    arms = observe(VELOCITIES)
    clean = measure_velocities(arms, templates())
    rng = np.random.default_rng(3)
    for flux, _, _ in arms.values():
        for row in flux:
            row[rng.integers(0, row.size, 8)] *= rng.uniform(1.5, 1e6, 8)
    found = measure_velocities(arms, templates())
    assert np.abs(found.velocity - clean.velocity).max() < 1.5  # three errors; eight rays hide some lines
    assert not found.poor.any()


def test_a_gap_does_not_matter():
    arms = observe(VELOCITIES)
    for flux, valid, _ in arms.values():
        valid[:, 300:520] = False
        flux[:, 300:520] = 0
    found = measure_velocities(arms, templates())
    assert not found.poor.any()
    assert np.std((found.velocity - VELOCITIES) / found.error) < 1.5


def test_units_do_not_matter():
    arms = observe(VELOCITIES[:8])
    found = measure_velocities(arms, templates())
    for factor in (1e-250, 1e30):
        scaled = {a: (f * factor / 1e-17, v, None) for a, (f, v, _) in arms.items()}
        plain = {a: (f, v, None) for a, (f, v, _) in arms.items()}
        np.testing.assert_allclose(
            measure_velocities(scaled, templates()).velocity,
            measure_velocities(plain, templates()).velocity,
            atol=1e-3,
        )
    assert not found.poor.any()


def test_without_inverse_variances_the_errors_are_honest_too():
    found = measure_velocities(observe(np.tile(VELOCITIES, 3), ivar=False, snr=15), templates())
    assert not found.poor.any()
    assert 0.4 < np.mean(np.abs(found.velocity - np.tile(VELOCITIES, 3)) < found.error) < 0.9


def test_a_star_does_not_depend_on_its_neighbours(monkeypatch):
    arms = observe(VELOCITIES)
    together = measure_velocities(arms, templates())
    monkeypatch.setattr(module, "CHUNK", 1)
    alone = measure_velocities(arms, templates())
    np.testing.assert_allclose(alone.velocity, together.velocity, atol=1e-3)  # the order of float32 sums
    np.testing.assert_allclose(alone.quality, together.quality, rtol=1e-3)


# What has no velocity


def featureless(kind, count=100, seed=5):
    rng = np.random.default_rng(seed)
    out = {}
    for arm, wave in WAVE.items():
        noise = rng.standard_normal((count, wave.size))
        if kind == "noise about zero":
            flux = noise
        elif kind == "continuum":
            flux = (wave / 5000) ** -3 * (1 + noise / 20)
        elif kind == "correlated noise":
            flux = 1 + 0.1 * (noise + np.roll(noise, 1, axis=1) + np.roll(noise, 2, axis=1)) / np.sqrt(3)
        elif kind == "one broad line":
            flux = (1 - 0.6 / (1 + ((wave - 4861.3) / 9) ** 2)) * (1 + noise / 50)
        elif kind == "other lines":
            flux = spectrum(wave, seed=77) * (1 + noise / 50)
        out[arm] = (flux, np.ones(flux.shape, bool), None)
    return out


@pytest.mark.parametrize(
    "kind", ["noise about zero", "continuum", "correlated noise", "one broad line", "other lines"]
)
def test_what_has_no_velocity_is_poor(kind):
    assert measure_velocities(featureless(kind), templates()).poor.mean() >= 0.98


def test_a_single_line_is_poor_however_clear():
    line = {a: 1 - 0.6 / (1 + ((w - 4900) / 6) ** 2) for a, w in WAVE.items()}
    flux = {a: (line[a] * spectrum(w, strength=0.1))[None] for a, w in WAVE.items()}
    made = make_templates(
        flux, {a: np.ones(w.size, bool) for a, w in WAVE.items()}, WAVE, np.zeros((1, 1)), "air"
    )
    rng = np.random.default_rng(0)
    arms = {}
    for arm, alone in line.items():
        seen = alone * (1 + rng.standard_normal((20, alone.size)) / 100)
        arms[arm] = (seen, np.ones(seen.shape, bool), None)
    found = measure_velocities(arms, made, VelocitySettings(min_quality=0.1))
    assert found.parts.max() < 2.2
    assert found.poor.all()
    assert measure_velocities(observe(VELOCITIES), templates()).parts.min() > 10


def test_a_star_at_low_signal_is_not_poor():
    found = measure_velocities(observe(VELOCITIES, snr=10), templates())
    assert not found.poor.any()
    assert np.mean(np.abs(found.velocity - VELOCITIES) < found.error) > 0.5


def test_a_velocity_beyond_the_limit_is_poor():
    found = measure_velocities(observe(np.full(20, 700.0)), templates(), VelocitySettings(limit=500))
    assert found.poor.all()


@pytest.mark.parametrize("seed", range(5))
def test_garbage_raises_nothing(seed):
    rng = np.random.default_rng(seed)
    arms = {}
    for arm, wave in WAVE.items():
        shape = (8, wave.size)
        flux = rng.choice([0.0, -1.0, 1.0, np.nan, np.inf, 1e300, -1e300, 1e-300], shape)
        ivar = rng.choice([0.0, 1.0, -1.0, np.nan, np.inf, 1e300, 1e-300], shape)
        arms[arm] = (flux, rng.random(shape) < 0.8, ivar)
    found = measure_velocities(arms, templates())
    assert found.poor.all()
    assert (np.isfinite(found.velocity) == np.isfinite(found.error)).all()


# Templates


def test_templates_are_spread_over_the_labels():
    labels = np.stack(np.meshgrid(np.arange(4000, 7000, 100), np.arange(1, 5, 0.5)), axis=-1).reshape(-1, 2)
    flux = {"A": np.ones((len(labels), 800)) + 0.1 * np.sin(np.arange(800))}
    made = make_templates(
        flux, {"A": np.ones(800, bool)}, {"A": WAVE["A"]}, labels, "air", VelocitySettings(templates=12)
    )
    assert len(made.labels) == 12
    scaled = (labels - labels.min(axis=0)) / np.ptp(labels, axis=0)
    chosen = (made.labels - labels.min(axis=0)) / np.ptp(labels, axis=0)
    nearest = np.sqrt(((scaled[:, None] - chosen) ** 2).sum(axis=2)).min(axis=1)
    assert nearest.max() < 0.3  # twelve even cells of a unit square have half diagonals of 0.2


def test_a_template_with_bad_pixels_and_one_alone_work():
    flux = {a: spectrum(w)[None] for a, w in WAVE.items()}
    valid = {a: np.ones(w.size, bool) for a, w in WAVE.items()}
    valid["A"][:20], valid["A"][400:410] = False, False
    flux["A"][:, ~valid["A"]] = np.nan
    made = make_templates(flux, valid, WAVE, np.zeros((1, 1)), "air")
    found = measure_velocities(observe(VELOCITIES), made)
    assert np.abs(found.velocity - VELOCITIES).max() < 2.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"medium": "water"}, "water"),
        ({"labels": np.zeros((3, 1))}, "arm A"),
        ({"valid": {"A": np.ones(800, bool)}}, "same arms"),
        ({"labels": np.full((9, 1), np.nan)}, "none"),
    ],
)
def test_templates_that_cannot_be_made_are_refused(change, message):
    given = {
        "flux": {a: np.ones((9, w.size)) for a, w in WAVE.items()},
        "valid": {a: np.ones(w.size, bool) for a, w in WAVE.items()},
        "wave": WAVE,
        "labels": np.arange(9.0)[:, None],
        "medium": "air",
    }
    with pytest.raises(ConfigError, match=message):
        make_templates(**given | change)


# Air or vacuum


def test_the_medium_follows_from_the_velocity_alone():
    right = observe(np.array([0.0, 40.0, 0.0, 0.0]))
    # Vacuum wavelengths put on the grid as if they were air: the numbers are those of the vacuum.
    wrong = observe(np.array([0.0, 40.0, 0.0, 0.0]), medium="vacuum")
    expected = np.array([0.0, 40.0, np.nan, -300.0])
    seen = compare_media(right, wrong, templates(), expected=expected)
    assert seen.verdict.tolist() == ["declared", "declared", "undecided", "undecided"]
    assert abs(seen.other.velocity[0] - 83) < 3
    assert compare_media(wrong, right, templates(), expected=expected).verdict.tolist()[:2] == [
        "other",
        "other",
    ]
    assert set(compare_media(wrong, right, templates()).verdict) == {"undecided"}
    vague = compare_media(wrong, right, templates(), expected=0.0, expected_error=60.0)
    assert set(vague.verdict) == {"undecided"}
