"""Observed spectra from their own pixels to the arms' grids, one row per star."""

import dataclasses
import logging

import numpy as np
import pytest
from helpers import tiny

from remap.config import ConfigError
from remap.preprocess import velocity_choice
from remap.preprocess.description import make_preprocessing
from remap.preprocess.grid import coarser_than, observed_on_grid
from remap.preprocess.joining import join
from remap.preprocess.observe import observe, observe_files
from remap.preprocess.observe_settings import ObserveSettings, observe_settings
from remap.preprocess.observed import ArmOnGrid, concatenate, nothing, put
from remap.preprocess.resample import LineSpread, degrade
from remap.preprocess.stationary import StationaryMask
from remap.preprocess.templates import make_templates
from remap.preprocess.velocity_choice import warn_of_velocities
from remap.preprocess.velocity_settings import VelocitySettings
from remap.spectra import air_to_vacuum, doppler_shift, make_spectra, vacuum_to_air

ARMS = {
    "A": {"start": 5000.0, "stop": 5120.0, "step": 0.5},
    "B": {"start": 5120.0, "stop": 5240.0, "step": 0.5},
}
FWHM = 2.0
FINE = np.arange(4900.0, 5340.0, 0.05)


def description(values=(1.8, 2.0, 2.2)):
    config = tiny.with_algorithm1(tiny.get_config())
    config.arms.A.update(ARMS["A"])
    config.arms.B.update(ARMS["B"])
    config.lsf.update({"kind": "fwhm", "values": values})
    return make_preprocessing(config)


DESCRIPTION = description()


def sharp(wave, seed=0):
    """An infinitely sharp spectrum with many lines: float64[N], at rest."""
    rng = np.random.default_rng(seed)
    centres, depths = rng.uniform(4880, 5360, 150), rng.uniform(0.1, 0.7, 150)
    return np.exp(-np.sum(depths[:, None] * np.exp(-0.5 * ((wave - centres[:, None]) / 0.15) ** 2), axis=0))


def at_width(
    fwhm, velocity=0.0, step=0.2, name="a", seed=0, scale=1.0, cut=(4930.0, 5310.0), noise=1e-4, **facts
):
    """A spectrum in air of a line width, moved by a velocity, on pixels of its own."""
    flux, _ = degrade(FINE, sharp(FINE, seed), lsf=LineSpread(fwhm=fwhm))
    moved = vacuum_to_air(doppler_shift(air_to_vacuum(FINE), velocity))
    wave = np.arange(cut[0], cut[1], step)
    flux = scale * np.interp(wave, moved, flux)
    flux += noise * scale * np.random.default_rng(1).normal(size=wave.size)
    ivar = np.full(wave.size, (noise * scale) ** -2.0)
    return make_spectra(wave, flux, medium="air", ivar=ivar, names=[name], fwhm=fwhm, facts=facts)


def library_templates():
    """The star itself and two others at the networks' line spread."""
    wave = {arm: DESCRIPTION.wave(arm) for arm in "AB"}
    flux = {arm: [] for arm in "AB"}
    for seed in (0, 1, 2):
        smooth, _ = degrade(FINE, sharp(FINE, seed), lsf=LineSpread(fwhm=FWHM))
        for arm in "AB":
            flux[arm].append(np.interp(wave[arm], FINE, smooth))
    valid = {arm: np.ones(len(wave[arm]), bool) for arm in "AB"}
    labels = np.array([[5000.0, 4.5, 0.0], [5500.0, 4.5, 0.0], [6000.0, 4.5, 0.0]])
    return make_templates({a: np.stack(f) for a, f in flux.items()}, valid, wave, labels, "air")


# -------------------------------------------------------------------------------- the networks' line spread


@pytest.mark.parametrize("fwhm", [0.3, 1.0, 1.7])
def test_sharper_spectra_come_to_the_networks_line_spread(fwhm):
    expected, _ = degrade(FINE, sharp(FINE), lsf=LineSpread(fwhm=FWHM))
    on = observed_on_grid(at_width(fwhm, step=0.1), DESCRIPTION, "A")
    np.testing.assert_allclose(on.flux[0], np.interp(on.wave, FINE, expected), atol=2e-3)
    np.testing.assert_allclose(on.fwhm, FWHM, rtol=1e-6)
    assert on.valid.all()
    assert not coarser_than(on, DESCRIPTION, "A", tolerance=0.0)
    untold = dataclasses.replace(at_width(fwhm, step=0.1), fwhm=None)
    left = observed_on_grid(untold, DESCRIPTION, "A")
    assert np.abs(left.flux[0] - on.flux[0]).max() > 0.02  # without the declaration it stays sharp


