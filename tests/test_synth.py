"""The embedded synthesiser: physics in the right direction, known limits, the library's arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import wofz

from remap.spectra import vacuum_to_air
from remap.synth import (
    ELEMENTS,
    check_labels,
    check_offsets,
    element_offsets,
    load_lines,
    make_library,
    model,
    synthesize,
    synthesize_batch,
)

WAVE = 5160.0 + 0.02 * np.arange(8500)
SUN = (5777.0, 4.44, 0.0, 1.1)
GRID = {
    "teff": [4500.0, 6000.0],
    "logg": [1.5, 4.5],
    "m_h": [-1.0, 0.0],
    "vmic": (2.13, -0.23),
    "logg_floor": [(5750.0, 2.0)],
    "wave_range": (5160.0, 5180.0),
    "wave_step": 0.1,
    "oversample": 4,
    "chunk": 4,
}


@pytest.fixture(scope="module")
def spectrum():
    lines = load_lines()

    def run(offsets=None, **changes):
        labels = dict(zip(model.LABELS, SUN, strict=True)) | changes
        x = jnp.asarray(list(labels.values()), jnp.float32)
        flux, _ = synthesize(x, lines=lines, wave=WAVE, offsets=offsets)
        return np.asarray(flux)

    return run


def width(flux, low, high):
    """Equivalent width [Å] between two wavelengths."""
    first, last = np.searchsorted(WAVE, (low, high))
    return np.sum(1 - flux[first:last]) * (WAVE[1] - WAVE[0])


def test_voigt_equals_the_faddeeva_function():
    a, u = np.array([1e-3, 1e-2, 0.1, 1.0, 5.0])[:, None], np.linspace(0, 60, 601)[None]
    ours = np.asarray(jax.jit(model.voigt)(jnp.asarray(a, jnp.float32), jnp.asarray(u, jnp.float32)))
    np.testing.assert_allclose(ours, wofz(u + 1j * a).real, atol=1e-5)  # Hui et al. state 1e-6 in float64


def test_solar_photosphere():
    """Around τ = 1 the Sun has T = 6390 K, log P = 5.06 and log Pe = 1.8 (Holweger & Müller 1974; VAL)."""
    sun = model.model_atmosphere(jnp.asarray(SUN, jnp.float32))
    log_tau = np.log10(np.asarray(sun.tau))
    electron_pressure = sun.electron_density * 1.380649e-16 * sun.temperature
    assert abs(np.interp(0.0, log_tau, sun.temperature) - 6390) < 150
    assert abs(np.interp(0.0, log_tau, np.log10(sun.pressure)) - 5.06) < 0.15
    assert abs(np.interp(0.0, log_tau, np.log10(electron_pressure)) - 1.8) < 0.2


@pytest.mark.parametrize("offsets", [{}, {"Mg": 0.6, "Na": -1.0, "Fe": 0.3}])
def test_electrons_balance_the_ions(offsets):
    temperature = jnp.linspace(4000.0, 9000.0, 6)
    share = model._abundances(0.3, jnp.asarray(element_offsets(**offsets), jnp.float32))
    electrons, hydrogen = jax.jit(model._electron_density)(temperature, jnp.full(6, 1e5, jnp.float32), share)
    saha = np.exp(np.asarray(model.log_saha(temperature), np.float64))
    fraction = saha / (np.asarray(electrons)[:, None] + saha)
    ions = (fraction * np.asarray(share)).sum(axis=1) * np.asarray(hydrogen)
    np.testing.assert_allclose(electrons, ions, rtol=1e-4)  # float32 sums and exponentials


def test_saha_of_hydrogen_against_its_formula():
    """n_e n_II / n_I = (2π m k T / h²)^1.5 e^(-χ/kT) for hydrogen, whose weights cancel."""
    t = 6000.0
    expected = (2 * np.pi * 9.10938e-28 * 1.380649e-16 * t / 6.62607e-27**2) ** 1.5 * np.exp(
        -13.598 / 8.617333e-5 / t
    )
    ours = model.log_saha(jnp.asarray([t], jnp.float32))[0, model.ELEMENTS.index("H")]
    assert float(ours) == pytest.approx(np.log(expected), abs=1e-3)


def test_solar_continuum_is_the_observed_one():
    """At 5000 Å the Sun's surface continuum is 9.1e6 erg/s/cm²/Å to a few per cent (Neckel & Labs)."""
    _, continuum = synthesize(
        jnp.asarray(SUN, jnp.float32), lines=load_lines(), wave=np.array([4999.0, 5001.0])
    )
    assert float(continuum.mean()) == pytest.approx(9.1e6, rel=0.12)