@pytest.mark.parametrize(("fwhm", "coarse"), [(2.1, False), (2.4, False), (3.0, True)])
def test_coarser_spectra_stay_as_they_are_and_are_told(fwhm, coarse):
    spectra = at_width(fwhm)
    on = observed_on_grid(spectra, DESCRIPTION, "A")
    np.testing.assert_allclose(on.flux[0], np.interp(on.wave, spectra.wave, spectra.flux[0]), atol=2e-3)
    assert coarser_than(on, DESCRIPTION, "A", tolerance=0.25) == coarse
    assert bool(observe([[spectra]], DESCRIPTION).coarse[0]) == coarse


def test_line_spread_that_varies_along_the_detector_is_brought_to_one():
    """Sharp at the blue end, coarser than wanted at the red one, where nothing is done."""
    spectra = at_width(0.8, step=0.1)
    own = np.interp(spectra.wave, [5000.0, 5240.0], [0.8, 2.6])
    flux, _ = degrade(
        spectra.wave, spectra.flux[0], lsf=LineSpread(fwhm=own), native=LineSpread(fwhm=0.8 - 1e-9)
    )
    varied = dataclasses.replace(spectra, flux=flux[None], fwhm=own)
    on = observed_on_grid(varied, DESCRIPTION, "A")
    expected, _ = degrade(FINE, sharp(FINE), lsf=LineSpread(fwhm=FWHM))
    np.testing.assert_allclose(on.flux[0], np.interp(on.wave, FINE, expected), atol=4e-3)
    np.testing.assert_allclose(observed_on_grid(varied, DESCRIPTION, "B").fwhm.max(), 2.6, atol=0.01)


def test_noise_goes_through_the_convolution():
    """White noise on fine pixels: what comes out scatters as its inverse variance says."""
    rng = np.random.default_rng(3)
    wave = np.arange(4930.0, 5310.0, 0.1)
    flux = 1 + 0.1 * rng.normal(size=(40, wave.size))
    spectra = make_spectra(wave, flux, medium="air", ivar=np.full(flux.shape, 100.0), fwhm=0.5)
    on = observed_on_grid(spectra, DESCRIPTION, "B")
    pull = (on.flux - 1) * np.sqrt(on.ivar)
    assert np.std(pull) == pytest.approx(1, abs=0.03)
    assert np.median(on.ivar) > 1500  # some 17 pixels in one


def test_finely_sampled_lines_of_unknown_width_are_told():
    told = at_width(0.3, step=0.05)
    assert not observe([[told]], DESCRIPTION).coarse[0]
    assert observe([[dataclasses.replace(told, fwhm=None)]], DESCRIPTION).coarse[0]
    assert not observe([[dataclasses.replace(at_width(2.0, step=0.5), fwhm=None)]], DESCRIPTION).coarse[0]


# --------------------------------------------------------------------------------------------- velocities


@pytest.mark.parametrize("velocity", [-480.0, 62.0, 300.0])
def test_air_wavelengths_are_shifted_in_vacuum(velocity):
    expected = observed_on_grid(at_width(1.0, step=0.05), DESCRIPTION, "A").flux
    moved = at_width(1.0, velocity, step=0.05)
    np.testing.assert_allclose(
        observed_on_grid(moved, DESCRIPTION, "A", velocity=velocity).flux, expected, atol=3e-4
    )


def test_a_spectrum_that_begins_in_the_far_ultraviolet_is_cut_before_it_is_converted():
    """The formula for the index of air has poles at 649 and 1321 Å."""
    wave = np.concatenate([np.linspace(900.0, 4900.0, 4000), np.arange(4900.5, 5340.0, 0.5)])
    flux = np.where(wave > 4900, np.interp(vacuum_to_air(np.maximum(wave, 3000.0)), FINE, sharp(FINE)), 1.0)
    on = observed_on_grid(make_spectra(wave, flux, medium="vacuum"), DESCRIPTION, "A")
    assert on.valid.all()
    part = wave > 4900
    cut = observed_on_grid(make_spectra(wave[part], flux[part], medium="vacuum"), DESCRIPTION, "A")
    np.testing.assert_allclose(on.flux, cut.flux, atol=1e-6)


def test_velocities_are_given_said_by_the_file_or_measured():
    templates = library_templates()
    files = [[at_width(1.0, v, name=f"{v}", rv=v + 1, rv_err=0.5, noise=0.01)] for v in (0.0, 120.0, -250.0)]
    true = np.array([0.0, 120.0, -250.0])
    measured = observe(files, DESCRIPTION, settings=ObserveSettings(velocity="measure"), templates=templates)
    np.testing.assert_allclose(measured.velocity, true, atol=2.0)
    assert np.all(measured.velocity_error < 2)
    assert not measured.doubtful.any()
    told = observe(files, DESCRIPTION, settings=ObserveSettings(velocity="file"), templates=templates)
    np.testing.assert_allclose(told.velocity, true + 1)
    np.testing.assert_allclose(told.velocity_error, 0.5)
    given = observe(files, DESCRIPTION, velocities=true, templates=templates)
    np.testing.assert_allclose(given.velocity, true)
    for found in (measured, told, given):
        for arm in "AB":
            both = found.arms[arm].valid[1] & found.arms[arm].valid[0]
            np.testing.assert_allclose(found.arms[arm].flux[1][both], found.arms[arm].flux[0][both], atol=0.1)


def test_a_velocity_that_the_file_does_not_say_is_measured():
    files = [[at_width(1.0, 80.0, name="silent", noise=0.01)]]
    found = observe(
        files, DESCRIPTION, settings=ObserveSettings(velocity="file"), templates=library_templates()
    )
    assert found.velocity[0] == pytest.approx(80, abs=2)


def test_a_declared_velocity_that_the_lines_contradict_is_told(caplog):
    """As where air wavelengths are taken for vacuum ones: 83 km/s."""
    templates = library_templates()
    files = [[at_width(1.0, v, name=f"v{v:g}", noise=0.01)] for v in (0.0, 83.0, 12.0)]
    found = observe(files, DESCRIPTION, templates=templates)
    assert found.doubtful.tolist() == [False, True, False]
    with caplog.at_level(logging.WARNING, logger="remap"):
        warn_of_velocities(found, ObserveSettings())
    assert "1 of 3 spectra are not at the velocity that is declared" in caplog.text
    assert "+83 km/s for v83" in caplog.text
    quiet = observe(files, DESCRIPTION, settings=ObserveSettings(check=False), templates=templates)
    assert not quiet.doubtful.any()


def test_velocities_are_measured_only_where_a_quick_look_doubts_them(monkeypatch):
    templates, seen = library_templates(), []
    measure = velocity_choice.measure_velocities

    def counted(arms, *rest):
        seen.append(len(next(iter(arms.values()))[0]))
        return measure(arms, *rest)

    monkeypatch.setattr(velocity_choice, "measure_velocities", counted)
    files = [
        [at_width(1.0, v, name=f"{v}", rv=rv, noise=0.01)] for v, rv in ((90, 90), (90, 150), (-40, -35))
    ]
    settings = ObserveSettings(velocity="file")
    found = observe(files, DESCRIPTION, settings=settings, templates=templates)
    assert seen == [1]
    assert found.doubtful.tolist() == [False, True, False]
    assert found.measured[1] == pytest.approx(90, abs=2)
    assert np.isnan(found.measured[[0, 2]]).all()
    unchecked = observe(files, DESCRIPTION, settings=dataclasses.replace(settings, check=False))
    for arm in "AB":
        for one, other in zip(found.arms[arm], unchecked.arms[arm], strict=True):
            np.testing.assert_array_equal(one, other)