def test_without_lines_the_flux_is_the_continuum():
    lines = load_lines()
    flux, _ = synthesize(
        jnp.asarray(SUN, jnp.float32), lines=lines._replace(log_gf=lines.log_gf - 30), wave=WAVE
    )
    np.testing.assert_allclose(flux, 1.0, atol=2e-5)  # two routes to the same integral, in float32


def test_weak_lines_grow_in_proportion():
    """Optically thin limit: the equivalent width is proportional to gf."""
    lines = load_lines()
    only = [
        synthesize(jnp.asarray(SUN, jnp.float32), lines=lines._replace(log_gf=np.where(
            np.abs(lines.wave - 5250.646) < 0.01, gf, -60.0)), wave=WAVE)[0]
        for gf in (-5.2, -5.5)
    ]  # fmt: skip
    one, half = (width(np.asarray(f), 5249, 5252) for f in only)
    assert one / half == pytest.approx(10**0.3, rel=0.02)
    assert 1e-4 < half < 5e-3


def test_iron_grows_with_metallicity_and_falls_with_temperature(spectrum):
    band = (5250.0, 5290.0)
    by_metals = [width(spectrum(m_h=m), *band) for m in (-2.0, -1.0, 0.0, 0.5)]
    by_heat = [width(spectrum(teff=t), *band) for t in (4500.0, 5250.0, 6000.0, 7000.0)]
    assert np.all(np.diff(by_metals) > 0.3)
    assert np.all(np.diff(by_heat) < -0.3)


def test_magnesium_wings_grow_with_gravity(spectrum):
    far = (5178.0, 5181.5)  # between the lines at 5172.7 and 5183.6
    dwarf, giant = (width(spectrum(teff=5000.0, logg=g), *far) for g in (4.8, 2.0))
    assert dwarf > 1.5 * giant


def test_ionised_lines_grow_at_low_gravity(spectrum):
    def ratio(logg):
        flux = spectrum(teff=5500.0, logg=logg)
        return width(flux, 5234.2, 5235.1) / width(flux, 5249.9, 5250.5)  # Fe II 5234.6, Fe I 5250.2

    assert ratio(2.0) > 1.2 * ratio(4.5)


def test_magnesium_alone_moves_its_own_lines(spectrum):
    rich = spectrum(offsets=element_offsets(Mg=0.4))
    triplet, iron = (5166.0, 5186.0), (5250.0, 5290.0)
    assert width(rich, *triplet) > 1.15 * width(spectrum(), *triplet)
    assert width(rich, *iron) == pytest.approx(width(spectrum(), *iron), rel=0.1)
    # what is left is the Mg electrons' H⁻ opacity, which thins the pressure broadening too


def test_electron_donors_act_on_lines_of_others(spectrum):
    """Electrons of Mg make H⁻ opacity, which weakens the lines of Fe II in cool stars."""
    cool = {"teff": 4500.0, "logg": 2.0}
    band = (5234.2, 5235.1)  # Fe II 5234.6
    rich = spectrum(offsets=element_offsets(Mg=1.0), **cool)
    assert width(rich, *band) < 0.95 * width(spectrum(**cool), *band)


def test_offsets_of_all_metals_are_a_metallicity(spectrum):
    metals = element_offsets(**{e: -0.5 for e in ELEMENTS if e != "H"})
    np.testing.assert_allclose(spectrum(offsets=metals), spectrum(m_h=-0.5), atol=2e-4)  # float32


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        (np.zeros(3), "offsets must have shape"),
        (element_offsets(H=0.1), r"\[H/M\] = 0.1 is outside the model's range \[0, 0\]"),
        (element_offsets(Mg=2.5), r"\[Mg/M\] = 2.5 is outside the model's range \[-2, 2\]"),
        (element_offsets(Fe=np.nan), r"\[Fe/M\] = nan"),
    ],
)
def test_offsets_are_checked(offsets, message):
    with pytest.raises(ValueError, match=message):
        check_offsets(offsets)
    with pytest.raises(ValueError, match=message):
        synthesize_batch(np.array([SUN]), lines=load_lines(), wave=WAVE, oversample=1, chunk=1,
                         offsets=offsets[None])  # fmt: skip


def test_one_offset_row_per_star_and_known_elements():
    with pytest.raises(ValueError, match="expected offsets of 1 stars"):
        synthesize_batch(np.array([SUN]), lines=load_lines(), wave=WAVE, oversample=1, chunk=1,
                         offsets=np.zeros((2, len(ELEMENTS))))  # fmt: skip
    with pytest.raises(ValueError, match="found Xx"):
        element_offsets(Xx=0.1)