def test_arms_in_files_of_their_own_are_checked_together():
    """Each has the other's lines besides its own, at the velocity that the star was observed with."""
    parts = [((4930.0, 5118.0), "1"), ((5125.0, 5310.0), "2")]
    settings = ObserveSettings(velocity="file", join=True)
    for told, doubtful in ((90.0, False), (30.0, True)):
        files = [[at_width(1.0, 90.0, cut=c, name=n, star_id="s", rv=told, noise=0.01)] for c, n in parts]
        found = observe(files, DESCRIPTION, settings=settings, templates=library_templates())
        assert found.doubtful.tolist() == [doubtful] * 2
        assert found.velocity.tolist() == [told] * 2
        if doubtful:
            np.testing.assert_array_equal(found.measured, found.measured[0])
            assert found.measured[0] == pytest.approx(90, abs=2)


def test_without_lines_the_velocity_is_poor():
    wave = np.arange(4930.0, 5310.0, 0.2)
    flux = 1 + 0.02 * np.random.default_rng(0).normal(size=wave.size)
    blank = make_spectra(wave, flux, medium="air", ivar=np.full(wave.size, 2500.0), fwhm=1.0)
    found = observe(
        [[blank]], DESCRIPTION, settings=ObserveSettings(velocity="measure"), templates=library_templates()
    )
    assert found.doubtful[0]


def test_a_velocity_that_cannot_be_measured_is_told_with_what_there_is():
    wave = np.arange(4930.0, 5040.0, 0.2)
    short = make_spectra(wave, sharp(wave), medium="air", names=["short"], fwhm=1.0)
    found = observe(
        [[short], [at_width(1.0)]],
        DESCRIPTION,
        settings=ObserveSettings(velocity="measure", cross_correlation=VelocitySettings(min_coverage=0.5)),
        templates=library_templates(),
    )
    assert "short: the velocity could not be measured" in found.messages[0]
    assert "of arm A, 0% of arm B covered" in found.messages[0]
    assert found.messages[1] == ""
    assert np.isnan(found.velocity[0])


def test_an_unknown_velocity_is_a_row_that_cannot_be_used():
    files = [[at_width(1.0, name="a")], [at_width(1.0, name="b")]]
    found = observe(files, DESCRIPTION, velocities=[np.nan, 0.0])
    assert "a: expected a radial velocity [km/s], found nan" in found.messages[0]
    assert found.messages[1] == ""
    assert not found.arms["A"].valid[0].any()
    assert found.arms["A"].valid[1].all()


def test_measuring_without_templates_is_refused():
    with pytest.raises(ConfigError, match="without templates"):
        observe([[at_width(1.0)]], DESCRIPTION, settings=ObserveSettings(velocity="measure"))
    with pytest.raises(ConfigError, match="must be one of"):
        ObserveSettings(velocity="guess")
    with pytest.raises(ConfigError, match="observe: unknown fields"):
        observe_settings({"velocty": "rest"})
    assert observe_settings({"join": True, "stacking": {"degree": 1}}).stacking.degree == 1


# ------------------------------------------------------------------------- several spectra of one star


def test_segments_of_one_file_become_one_row():
    whole = observe([[at_width(1.0, noise=0.01)]], DESCRIPTION)
    blue = at_width(1.0, cut=(4930.0, 5180.0), segment="blue")
    red = at_width(1.0, cut=(5150.0, 5310.0), scale=3.0, segment="red")
    found = observe([[blue, red]], DESCRIPTION)
    assert found.names == ("a",)
    for arm in "AB":
        assert found.arms[arm].valid.all()
        np.testing.assert_allclose(found.arms[arm].flux, whole.arms[arm].flux, atol=0.05)


def test_single_exposures_are_not_used_where_there_is_their_sum():
    total, one = at_width(1.0), at_width(1.0, scale=7.0, exposure="1", seed=5)
    both, alone = observe([[total, one]], DESCRIPTION), observe([[total]], DESCRIPTION)
    assert len(both) == 1
    np.testing.assert_array_equal(both.arms["A"].flux, alone.arms["A"].flux)
    single = observe([[one, at_width(1.0, exposure="2")]], DESCRIPTION)
    assert len(single) == 2  # without a sum every exposure has a row, with a velocity of its own


def test_rows_of_one_container_are_never_one_star_and_files_of_one_name_are_two():
    two = make_spectra(np.arange(4930.0, 5310.0), np.ones((2, 380)), medium="air", names=["x", "x"])
    assert len(observe([[two]], DESCRIPTION)) == 2
    assert len(observe([[at_width(1.0)], [at_width(1.0)]], DESCRIPTION)) == 2


def test_arms_in_different_files_join_by_identifier():
    blue = at_width(1.0, cut=(4930.0, 5122.0), name="s_1.fits", star_id="s")
    red = at_width(1.0, cut=(5110.0, 5310.0), name="s_2.fits", star_id="s")
    other = at_width(1.0, name="t.fits", star_id="t", seed=4)
    apart = observe([[blue], [other], [red]], DESCRIPTION)
    assert [bool(v.any()) for v in apart.arms["B"].valid] == [False, True, True]
    stars = join(apart, DESCRIPTION)
    assert stars.names == ("s_1.fits+s_2.fits", "t.fits")
    assert stars.star_ids == ("s", "t")
    assert stars.inputs.tolist() == [2, 1]
    whole = observe([[at_width(1.0)]], DESCRIPTION)
    for arm in "AB":
        assert stars.arms[arm].valid[0].all()
        np.testing.assert_allclose(stars.arms[arm].flux[0], whole.arms[arm].flux[0], atol=2e-3)
    np.testing.assert_array_equal(stars.arms["A"].flux[1], apart.arms["A"].flux[1])


def test_exposures_of_one_star_are_averaged_after_their_velocities():
    rng = np.random.default_rng(0)
    parts = []
    for k, velocity in enumerate((-30.0, 5.0, 40.0, 90.0)):
        one = at_width(1.0, velocity, name=f"{k}", star_id="s", ra=10.0, dec=-5.0)
        noisy = one.flux + 0.05 * rng.normal(size=one.flux.shape)
        parts.append([dataclasses.replace(one, flux=noisy, ivar=np.full(noisy.shape, 400.0))])
    each = observe(parts, DESCRIPTION, velocities=[-30.0, 5.0, 40.0, 90.0])
    star = join(each, DESCRIPTION)
    assert len(star) == 1
    clean = observe([[at_width(1.0)]], DESCRIPTION).arms["A"].flux[0]

    def scatter(flux):
        ratio = flux / clean
        return np.std(ratio / np.median(ratio))

    assert scatter(star.arms["A"].flux[0]) < 0.65 * min(scatter(f) for f in each.arms["A"].flux)
    assert star.arms["A"].snr[0] == pytest.approx(2 * np.median(each.arms["A"].snr), rel=0.1)


def test_a_spectrum_that_is_there_twice_counts_once(caplog):
    """A file that is named twice or was copied: its noise is one, and would be taken for that of two exposures."""
    one, two = (
        at_width(1.0, 10.0, name=n, star_id="s", seed=k, noise=0.05, rv=10.0, rv_err=2.0)
        for n, k in (("1", 1), ("2", 2))
    )
    copy, away = dataclasses.replace(one, names=("copy",)), at_width(1.0, cut=(8000.0, 8100.0), star_id="s")
    settings = ObserveSettings(velocity="file", join=True)

    def joined(*files):
        return join(
            observe([[f] for f in files], DESCRIPTION, settings=settings), DESCRIPTION, settings=settings
        )

    both = joined(one, two)
    assert "counts once" not in caplog.text
    found = joined(one, copy, two, one)
    for name in ("flux", "valid", "snr"):
        np.testing.assert_array_equal(getattr(found.arms["A"], name), getattr(both.arms["A"], name))
    assert found.inputs.tolist() == both.inputs.tolist() == [2]
    assert found.velocity_error.tolist() == both.velocity_error.tolist()
    assert "copy: has the pixels of 1, of the same star: the spectrum counts once" in caplog.text
    caplog.clear()
    assert joined(away, away).messages[0]
    assert "counts once" not in caplog.text


def test_one_identifier_at_two_places_is_not_one_star(caplog):
    here = at_width(1.0, name="1", star_id="science", ra=10.0, dec=20.0)
    there = at_width(1.0, name="2", star_id="science", ra=10.1, dec=20.0, seed=6)
    with caplog.at_level(logging.WARNING, logger="remap"):
        found = join(observe([[here], [there]], DESCRIPTION), DESCRIPTION)
    assert found.names == ("1", "2")
    assert "science: 2 spectra have this identifier" in caplog.text
    near = dataclasses.replace(there, facts={**there.facts, "ra": np.array([10.0005])})
    assert len(join(observe([[here], [near]], DESCRIPTION), DESCRIPTION)) == 1  # 1.7 arcsec