def test_library_with_an_alpha_axis():
    nodes = {"teff": [5000.0], "logg": [4.5], "m_h": [-1.0]}
    library = make_library(**GRID | nodes | {"alpha": (0.0, 0.4)})
    assert list(library["label_names"]) == [*model.LABELS, "alpha"]
    np.testing.assert_allclose(library["labels"][:, 4], [0.0, 0.4], rtol=1e-6)
    plain = make_library(**GRID | nodes)
    np.testing.assert_allclose(library["flux"][0], plain["flux"][0], atol=1e-6)
    assert library["flux"][1].mean() < plain["flux"][0].mean() - 0.02  # the Mg triplet is in the range


def test_microturbulence_strengthens_saturated_lines(spectrum):
    assert width(spectrum(vmic=3.0), 5250, 5290) > 1.1 * width(spectrum(vmic=0.5), 5250, 5290)


def test_gradient_equals_a_finite_difference():
    lines = load_lines()
    x = jnp.asarray(SUN, jnp.float32)

    def total(labels):
        return jnp.sum(1 - synthesize(labels, lines=lines, wave=WAVE)[0])

    for i, step in enumerate((20.0, 0.05, 0.02, 0.02)):
        e = jnp.zeros(4).at[i].set(step)
        difference = (total(x + e) - total(x - e)) / 2
        _, gradient = jax.jvp(total, (x,), (e,))
        assert float(gradient) == pytest.approx(float(difference), rel=0.01)  # float32 and curvature


def test_pixels_conserve_equivalent_width(spectrum):
    """Four points per pixel of 0.1 Å see what points of 0.02 Å see."""
    flux, _ = synthesize_batch(np.array([SUN]), lines=load_lines(), wave=WAVE[2::5], oversample=4, chunk=2)
    truth = spectrum().reshape(-1, 5).mean(axis=1)
    np.testing.assert_allclose(flux[0], truth, atol=0.01)
    assert np.sum(1 - flux) == pytest.approx(np.sum(1 - truth), rel=1e-3)


def test_library_arrays(tmp_path):
    library = make_library(**GRID)
    np.testing.assert_allclose(
        library["labels"][:, :3],
        [[4500, 1.5, -1], [4500, 1.5, 0], [4500, 4.5, -1], [4500, 4.5, 0], [6000, 4.5, -1], [6000, 4.5, 0]],
    )  # 6000 K at log g 1.5 lies below the floor
    np.testing.assert_allclose(library["labels"][:, 3], 2.13 - 0.23 * library["labels"][:, 1], rtol=1e-6)
    assert library["flux"].shape == (6, 201)
    assert library["flux"].dtype == np.float32
    assert library["continuum"].shape == (6, library["cont_wave_air"].size)
    assert library["cont_wave_air"][[0, -1]] == pytest.approx(GRID["wave_range"])
    np.testing.assert_allclose(vacuum_to_air(library["wave_vac"]), library["wave_air"], atol=1e-8)
    assert library["flux"].min() > 0
    assert library["flux"].max() < 1.001
    np.savez(tmp_path / "library.npz", **library)
    with np.load(tmp_path / "library.npz") as saved:  # no pickles inside
        np.testing.assert_array_equal(saved["flux"], library["flux"])
    one = make_library(**GRID | {"chunk": 5})
    np.testing.assert_allclose(one["flux"], library["flux"], atol=1e-6)  # the chunk is no part of the result


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teff": [9000.0]}, r"teff = 9000 is outside .* \[3900, 7500\]"),
        ({"m_h": [np.nan]}, "m_h = nan"),
        ({"vmic": (0.0, 0.0)}, "vmic = 0 is outside"),
        ({"logg": [1.0], "teff": [6000.0]}, "no node is left"),
        ({"wave_range": (3000.0, 3100.0)}, "outside the model's 4000-8000"),
        ({"wave_range": (5200.0, 5100.0)}, "at least two pixels"),
        ({"oversample": 0}, "oversample and chunk"),
    ],
)
def test_library_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        make_library(**GRID | change)


def test_label_shape_is_checked():
    with pytest.raises(ValueError, match="shape"):
        check_labels(np.zeros((2, 3)))


def test_line_table_is_sound():
    lines = load_lines()
    assert len(lines.wave) > 300
    assert np.all(np.diff(lines.wave) > 0)
    assert lines.wave[0] > 4850
    assert lines.wave[-1] < 5750
    ionisation = model._IONISATION[lines.element, lines.stage - 1]
    assert np.all(lines.excitation + 12398.42 / lines.wave < ionisation)  # upper levels are bound