def visits(*told):
    """Observed rows, each (identifier, arcsec from the first place, star_within)."""
    parts = []
    for i, (star_id, away, within) in enumerate(told):
        more = {"ra": 150.0, "dec": 30.0 + away / 3600, "star_within": within}
        parts.append([at_width(1.0, name=f"{i}", star_id=star_id, seed=i + 1, **more)])
    return observe(parts, DESCRIPTION)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        # visits of one star, whose identifier is its position
        ((("J1", 0.0, 1.5), ("J2", 1.4, 1.5), ("J1", 0.0, 1.5)), ["0+1+2"]),
        # two stars
        ((("J1", 0.0, 1.5), ("J2", 2.0, 1.5), ("J1", 0.1, 1.5)), ["0+2", "1"]),
        # names
        ((("a", 0.0, np.nan), ("b", 0.0, np.nan), ("a", 0.0, np.nan)), ["0+2", "1"]),
        # a star with a name, and a visit of which its release had none
        ((("G1", 0.0, np.nan), ("J1", 1.0, 1.5)), ["0+1"]),
        # positions that are their own identifiers
        ((("", 0.0, 1.5), ("", 1.0, 1.5), ("", 0.0, np.nan)), ["0+1+2"]),
        ((("", 0.0, np.nan), ("", 1.0, np.nan)), ["0", "1"]),
    ],
)
def test_spectra_whose_identifiers_change_are_one_star_by_position(told, expected, caplog):
    found = visits(*told)
    with caplog.at_level(logging.WARNING, logger="remap"):
        assert list(join(found, DESCRIPTION).names) == expected
    assert not caplog.text
    backwards = join(visits(*reversed(told)), DESCRIPTION).names
    assert sorted(name.count("+") for name in backwards) == sorted(name.count("+") for name in expected)


@pytest.mark.parametrize(
    "told",
    [
        (("J1", 0.0, 1.5), ("J2", 1.0, 1.5), ("J3", 2.0, 1.5), ("J3", 2.0, 1.5)),  # a row between two others
        (("G1", 0.0, np.nan), ("J1", 0.7, 1.5), ("G2", 1.4, np.nan), ("G2", 1.4, np.nan)),  # or between names
    ],
)
def test_where_it_is_not_plain_who_is_one_star_identifiers_decide(told, caplog):
    with caplog.at_level(logging.WARNING, logger="remap"):
        assert join(visits(*told), DESCRIPTION).names == ("0", "1", "2+3")
    assert "4 spectra of 3 identifiers" in caplog.text


def test_unreadable_rows_and_rows_without_identifier_are_left_alone():
    found = concatenate(
        [nothing("bad", DESCRIPTION, "why"), observe([[at_width(1.0)], [at_width(1.0)]], DESCRIPTION)]
    )
    assert join(found, DESCRIPTION).names == ("bad", "a", "a")
    assert found.messages == ("why", "", "")


def test_files_together_are_what_they_are_alone():
    """Also where one has more than one row."""
    many = make_spectra(
        FINE[::4], np.stack([sharp(FINE[::4], k) for k in range(3)]), medium="air", names=["x", "y", "z"]
    )
    files = [[at_width(1.0)], [many], [at_width(1.5, seed=3, name="last")]]
    together = observe_files(files, DESCRIPTION, settings=ObserveSettings(), velocities=None, templates=None)
    assert [len(part) for part in together] == [1, 3, 1]
    for part, file in zip(together, files, strict=True):
        alone = observe([file], DESCRIPTION)
        assert part.names == alone.names
        np.testing.assert_array_equal(part.arms["B"].flux, alone.arms["B"].flux)


def test_one_velocity_of_a_file_of_many_stars_is_nobodys():
    many = make_spectra(FINE[::4], np.ones((2, FINE[::4].size)), medium="air", names=["x", "y"])
    files = [[many], [at_width(1.0, 50.0)]]
    two, one = observe_files(
        files, DESCRIPTION, settings=ObserveSettings(), velocities=[50.0, 50.0], templates=None
    )
    assert all("expected a radial velocity" in message for message in two.messages)
    assert one.velocity.tolist() == [50.0]


def test_parts_in_several_files_keep_their_levels():
    """As they do in one file: a step between them would be a line to the network."""
    blue, red = (
        at_width(1.0, cut=cut, name=name, star_id="s")
        for cut, name in (((4930.0, 5050.0), "1"), ((5053.0, 5310.0), "2"))
    )
    tilt = 1 + (FINE - 5000) / 60
    blue, red = (dataclasses.replace(p, flux=p.flux * np.interp(p.wave, FINE, tilt)) for p in (blue, red))
    several = join(observe([[blue], [red]], DESCRIPTION), DESCRIPTION).arms["A"]
    one = observe([[blue, dataclasses.replace(red, names=blue.names)]], DESCRIPTION).arms["A"]
    np.testing.assert_array_equal(several.valid, one.valid)
    np.testing.assert_allclose(several.flux, one.flux, atol=2e-6)


def test_exposures_of_poor_velocity_are_left_out_of_their_star():
    templates = library_templates()
    good = at_width(1.0, 60.0, name="good", star_id="s", noise=0.01)
    wave = good.wave
    noise = 1 + 0.3 * np.random.default_rng(2).normal(size=wave.size)
    bad = make_spectra(
        wave,
        noise,
        medium="air",
        names=["bad"],
        ivar=np.full(wave.size, 11.0),
        fwhm=1.0,
        facts={"star_id": "s"},
    )
    settings = ObserveSettings(velocity="measure", join=True)
    each = observe([[good], [bad]], DESCRIPTION, settings=settings, templates=templates)
    assert each.poor.tolist() == [False, True]
    star = join(each, DESCRIPTION, settings=settings)
    assert star.names == ("good+bad",)
    assert star.inputs.tolist() == [1]
    assert star.velocity[0] == pytest.approx(60, abs=2)
    np.testing.assert_array_equal(star.arms["A"].flux[0], each.arms["A"].flux[0])


def test_a_mean_velocity_has_an_error_only_where_all_have():
    one, two = (
        at_width(1.0, 10.0, name=n, star_id="s", seed=k, rv=10.0, rv_err=e)
        for n, k, e in (("1", 1, 1.0), ("2", 2, np.nan))
    )
    settings = ObserveSettings(velocity="file", join=True)
    both = join(observe([[one], [two]], DESCRIPTION, settings=settings), DESCRIPTION, settings=settings)
    assert both.velocity.tolist() == [10.0]
    assert np.isnan(both.velocity_error[0])


def test_arms_in_files_of_their_own_are_measured_together():
    """The second has few lines; the star has one velocity."""
    templates = library_templates()
    blue = at_width(1.0, 90.0, cut=(4930.0, 5118.0), name="1", star_id="s", noise=0.005)
    red = at_width(1.0, 90.0, cut=(5125.0, 5310.0), name="2", star_id="s", noise=0.3)
    alone = at_width(1.0, 90.0, cut=(8000.0, 8100.0), name="3", star_id="s", noise=0.005)
    files = [[blue], [red], [alone]]
    settings = ObserveSettings(velocity="measure", join=True)
    each = observe(files, DESCRIPTION, settings=settings, templates=templates)
    np.testing.assert_array_equal(each.velocity, each.velocity[0])
    assert each.velocity[0] == pytest.approx(90, abs=2)
    star = join(each, DESCRIPTION, settings=settings)
    assert len(star) == 1
    assert star.messages == ("",)
    assert star.arms["A"].valid[0].mean() > 0.9
    assert star.arms["B"].valid[0].mean() > 0.8


def test_an_arm_without_errors_counts_in_the_velocity_of_one_with(caplog):
    templates = library_templates()
    blue = at_width(1.0, 90.0, cut=(4930.0, 5122.0), noise=0.3)
    red = dataclasses.replace(at_width(1.0, 90.0, cut=(5118.0, 5310.0), noise=0.005), ivar=None)
    settings = ObserveSettings(velocity="measure")
    found = observe([[blue, red]], DESCRIPTION, settings=settings, templates=templates)
    assert found.velocity[0] == pytest.approx(90, abs=2)
    assert not found.poor[0]


def test_a_spectrum_beside_the_arms_is_a_row_without_pixels():
    found = observe([[make_spectra(np.arange(8000.0, 8100.0), np.ones(100), medium="air")]], DESCRIPTION)
    assert not found.arms["A"].valid.any()
    assert np.isnan(found.arms["A"].snr[0])
    short = make_spectra([5010.0, 5011.0, 5012.0], np.ones(3), medium="air")
    assert not observe([[short]], DESCRIPTION).arms["A"].valid.any()


def test_cosmic_rays_are_told_by_the_other_exposures_of_a_file():
    """In one exposure a spike as wide as a line may be one; against two others it is not."""
    parts = []
    for k in range(3):
        one = at_width(1.0, exposure=str(k), name="s", noise=0.005)
        flux = one.flux * (1 + k) + 0.005 * (1 + k) * np.random.default_rng(k).normal(size=one.flux.shape)
        if k == 1:
            flux[0, 700:704] += 3.0
        ivar = np.full(flux.shape, (0.007 * (1 + k)) ** -2.0)
        parts.append(dataclasses.replace(one, flux=flux, ivar=ivar))
    plain = observe([parts], DESCRIPTION, settings=ObserveSettings(cosmic_rays=False))
    clean = observe([parts], DESCRIPTION)
    assert len(clean) == 3
    at = int(np.argmin(np.abs(DESCRIPTION.wave("A") - parts[0].wave[702])))
    assert plain.arms["A"].valid[1, at]
    assert not clean.arms["A"].valid[1, at]
    assert clean.arms["A"].valid[[0, 2]].all()
    assert clean.arms["A"].valid[1].mean() > 0.9


def test_places_of_the_detector_are_masked_before_the_shift_to_rest():
    mask = StationaryMask(((5050.0, 5051.0),), "air", 20)
    files = [[at_width(1.0, v, name=f"{v}")] for v in (0.0, 120.0)]
    found = observe(files, DESCRIPTION, velocities=[0.0, 120.0], stationary=mask)
    for row, velocity in enumerate((0.0, 120.0)):
        bad = DESCRIPTION.wave("A")[~found.arms["A"].valid[row]]
        assert bad.size
        assert np.abs(bad - 5050.5 * (1 - velocity / 299792.458)).max() < 4  # the convolution spreads it


def test_a_hot_pixel_of_a_single_spectrum_is_masked_and_lines_too_narrow_to_tell_are_counted(caplog):
    """Nine times the flux in one pixel, on pixels of a fifth of a line and on pixels of a line and a half."""
    sharp_enough, coarse = at_width(1.5, name="a"), at_width(1.5, step=1.0, name="b")
    for spectra, at in ((sharp_enough, 700), (coarse, 140)):
        spectra.flux[0, at] *= 10
    with caplog.at_level(logging.WARNING, logger="remap"):
        found = observe([[sharp_enough], [coarse]], DESCRIPTION)
    near = int(np.argmin(np.abs(DESCRIPTION.wave("A") - sharp_enough.wave[700])))
    assert not found.arms["A"].valid[0, near]
    assert found.arms["A"].valid[0].mean() > 0.95
    assert found.arms["A"].valid[1].all()
    assert "in most of the pixels of 1 of 2 segments" in caplog.text


def test_the_signal_to_noise_that_a_file_states_counts_where_it_has_no_errors():
    """The scatter of pixels takes lines for noise, so that it is a lower limit."""
    wave = np.arange(5000.0, 5200.0, 0.5)
    flux = 1 - 0.3 * np.sin(2 * wave) ** 2  # dense lines and no noise
    plain = make_spectra(wave, flux, medium="air")
    stated = dataclasses.replace(plain, facts={"snr": np.array([150.0])})
    exact = make_spectra(wave, flux, medium="air", ivar=np.full(wave.shape, 400.0))
    sure = dataclasses.replace(exact, facts={"snr": np.array([150.0])})
    found = []
    for one in (plain, stated, sure):
        arm = ArmOnGrid(
            *(np.zeros((1, wave.size), t) for t in (np.float32, bool, np.float32)), *np.zeros((2, 1))
        )
        put(arm, 0, one)
        found.append(arm.snr[0])
    assert found[0] < 50
    assert found[1:] == [150.0, pytest.approx(17.0, abs=0.1)]
